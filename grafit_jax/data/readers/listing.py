"""Lists images and their classes from a folder tree or a CSV; see docs/own_images.md."""

import csv
import dataclasses
import functools
import os
import pathlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

from grafit_jax.data.files import LONGEST
from grafit_jax.data.readers import decode
from grafit_jax.errors import UserError, reading, warn

# The names of splits in folders and CSVs; the first of several test splits is used.
SPLIT_OF = {"train": "train", "test": "test", "val": "test", "validation": "test"}
TEST_SPLITS = tuple(name for name, split in SPLIT_OF.items() if split == "test")
# Maps the names of the splits found, and their description in messages, to {split: name}.
_Splits = Callable[[Iterable[str], str], dict[str, str]]
# The levels of folders, and of a CSV with a column coarse. A folder tree of more levels has others between them.
LEVELS = ("coarse", "fine")
# Columns of a CSV that are no levels, and names that the names of metrics give another meaning.
_NO_LEVELS = ("path", "split", "similarity")
_TAKEN = ("trunk", "projector", "concat", "gallery", "within", "cluster", "label", "id", "filename")
# What programs write into a CSV for a missing value.
_MISSING = ("nan", "na", "n/a", "none", "null")


@dataclasses.dataclass(frozen=True)
class Example:
    """A listed image: its file, and the names of its classes from coarse to fine, as far as they are known."""

    file: str
    classes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Listing:
    """The images of a data set.

    Attributes:
      levels: the names of its levels, from coarse to fine.
      splits: the images of "train" and "test". All images of a split have their classes at the same number of levels.
    """

    levels: tuple[str, ...]
    splits: dict[str, list[Example]]


def list_images(kind: str, path: pathlib.Path, *, test_split: str = "", need_test: bool = True) -> Listing:
    """Lists the images of "train" and "test".

    A class without finer classes, where others of its split have some, is its own finer class.

    Args:
      kind: "folder" for DIR/<split>/<coarse>/[<fine>/], or folders of more levels, sorted by class and file name; or
        "csv" for rows with the columns path, split, coarse and, if fine classes are known, fine, in the order of the
        file. Without a column coarse, all other columns are levels, from coarse to fine.
      path: the absolute path of the folder or the CSV.
      test_split: the name of the test split, one of `TEST_SPLITS`; empty for the first one present.
      need_test: whether a test split is required; otherwise "test" may be absent from the result.

    Raises:
      UserError: the layout or the CSV is not as described.
    """
    where = f"{kind}:{path}"
    splits = functools.partial(_find_splits, where=where, test_split=test_split, need_test=need_test)
    levels, listed = _list_folder(path, splits) if kind == "folder" else _list_csv(path, splits)
    for split, examples in listed.items():
        if not examples:
            raise UserError(f"{where}: found no image for {split}; expected at least one.")
    _check_divided(listed, where)
    listed = {split: _completed(examples, f"{where}, split {split}") for split, examples in listed.items()}
    _warn(listed, where)
    return Listing(levels, listed)


def _check_divided(listed: dict[str, list[Example]], where: str) -> None:
    """Raises a UserError if a class has finer ones in a split, but is its own finer class in another one."""
    divided = {split: _divided(examples) for split, examples in listed.items()}
    for split, examples in listed.items():
        deepest = max(len(e.classes) for e in examples)
        own = {e.classes: e.file for e in examples if len(e.classes) < deepest}
        for other in listed.keys() - {split}:
            for classes in sorted(own.keys() & divided[other].keys()):
                raise UserError(
                    f"{where}: found a finer class of {'/'.join(classes)} in {other} ({divided[other][classes]}) but "
                    f"none in {split} ({own[classes]}), where other classes have some; expected both or neither."
                )


def _divided(examples: list[Example]) -> dict[tuple[str, ...], str]:
    """Returns the classes that have finer ones, each with the file of such an image."""
    return {e.classes[:depth]: e.file for e in examples for depth in range(1, len(e.classes))}


