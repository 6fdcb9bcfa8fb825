"""Files of a run beside its checkpoints.

config.json, data.json, images.csv.gz, metrics.jsonl, metrics.json, run.json and broken.txt.
"""

import contextlib
import json
import os
import pathlib
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections

from grafit_jax import config as config_lib
from grafit_jax import parallel
from grafit_jax.data.files import read_json
from grafit_jax.data.records import Records
from grafit_jax.errors import UserError
from grafit_jax.runs import image_list, locks

# Lists the unreadable images that were skipped.
BROKEN = "broken.txt"
# Folder of profiler traces.
PROFILE = "profile"
# The lock that a run holds while it works, and a file with the process id and host of the holder.
LOCK = "lock"
_HOLDER = ".holder"
# Output of a run started by a sweep.
LOG = "train.log"
# Files that may exist before config.json does.
_BEFORE = (PROFILE, LOCK, LOG, "config.json.tmp")
_METRICS = "metrics.jsonl"
# Prefix of evaluation metrics in the log.
EVAL = "eval/"
# Config keys that only add metrics; they may change on resume.
_ADDS_METRICS = ("eval.clusters",)


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
    """Locks `workdir` for this run until the context or the process ends; raises UserError if another run holds it."""
    with contextlib.ExitStack() as held:
        free, holder = True, ""
        if parallel.is_first():
            with _writable(workdir):
                workdir.mkdir(parents=True, exist_ok=True)
                if taken := locks.take(workdir / LOCK, timeout=locks.MOMENT):
                    held.callback(taken.release)
                    (workdir / _HOLDER).write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
                elif (workdir / _HOLDER).is_file():
                    holder = (workdir / _HOLDER).read_text(errors="replace").strip()
                free = taken is not None
        if not parallel.all_agree(free):
            raise UserError(f"{workdir}: found it in use by {holder or 'another run'}; use another --workdir, or wait.")
        yield


@contextlib.contextmanager
def _writable(workdir: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{workdir}: cannot write to the workdir ({error}); free disk space, make it writable or use another "
            "--workdir."
        ) from error


def check(workdir: pathlib.Path, config: ml_collections.ConfigDict, allowed: Sequence[str] = ()) -> None:
    """Checks that a run of `config` can start or resume in `workdir`; writes nothing.

    Args:
      workdir: a new or existing workdir.
      config: the config of the run.
      allowed: config keys that may change on resume.

    Raises:
      UserError: it cannot be written, holds the run of another config, or holds unrelated files.
    """
    with _writable(workdir):
        found = [p.name for p in workdir.iterdir()] if workdir.exists() else []
        others = sorted(name for name in found if name not in _BEFORE and name[0] != ".")
        if "config.json" in found:
            differences = config_lib.differences(read_config(workdir), config)
            changed = [line for line in differences if line.partition(":")[0] not in (*allowed, *_ADDS_METRICS)]
            if changed:
                keys = ",".join(line.partition(":")[0] for line in changed)
                raise UserError(
                    f"{workdir}: found the run of another config ({'; '.join(changed)}); expected the same config; use "
                    "another --workdir or, to resume with the change, experiments/train.py "
                    f"--allow_config_change={keys}."
                )
        elif others:
            raise UserError(
                f"{workdir}: found unrelated files ({', '.join(others[:3])}, …); expected an empty folder; use another "
                "--workdir."
            )
        existing = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
        # Detects a read-only workdir now, not after the first epoch. Some file systems show the temporary file; the
        # prefix makes concurrent checks ignore it.
        with tempfile.TemporaryFile(dir=existing, prefix="."):
            pass


def claim(workdir: pathlib.Path, config: ml_collections.ConfigDict, allowed: Sequence[str] = ()) -> None:
    """Checks `workdir` as `check` does, then writes config.json unless the run is complete."""
    check(workdir, config, allowed)
    if (workdir / "metrics.json").is_file():
        return
    put(workdir, "config.json", config_lib.to_json(config) + "\n")


