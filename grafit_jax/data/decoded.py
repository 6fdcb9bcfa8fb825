"""Decoded data sets on disk: the next run that reads the same files starts without listing and decoding them."""

import hashlib
import json
import os
import pathlib
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from grafit_jax.data.files import read_json, read_npz
from grafit_jax.data.readers import listing
from grafit_jax.data.records import Level, Records
from grafit_jax.errors import reading, writing

# Part of every key: to be raised whenever the same files give other records, or records are stored otherwise.
_VERSION = 1
_RECORDS = "records.json"
# Names of arrays; that of a level's labels follows the prefix.
_IMAGE, _FILENAME, _LABEL = "image", "filename", "label of "
# TFDS's default for data.data_dir.
_TFDS = pathlib.Path("~/tensorflow_datasets")


def through(folder: str, how: Mapping[str, Any], read: Callable[[], dict[str, Records]]) -> dict[str, Records]:
    """Returns `read()`, from `folder` if an earlier call with the same arguments and files has stored it there.

    A file counts as the same if its path, size and time of change are. Processes may share the folder: a data set is
    stored under another name and renamed when it is complete.

    Args:
      folder: where data sets are stored; created if absent.
      how: the arguments of `sources.read`, with images in memory.
      read: reads the data set.

    Raises:
      UserError: the folder cannot be written, or a stored data set is damaged; as `read` does.
    """
    try:
        files = [(path, (stat := os.stat(path)).st_size, stat.st_mtime_ns) for path in _files(how)]
    except OSError:
        files = []
    if not files:
        return read()  # nothing to decode, or a file that is missing
    key = hashlib.sha256(repr((_VERSION, sorted(how.items()), files)).encode()).hexdigest()[:16]
    place = pathlib.Path(folder).expanduser().absolute() / key
    if place.is_dir():
        return _load(place)
    with writing(place):  # before anything is decoded
        temporary = place.with_name(f"{key}.{uuid.uuid4().hex}")
        temporary.mkdir()
    try:
        records = read()
        with writing(place):
            _save(temporary, records)
            try:
                temporary.rename(place)
            except OSError:
                if not place.is_dir():  # else another process was first
                    raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return records


def _files(how: Mapping[str, Any]) -> Iterator[str]:
    """Yields the files that decide the result of `sources.read`, none for npz and digits, which need no decoding."""
    kind, _, name = how["source"].partition(":")
    path = pathlib.Path(os.path.abspath(os.path.expanduser(name)))
    if kind == "tfds":
        root = how.get("data_dir") or os.environ.get("TFDS_DATA_DIR") or _TFDS
        for parent, folders, names in os.walk(os.path.join(os.path.expanduser(root), re.split("[/:]", name)[0])):
            folders.sort()
            yield from (os.path.join(parent, file) for file in sorted(names))
        if categories := how.get("inat_categories_file"):
            yield os.path.expanduser(categories)
    elif kind == "folder":
        if os.path.isdir(path):
            yield from (file for file, _ in listing.Walk().below(str(path)))
    elif kind == "csv":
        yield str(path)
        yield from (
            os.path.normpath(path.parent / row["path"])
            for _, row in listing.read_csv(path, ("path", "split"), listing.LEVELS)
        )


def _save(folder: pathlib.Path, records: dict[str, Records]) -> None:
    described = {}
    for split, r in records.items():
        labels = {_LABEL + name: level.label for name, level in r.levels.items() if level.label is not None}
        files = {} if r.filename is None else {_FILENAME: r.filename}
        arrays: dict[str, Any] = {_IMAGE: r.image, **files, **labels}
        np.savez(folder / f"{split}.npz", **arrays)
        described[split] = {
            "levels": {name: level.names for name, level in r.levels.items()},
            "train_level": r.train_level,
            "root": r.root,
            "broken": r.broken,
        }
    (folder / _RECORDS).write_text(json.dumps(described), encoding="utf-8")


def _load(folder: pathlib.Path) -> dict[str, Records]:
    hint, records = "delete this folder", {}
    for split, described in read_json(folder / _RECORDS, dict, hint).items():
        arrays = read_npz(folder / f"{split}.npz", lambda _: True, (_IMAGE,), hint)
        with reading(folder / _RECORDS, hint):
            names, broken = described.pop("levels"), tuple(described.pop("broken"))
            levels = {level: Level(arrays.get(_LABEL + level), tuple(of)) for level, of in names.items()}
            files = arrays.get(_FILENAME)
            records[split] = Records(arrays[_IMAGE], levels, filename=files, broken=broken, **described)
    return records