def _completed(examples: list[Example], where: str) -> list[Example]:
    """Returns the examples with equally many classes, by `completed`.

    Raises:
      UserError: some images of a class have a finer class, others do not.
    """
    divided = _divided(examples)
    deepest = max(len(e.classes) for e in examples)
    for e in examples:
        if e.classes in divided:
            raise UserError(
                f"{where}: found a finer class of {'/'.join(e.classes)} for {divided[e.classes]} but none for "
                f"{e.file}; expected one for every image of a class or for none."
            )
    return [dataclasses.replace(e, classes=completed(e.classes, deepest)) for e in examples]


def completed(classes: tuple[str, ...], levels: int) -> tuple[str, ...]:
    """Returns the classes of an image at so many levels: one without a finer class is its own."""
    return classes + classes[-1:] * (levels - len(classes))


def _warn(listed: dict[str, list[Example]], where: str) -> None:
    """Prints warnings on the listed images as a whole."""
    train, test = ({e.classes[0] for e in listed.get(split, ())} for split in ("train", "test"))
    if only := sorted(test - train):
        warn(f"{where}: found {len(only)} coarse classes in test but not in train, such as {only[0]}")
    if len(train) == 1:
        warn(
            f"{where}: found a single coarse class ({min(train)}) in train; its label carries no information; use the "
            "instance loss only (method byol)"
        )
    shared = {e.file for e in listed["train"]} & {e.file for e in listed.get("test", ())}
    if shared:
        warn(f"{where}: found {len(shared)} images in both splits, such as {min(shared)}; their results mean little")


def _find_splits(names: Iterable[str], found: str, *, where: str, test_split: str, need_test: bool) -> dict[str, str]:
    """Maps each split to its name among `names`, which messages call `found`; raises UserError if one is missing."""
    accepted = {"train": ["train"], "test": [test_split] if test_split else TEST_SPLITS}
    by_split = {}
    for split, choice in accepted.items():
        present = [name for name in choice if name in names]
        if present:
            by_split[split] = present[0]
        elif split == "train" or test_split or need_test:
            remedy = "" if split == "train" or test_split else "; or use data.holdout to test on a share of train"
            raise UserError(f"{where}: found {found}; expected a {split} split, called {' or '.join(choice)}{remedy}.")
    ignored = [name for name in names if name not in by_split.values()]
    if ignored:
        used, others = by_split["test"], ", ".join(ignored)
        warn(f"{where}: found test split {used}; ignored: {others}; use data.test_split={ignored[0]} to change it")
    return by_split


# Folders.


