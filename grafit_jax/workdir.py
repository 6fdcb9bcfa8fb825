"""What a run leaves on disk beside its checkpoints: config.json, metrics.jsonl, metrics.json, run.json, broken.txt."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from grafit_jax import config as config_lib
from grafit_jax.data.sources import Records
from grafit_jax.errors import UserError
from grafit_jax.reading import read_json

# The images that a run does without.
BROKEN = "broken.txt"
# The folder of a workdir that traces are in, which may be there before the run is.
PROFILE = "profile"


def claim(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Makes `workdir` the run of this config, or finds it to be that already.

    Raises:
      UserError: it cannot be written, holds another config's run, or files that are not of a run.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        found = sorted(p.name for p in workdir.iterdir() if p.name != PROFILE)
        if "config.json" in found:
            changed = config_lib.differences(read_config(workdir), config)
            if changed:
                raise UserError(
                    f"{workdir} holds the run of another config ({'; '.join(changed)}): take another --workdir, or the "
                    "config of that run."
                )
        elif found:
            raise UserError(
                f"{workdir} holds files of something else ({', '.join(found[:3])}, …): take an empty --workdir."
            )
        # Written even where it is there already: a read-only workdir is found out now, not after the first epoch.
        write(workdir / "config.json", config_lib.to_json(config) + "\n")
    except OSError as error:
        raise UserError(f"cannot write to workdir {workdir} ({error}): take another --workdir.") from error


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
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as a config of this version ({error}): give back the run's own."
        ) from error


def write(path: pathlib.Path, text: str) -> None:
    """All of the text or nothing: a reader, or a crash, never finds half a file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_broken(workdir: pathlib.Path, records: Mapping[str, Records]) -> None:
    """Lists the images that could not be read, those of the start and those of later epochs; no file without any."""
    broken = [
        f"{split}: {file}" for split, r in records.items() for file in (*r.broken, *getattr(r.image, "broken", ()))
    ]
    if broken:
        write(workdir / BROKEN, "".join(f"{line}\n" for line in broken))


def append_log(workdir: pathlib.Path, line: dict[str, Any]) -> None:
    with (workdir / "metrics.jsonl").open("a") as f:
        f.write(json.dumps(line) + "\n")


def cut_log(workdir: pathlib.Path, step: int) -> list[dict[str, Any]]:
    """Drops what was logged after `step`, the checkpoint a run goes on from, and returns the rest.

    Lines that are damaged go too: a kill cuts the last one short, and no line is worth a run that does not go on.
    """
    path = workdir / "metrics.jsonl"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    entries = (_entry(line) for line in text.splitlines())
    lines = [entry for entry in entries if entry is not None and entry["step"] <= step]
    write(path, "".join(json.dumps(line) + "\n" for line in lines))
    return lines


def _entry(line: str) -> dict[str, Any] | None:
    """A line of the log, numbers by their names; None for one that is damaged."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(entry, dict) and "step" in entry and all(isinstance(v, int | float) for v in entry.values())
    return entry if whole else None
