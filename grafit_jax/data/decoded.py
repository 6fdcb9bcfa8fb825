"""Decoded data sets on disk: the next run that reads the same files starts without decoding them."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import PIL.Image

from grafit_jax import parallel
from grafit_jax.data.files import read_json, read_npz
from grafit_jax.data.readers import listing
from grafit_jax.data.records import Level, Records
from grafit_jax.errors import heard, reading, warn, writing

# The kinds of data.source whose images are decoded.
KINDS = ("tfds", "folder", "csv")
# Part of every key: to be raised whenever the same files give other records, or records are stored otherwise.
_VERSION = 1
_RECORDS = "records.json"
# Names of arrays; that of a level's labels follows the prefix.
_IMAGE, _FILENAME, _LABEL = "image", "filename", "label of "
# TFDS's default for data.data_dir.
_TFDS = pathlib.Path("~/tensorflow_datasets")
# Packages that decode TFDS's images.
_DECODERS = ("tensorflow", "tensorflow-cpu", "tensorflow-datasets")
# Seconds after which a data set that is not complete is that of a killed process.
_ABANDONED = 86_400.0


def through(folder: str, how: Mapping[str, Any], read: Callable[[], dict[str, Records]]) -> dict[str, Records]:
    """Returns `read()`, from `folder` if an earlier call with the same arguments and files has stored it there.

    A file counts as the same if its path, size and times of change are. Warnings of `read` are printed each time.
    Processes may share the folder: a data set is stored under another name and renamed when it is complete.

    Args:
      folder: where data sets are stored; created if absent.
      how: the arguments of `sources.read`, with images in memory and a source of `KINDS`.
      read: reads the data set.

    Raises:
      UserError: the folder cannot be written, or a stored data set is damaged; as `read` does.
    """
    files = [_stamp(path) for path in _files(how)]
    if not files:
        return read()  # which says what is missing
    key = hashlib.sha256(repr((_decoders(how), sorted(how.items()), files)).encode()).hexdigest()[:16]
    place = pathlib.Path(folder).expanduser().absolute() / key
    if place.is_dir():
        return _load(place)
    if not parallel.is_first():  # one copy is enough for all hosts
        return read()
    with writing(place):  # before anything is decoded
        temporary = place.with_name(f"{key}.{uuid.uuid4().hex}")
        temporary.mkdir()
    try:
        with heard() as warnings:
            records = read()
        with writing(place):
            _save(temporary, records, warnings)
            try:
                temporary.rename(place)
            except OSError:
                if not place.is_dir():  # else another process was first
                    raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for left in place.parent.glob(f"{key}.*"):
            with contextlib.suppress(FileNotFoundError):  # another process has removed its own
                if time.time() - left.stat().st_mtime > _ABANDONED:
                    shutil.rmtree(left, ignore_errors=True)
    return records


def _stamp(path: str) -> tuple[str, *tuple[int, ...]]:
    try:
        stat = os.stat(path)
    except OSError:  # `read` raises for it or leaves it out
        return (path,)
    return path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _files(how: Mapping[str, Any]) -> Iterator[str]:
    """Yields the files that decide the result of `sources.read`."""
    kind, _, name = how["source"].partition(":")
    path = os.path.abspath(os.path.expanduser(name))
    if kind == "tfds":
        root = os.path.expanduser(how.get("data_dir") or os.environ.get("TFDS_DATA_DIR") or _TFDS)
        for parent, folders, names in os.walk(os.path.join(root, re.split("[/:]", name)[0]), followlinks=True):
            folders.sort()
            yield from (os.path.join(parent, file) for file in sorted(names))
        if categories := how.get("inat_categories_file"):
            yield os.path.expanduser(categories)
    elif kind == "csv":
        yield path
        for _, row in listing.read_csv(pathlib.Path(path), ("path", "split"), listing.LEVELS):
            yield os.path.normpath(os.path.join(os.path.dirname(path), row["path"]))
    elif os.path.isdir(path):
        tree = listing.Walk()
        for split, below in tree.entries(path, ())[0]:
            if split in listing.SPLIT_OF:
                yield from (file for file, _ in tree.below(below, (), (os.path.realpath(path),)))


def _decoders(how: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns the versions on which the pixels depend."""
    if not how["source"].startswith("tfds:"):
        return _VERSION, PIL.__version__
    installed = {d.name.lower().replace("_", "-"): d.version for d in importlib.metadata.distributions() if d.name}
    return _VERSION, *(installed.get(name) for name in _DECODERS)


def _save(folder: pathlib.Path, records: Mapping[str, Records], warnings: list[str]) -> None:
    described = {}
    for split, r in records.items():
        labels = {_LABEL + name: level.label for name, level in r.levels.items() if level.label is not None}
        files = {} if r.filename is None else {_FILENAME: r.filename}
        arrays: dict[str, Any] = {_IMAGE: r.image, **files, **labels}
        np.savez(folder / f"{split}.npz", **arrays)
        names = {name: level.names for name, level in r.levels.items()}
        described[split] = {"levels": names, "train_level": r.train_level, "root": r.root, "broken": r.broken}
    content = {"splits": described, "warnings": warnings}
    (folder / _RECORDS).write_text(json.dumps(content), encoding="utf-8")


def _load(folder: pathlib.Path) -> dict[str, Records]:
    hint, records = "delete this folder", {}
    content = read_json(folder / _RECORDS, dict, hint)
    with reading(folder / _RECORDS, hint):
        for split, described in content["splits"].items():
            arrays = read_npz(folder / f"{split}.npz", lambda _: True, (_IMAGE,), hint)
            names, broken = described.pop("levels"), tuple(described.pop("broken"))
            levels = {level: Level(arrays.get(_LABEL + level), tuple(of)) for level, of in names.items()}
            files = arrays.get(_FILENAME)
            records[split] = Records(arrays[_IMAGE], levels, filename=files, broken=broken, **described)
        for warning in content["warnings"]:
            warn(warning)
    return records