def walk(root: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields the image files below a folder, sorted by folder and file name, each with the names of its folders.

    Follows links, except to a parent folder, and warns of ignored entries.

    Raises:
      UserError: a folder that cannot be read.
    """
    found = Walk()
    yield from found.below(root)
    found.warn_of_ignored(root)


def _list_folder(root: pathlib.Path, splits: _Splits) -> tuple[tuple[str, ...], dict[str, list[Example]]]:
    """Lists the levels and images of DIR/<split>/<coarse>/[<fine>/], sorted by class and file name."""
    if not os.path.isdir(root):
        raise UserError(f"folder:{root}: found no such folder; expected one with train/ and test/.")
    tree = Walk()
    folders, _ = tree.entries(str(root), ())
    found = {name: path for name, path in folders if name in SPLIT_OF}
    by_split = splits(found, f"the folders {', '.join(n for n, _ in folders)}" if folders else "no folders")
    ancestors = (os.path.realpath(root),)
    listed = {split: [*tree.examples(found[name], split, (), ancestors)] for split, name in by_split.items()}
    tree.warn_of_ignored(f"folder:{root}")
    if tree.empty:
        warn(f"folder:{root}: found {len(tree.empty)} folders without images, such as {tree.empty[0]}")
    deepest = max((len(e.classes) for examples in listed.values() for e in examples), default=0)
    coarse, fine = LEVELS
    return (coarse, *(f"level{n}" for n in range(2, deepest)), fine), listed


class Walk:
    """Walks a folder tree and collects the ignored entries and the empty folders."""

    def __init__(self) -> None:
        self.ignored: list[str] = []
        self.empty: list[str] = []

    def below(
        self, folder: str, names: tuple[str, ...] = (), ancestors: tuple[str, ...] = ()
    ) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yields the image files below `folder`, each with the names of its folders; see `walk`."""
        ancestors = (*ancestors, os.path.realpath(folder))
        folders, files = self.entries(folder, ancestors)
        yield from ((file, names) for file in files)
        for name, inner in folders:
            yield from self.below(inner, (*names, name), ancestors)

    def examples(
        self, folder: str, split: str, classes: tuple[str, ...], ancestors: tuple[str, ...]
    ) -> Iterator[Example]:
        """Yields the images below `folder`, whose path from the split is `classes`."""
        ancestors = (*ancestors, os.path.realpath(folder))
        folders, files = self.entries(folder, ancestors)
        if files and not classes:
            raise UserError(
                f"{files[0]}: found an image directly in the split; expected images in {split}/<coarse>/ or "
                f"{split}/<coarse>/<fine>/; use one folder for all images if there are no labels."
            )
        if classes and not folders and not files:
            self.empty.append(folder)
        for file in files:
            yield Example(file, classes)
        for name, inner in folders:
            yield from self.examples(inner, split, (*classes, name), ancestors)

    def warn_of_ignored(self, where: str) -> None:
        if self.ignored:
            warn(
                f"{where}: ignored {len(self.ignored)} entries that are hidden, not images, or links to a parent "
                f"folder, such as {self.ignored[0]}"
            )

    def entries(self, folder: str, ancestors: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
        """Returns the (class name, path) of the subfolders of a folder, and its image files; both sorted.

        Follows links, except those to one of the `ancestors` (real paths). Ignores hidden entries and other files.
        """
        try:
            names = sorted(os.listdir(folder), key=_composed)
        except OSError as error:
            raise UserError(
                f"{folder}: found an unreadable folder ({error.strerror}); make it readable or remove it."
            ) from None
        folders, files = [], []
        for name in names:
            entry = os.path.join(folder, name)
            is_folder = os.path.isdir(entry)
            if name.startswith(".") or (is_folder and os.path.realpath(entry) in ancestors):
                self.ignored.append(entry)
            elif is_folder:
                folders.append((check_name(name, folder), entry))
            elif os.path.splitext(name)[1].lower() in decode.SUFFIXES:
                check_name(name, folder)
                files.append(entry)
            else:
                self.ignored.append(entry)
        return folders, files


def check_name(name: str, where: str) -> str:
    """Checks that a name is UTF-8, and returns it in Unicode NFC.

    Classes from macOS, which decomposes accents, thus compare equal.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: found the name {name!a}; expected UTF-8; rename it.") from None
    return _composed(name)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


# CSV files.


def _list_csv(path: pathlib.Path, splits: _Splits) -> tuple[tuple[str, ...], dict[str, list[Example]]]:
    """Lists the levels and images of a CSV with the columns path and split, in their order; see `levels_of`."""
    rows = read_csv(path, ("path", "split"), LEVELS)
    levels = levels_of(rows, path)
    names = dict.fromkeys(row["split"] for _, row in rows)
    for line, row in rows:
        if row["split"] not in SPLIT_OF:
            raise UserError(
                f"{path}, line {line}: found split {row['split']!r}; expected one of {', '.join(SPLIT_OF)}."
            )
    by_split = splits(names, f"the splits {', '.join(names)}" if names else "no splits")
    split_called = {name: split for split, name in by_split.items()}
    listed: dict[str, list[Example]] = {split: [] for split in by_split}
    first: dict[tuple[str, str], int] = {}
    missing: list[int] = []
    for line, row in rows:
        if not row["path"]:
            raise UserError(f"{path}, line {line}: found no path; expected one for every image.")
        if row["split"] not in split_called:
            continue
        split, file = split_called[row["split"]], os.path.normpath(path.parent / row["path"])
        if (split, file) in first:
            raise UserError(
                f"{path}, line {line}: found {row['path']} again, first in line {first[split, file]}; expected each "
                "image once per split, or it is its own nearest neighbour; remove one line."
            )
        first[split, file] = line
        classes = [check_name(row.get(level, ""), str(path)) for level in levels]
        known = sum(map(bool, classes))
        if not all(classes[: max(1, known)]):
            level = levels[classes.index("")]
            raise UserError(f"{path}, line {line}: found no {level}; expected one for every image.")
        listed[split].append(Example(file, tuple(classes[:known])))
        missing += [line for name in classes if name.lower() in _MISSING]
    if missing:
        warn(
            f"{path}: found {len(missing)} labels named {' or '.join(_MISSING)}, first in line {missing[0]}; they are "
            "used as classes; if they mean missing values, remove these images, or leave the finer classes empty"
        )
    return levels, listed


def level_columns(columns: Iterable[str]) -> tuple[str, ...]:
    """Returns the levels of a CSV: coarse and fine or, with neither, all columns but path, split and similarity."""
    columns = [*columns]
    return tuple(name for name in columns if name not in _NO_LEVELS) if {*LEVELS}.isdisjoint(columns) else LEVELS


def levels_of(rows: Sequence[tuple[int, dict[str, str]]], path: pathlib.Path) -> tuple[str, ...]:
    """Returns the levels of a CSV from the rows of `read_csv`, from coarse to fine.

    They are those of `level_columns`.

    Raises:
      UserError: no column of a level, or one whose name metrics cannot have.
    """
    columns = [*rows[0][1]] if rows else [*LEVELS]
    levels = level_columns(columns)
    if not levels:
        raise UserError(
            f"{path}: found the columns {', '.join(columns)}; expected also coarse and, if known, fine, or a column "
            "for each level, from coarse to fine."
        )
    if levels == LEVELS:
        if LEVELS[0] not in columns:
            raise UserError(
                f"{path}: found a column fine but none called coarse; expected both; rename the coarser column."
            )
        return levels
    warn(f"{path}: found no column coarse; used as levels, from coarse to fine: {', '.join(levels)}")
    for name in levels:
        if not re.fullmatch(r"[\w -]+", name) or name in _TAKEN:
            raise UserError(
                f"{path}: found a level called {name!r}; expected letters and digits, and none of {', '.join(_TAKEN)}; "
                "rename the column, such as to coarse."
            )
    return levels


def read_csv(path: pathlib.Path, required: Sequence[str], optional: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Returns (line number, {column: text}) of every row, with the columns in their order.

    Args:
      path: the CSV.
      required: columns that it must have.
      optional: further columns, named in messages.

    Raises:
      UserError: no CSV in UTF-8 with commas, a missing column, or a row of another length than the header.
    """
    if os.path.isdir(path):
        raise UserError(f"{path}: found a folder; expected csv:FILE; use folder:DIR for folders of images.")
    with (
        reading(path, "expected csv:FILE, a CSV in UTF-8"),
        open(path, newline="", encoding="utf-8-sig") as file,  # spreadsheets write a byte-order mark
    ):
        reader = csv.reader(file)
        header = [name.strip() for name in next(reader, [])]
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    missing = [name for name in required if name not in header]
    if missing and len(header) == 1 and (other := next((c for c in ";\t|" if c in header[0]), None)):
        raise UserError(f"{path}: found columns separated by {other!r}; expected commas; save it with commas.")
    if missing or len(set(header)) < len(header):
        raise UserError(
            f"{path}: found the columns {', '.join(map(repr, header)) or 'none'}; expected {', '.join(required)} and, "
            f"if known, {', '.join(optional)}, each once and separated by commas."
        )
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(f"{path}, line {line}: found {len(row)} values; expected {len(header)}, as in line 1.")
        for cell in row:
            if len(cell) > LONGEST or "\0" in cell:
                raise UserError(
                    f"{path}, line {line}: found a value of {len(cell)} characters ({cell[:20]!r} ...); expected at "
                    f"most {LONGEST} and no NUL."
                )
    return [(line, dict(zip(header, row, strict=True))) for line, row in rows]
