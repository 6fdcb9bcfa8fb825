"""What a run leaves on disk beside its checkpoints: config.json, metrics.jsonl, metrics.json, run.json, broken.txt."""

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
from grafit_jax.runs import locks

# The images that a run does without.
BROKEN = "broken.txt"
# The folder of a workdir that traces are in, which may be there before the run is.
PROFILE = "profile"
# The lock that a run holds while it works, and a file that says which process that is.
LOCK = "lock"
_HOLDER = ".holder"
# What the process of a run prints that a sweep has started.
LOG = "train.log"
# Files that may exist before config.json does.
_BEFORE = (PROFILE, LOCK, LOG, "config.json.tmp")
_METRICS = "metrics.jsonl"
# In front of the names of metrics of an evaluation, in the log.
EVAL = "eval/"


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps `workdir` to this run until it ends, however it ends: see `locks`. UserError: another run uses it."""
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
            raise UserError(f"{workdir} is used by {holder or 'another run'}: use another --workdir, or wait.")
        yield


@contextlib.contextmanager
def _writable(workdir: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to workdir {workdir} ({error}): make room, make it writable, or take another --workdir."
        ) from error


def check(workdir: pathlib.Path, config: ml_collections.ConfigDict, allowed: Sequence[str] = ()) -> None:
    """Sees that `workdir` can be the run of this config, and leaves it as it is.

    Args:
      workdir: of a run, or to be.
      config: what is wanted now.
      allowed: keys that may differ from the config that the run was started with.

    Raises:
      UserError: it cannot be written, holds another config's run, or files that are not of a run.
    """
    with _writable(workdir):
        found = [p.name for p in workdir.iterdir()] if workdir.exists() else []
        others = sorted(name for name in found if name not in _BEFORE and name[0] != ".")
        if "config.json" in found:
            differences = config_lib.differences(read_config(workdir), config)
            changed = [line for line in differences if line.partition(":")[0] not in allowed]
            if changed:
                keys = ",".join(line.partition(":")[0] for line in changed)
                raise UserError(
                    f"{workdir} holds the run of another config ({'; '.join(changed)}): take another --workdir, the "
                    "config of that run, or, if it is to go on changed, experiments/train.py "
                    f"--allow_config_change={keys}."
                )
        elif others:
            raise UserError(
                f"{workdir} holds files of something else ({', '.join(others[:3])}, …): take an empty --workdir."
            )
        there = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
        # A file that is gone at once: a read-only workdir is found out now, not after the first epoch.
        # On some file systems it has a name meanwhile, which others in the same directory pass over.
        with tempfile.TemporaryFile(dir=there, prefix="."):
            pass


def claim(workdir: pathlib.Path, config: ml_collections.ConfigDict, allowed: Sequence[str] = ()) -> None:
    """Makes `workdir` the run of this config, or finds it to be that already; arguments and UserError as `check`."""
    check(workdir, config, allowed)
    if (workdir / "metrics.json").is_file():  # complete, with the config that it has
        return
    put(workdir, "config.json", config_lib.to_json(config) + "\n")


def check_data(workdir: pathlib.Path, fingerprints: dict[str, str]) -> None:
    """Raises UserError if the run's data are not those it started with: ids are rows, so others would mix up all."""
    path = workdir / "data.json"
    want = "want the fingerprints of the data that the run was started with; remove it if they are still the same"
    started = read_json(path, dict, want) if path.is_file() else fingerprints
    changed = sorted(split for split in fingerprints if started.get(split) != fingerprints[split])
    if changed:
        raise UserError(
            f"{workdir} was started with other images or labels than are found now (split {', '.join(changed)}): "
            "give it back its data, or take another --workdir."
        )


def read_config(workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """The config of the run in `workdir`; UserError if there is none."""
    path = workdir / "config.json"
    if not os.path.isfile(path):
        raise UserError(f"{workdir} holds no run (no config.json): give the --workdir of experiments/train.py.")
    try:
        return config_lib.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise UserError(
            f"{path} cannot be read as a config of this version ({error}): give back the run's own."
        ) from error


def write(path: pathlib.Path, text: str) -> None:
    """All of the text or nothing: a reader, or a crash, never finds half a file. By the first process alone."""
    if not parallel.is_first():
        return
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def put(workdir: pathlib.Path, name: str, text: str) -> None:
    """`write` of a file of a run; UserError where that is not possible."""
    with _writable(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        write(workdir / name, text)


def write_broken(workdir: pathlib.Path, records: Mapping[str, Records]) -> None:
    """Lists the images that could not be read, those of the start and those of later epochs; no file without any.

    Of several processes the others list those that they have read themselves, in broken_I.txt.
    """
    broken = [
        f"{split}: {file}\n" for split, r in records.items() for file in (*r.broken, *getattr(r.image, "broken", ()))
    ]
    if broken:
        name = BROKEN if parallel.is_first() else f"broken_{jax.process_index()}.txt"
        with _writable(workdir):
            (workdir / name).write_text("".join(broken))


def append_log(workdir: pathlib.Path, line: dict[str, Any]) -> None:
    """By the first process alone."""
    if not parallel.is_first():
        return
    with _writable(workdir), (workdir / _METRICS).open("a") as f:
        f.write(json.dumps(line) + "\n")


def cut_log(workdir: pathlib.Path, step: int) -> list[dict[str, Any]]:
    """Drops what was logged after `step`, the checkpoint a run goes on from, and returns the rest.

    Lines that are damaged go too: a kill cuts the last one short, and no line is worth a run that does not go on.
    """
    lines = [entry for entry in read_log(workdir) if entry["step"] <= step]
    put(workdir, _METRICS, "".join(json.dumps(line) + "\n" for line in lines))
    return lines


def read_log(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """What was logged, an entry an epoch and an evaluation, numbers by their names, without lines that are damaged."""
    path, entries = workdir / _METRICS, []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict) and "step" in entry and all(isinstance(v, int | float) for v in entry.values()):
                entries.append(entry)
    return entries


def evaluation(line: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a line of the log, without their step; empty for a line that is no evaluation's."""
    return {key.removeprefix(EVAL): value for key, value in line.items() if key.startswith(EVAL)}
