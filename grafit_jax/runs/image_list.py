"""The list of a run's image files, written at its start, which tells later what has changed.

images.csv.gz has a row for every image of every split: its path below the data's folder, the split, the bytes of the
file, and the name of its class at each level, empty if unknown.
"""

import csv
import gzip
import io
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from grafit_jax.data.records import Level, Records
from grafit_jax.errors import reading

FILE = "images.csv.gz"
_COLUMNS = ("path", "split", "bytes")
# Names may hold bytes that are not UTF-8.
_UTF8 = {"encoding": "utf-8", "errors": "surrogateescape"}


def dumps(records: Mapping[str, Records]) -> bytes:
    """Returns the content of the list, equal for equal images; empty if images have no files of their own."""
    if any(of_split.filename is None for of_split in records.values()):
        return b""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*_COLUMNS, *next(iter(records.values())).levels))
    writer.writerows(_rows(records))
    return gzip.compress(text.getvalue().encode(**_UTF8), compresslevel=1, mtime=0)


def changes(workdir: pathlib.Path, records: Mapping[str, Records]) -> str:
    """Describes how images differ from those in the list of the run in `workdir`; empty without a list.

    Raises:
      UserError: the list is damaged.
    """
    path = workdir / FILE
    if not path.is_file() or any(of_split.filename is None for of_split in records.values()):
        return ""
    with reading(path, "remove the file to train or evaluate without the list"):
        text = gzip.decompress(path.read_bytes()).decode(**_UTF8)
        header, *rows = csv.reader(io.StringIO(text, newline=""))
        before = _by_path(rows)
    now = _by_path(_rows(records))
    new, gone = now.keys() - before.keys(), before.keys() - now.keys()
    changed = {
        f"{path}, other {_first_difference(header[1:], before[path], now[path])}"
        for path in now.keys() & before.keys()
        if now[path] != before[path]
    }
    if not (new or gone or changed):
        return "the same files in another order or with other pixels"
    found = {"new": new, "gone": gone, "changed": changed}
    return ", ".join(f"{len(which)} {word}" + (f" ({min(which)})" if which else "") for word, which in found.items())


def _rows(records: Mapping[str, Records]) -> Iterator[list[str]]:
    for split, of_split in records.items():
        assert of_split.filename is not None
        names = zip(*(_class_names(level, len(of_split)) for level in of_split.levels.values()), strict=True)
        folder = os.path.join(of_split.root, "")
        for file, classes in zip(of_split.filename.tolist(), names, strict=True):
            path = file[len(folder) :] if file.startswith(folder) else file
            yield [path, split, _size(file), *classes]


def _class_names(level: Level, number: int) -> Iterable[str]:
    return itertools.repeat("", number) if level.label is None else np.array(level.names)[level.label].tolist()


def _size(file: str) -> str:
    try:
        return str(os.stat(file).st_size)
    except OSError:
        return ""


def _by_path(rows: Iterable[Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Returns path -> the other columns, repeated for an image that is in several splits."""
    found: dict[str, tuple[str, ...]] = {}
    for path, *columns in rows:
        found[path] = found.get(path, ()) + tuple(columns)
    return found


def _first_difference(columns: Sequence[str], before: Sequence[str], now: Sequence[str]) -> str:
    pairs = zip(itertools.cycle(columns), before, now, strict=False)
    return next((column for column, a, b in pairs if a != b), "splits")