def check_data(
    workdir: pathlib.Path,
    fingerprints: dict[str, str],
    records: Mapping[str, Records] | None = None,
    *,
    remedy: str = "restore them or use another --workdir",
) -> None:
    """Raises UserError if the data have changed since the run started, since image ids are row numbers.

    Args:
      workdir: the workdir of the run.
      fingerprints: split -> fingerprint of the images and labels; see `Experiment.fingerprints`.
      records: the images, if the message is to say which files are new, gone or changed.
      remedy: the end of the message.
    """
    path = workdir / "data.json"
    expected = "expected the fingerprints of the run's data; remove the file if the data have not changed"
    started = read_json(path, dict, expected) if path.is_file() else fingerprints
    changed = sorted(split for split in fingerprints if started.get(split) != fingerprints[split])
    if changed:
        which = image_list.changes(workdir, records) if records else ""
        raise UserError(
            f"{workdir}: found other images or labels than when the run started (split {', '.join(changed)})"
            f"{': ' * bool(which)}{which}; expected the same data; {remedy}."
        )


def read_config(workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """Loads the config of the run in `workdir`; raises UserError if there is none."""
    path = workdir / "config.json"
    if not os.path.isfile(path):
        raise UserError(f"{workdir}: found no run (no config.json); expected the --workdir of experiments/train.py.")
    try:
        text = path.read_text(encoding="utf-8")
        if "format" not in json.loads(text):
            return config_lib.from_json(text)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise UserError(
            f"{path}: found no config that this version can read ({error}); restore the original file."
        ) from error
    raise UserError(f"{workdir}: found a saved model; expected the workdir of a run.")


def write(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file atomically, on the first process only."""
    if not parallel.is_first():
        return
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.replace(temporary, path)


def put(workdir: pathlib.Path, name: str, content: str | bytes) -> None:
    """Writes a file of a run as `write` does; raises UserError if that fails."""
    with _writable(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        write(workdir / name, content)


def write_images(workdir: pathlib.Path, records: Mapping[str, Records]) -> None:
    """Lists the images of a run in images.csv.gz before it has a data.json, unless they have no files of their own."""
    listed = (workdir / image_list.FILE).is_file() and (workdir / "data.json").is_file()
    if parallel.is_first() and not listed and (content := image_list.dumps(records)):
        put(workdir, image_list.FILE, content)


def write_broken(workdir: pathlib.Path, records: Mapping[str, Records]) -> None:
    """Lists the unreadable images that were skipped, at the start or later, in broken.txt; writes no empty file.

    In a multi-host run, process I > 0 lists those that it has read itself in broken_I.txt.
    """
    broken = [
        f"{split}: {file}\n" for split, r in records.items() for file in (*r.broken, *getattr(r.image, "broken", ()))
    ]
    if broken:
        name = BROKEN if parallel.is_first() else f"broken_{jax.process_index()}.txt"
        with _writable(workdir):
            (workdir / name).write_text("".join(broken))


def append_log(workdir: pathlib.Path, line: dict[str, Any]) -> None:
    """Appends a line to metrics.jsonl, on the first process only."""
    if not parallel.is_first():
        return
    with _writable(workdir), (workdir / _METRICS).open("a") as f:
        f.write(json.dumps(line) + "\n")


def cut_log(workdir: pathlib.Path, step: int) -> list[dict[str, Any]]:
    """Drops the lines of metrics.jsonl after `step`, where the run resumes, and returns the others.

    Drops damaged lines too: a kill may truncate the last one.
    """
    lines = [entry for entry in read_log(workdir) if entry["step"] <= step]
    put(workdir, _METRICS, "".join(json.dumps(line) + "\n" for line in lines))
    return lines


def read_log(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the undamaged lines of metrics.jsonl, one per epoch and per evaluation, as name -> number."""
    path, entries = workdir / _METRICS, []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict) and "step" in entry and all(isinstance(v, int | float) for v in entry.values()):
                entries.append(entry)
    return entries


def evaluation(line: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the metrics in a line of the log, without their step; empty unless it is the line of an evaluation."""
    return {key.removeprefix(EVAL): value for key, value in line.items() if key.startswith(EVAL)}
