"""Which images there are, of which classes: a folder of folders, or a CSV; see docs/own_images.md."""

import csv
import dataclasses
import functools
import os
import pathlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

from grafit_jax.data.files import LONGEST
from grafit_jax.data.readers import decode
from grafit_jax.errors import UserError, reading, warn

# What a split may be called, in folders and in a CSV; of several test splits the first is taken.
_SPLIT_OF = {"train": "train", "test": "test", "val": "test", "validation": "test"}
TEST_SPLITS = tuple(name for name, split in _SPLIT_OF.items() if split == "test")
# The names of splits that there are, and what to say is there -> split -> what it is called.
_Splits = Callable[[Iterable[str], str], dict[str, str]]
# What programs write into a CSV where there is no value.
_MISSING = ("nan", "na", "n/a", "none", "null")


@dataclasses.dataclass(frozen=True)
class Example:
    """A listed image: its file, the name of its coarse class, and of its fine one, if that is known."""

    file: str
    coarse: str
    fine: str | None


def list_images(
    kind: str, path: pathlib.Path, *, test_split: str = "", need_test: bool = True
) -> dict[str, list[Example]]:
    """The images of "train" and "test".

    Args:
      kind: "folder": DIR/<split>/<coarse>/[<fine>/], sorted by class and name; or "csv": rows with the columns path,
        coarse, split and, if fine classes are known, fine, in their order.
      path: the folder or the CSV, absolute.
      test_split: what "test" is called there: one of `TEST_SPLITS`. Empty: the first of these that there is.
      need_test: whether there has to be a test split; else "test" may be missing.

    Raises:
      UserError: a layout or CSV that is not as described.
    """
    where = f"{kind}:{path}"
    splits = functools.partial(_one_of_each, where=where, test_split=test_split, need_test=need_test)
    listed = _list_folder(path, splits) if kind == "folder" else _list_csv(path, splits)
    _check(listed, where)
    return listed


def _check(listed: dict[str, list[Example]], where: str) -> None:
    """Errors and warnings about what was listed as a whole."""
    for split, examples in listed.items():
        if not examples:
            raise UserError(f"{where}: found no image for {split}: want at least one.")
        known = {e.fine is not None: e for e in examples}
        if len(known) == 2:
            raise UserError(
                f"{where}, split {split}: {known[True].file} has a fine class and {known[False].file} has none: want "
                "one for all images of a split or for none."
            )
    train, test = ({e.coarse for e in listed.get(split, ())} for split in ("train", "test"))
    if only := sorted(test - train):
        warn(f"{where}: {len(only)} coarse classes occur in test alone, such as {only[0]}: nothing is trained on them")
    if len(train) == 1:
        warn(
            f"{where}: all training images are of one coarse class ({min(train)}): its label teaches nothing, and the "
            "instance loss alone learns (method byol)"
        )
    shared = {e.file for e in listed["train"]} & {e.file for e in listed.get("test", ())}
    if shared:
        warn(f"{where}: {len(shared)} images are in both splits, such as {min(shared)}: results on them mean little")


def _one_of_each(names: Iterable[str], found: str, *, where: str, test_split: str, need_test: bool) -> dict[str, str]:
    """split -> what it is called among the `names` that are `found`; UserError where one is missing that is needed."""
    called = {"train": ["train"], "test": [test_split] if test_split else TEST_SPLITS}
    by_split = {}
    for split, choice in called.items():
        there = [name for name in choice if name in names]
        if there:
            by_split[split] = there[0]
        elif split == "train" or test_split or need_test:
            remedy = "" if split == "train" or test_split else "; or use data.holdout to test on a share of train"
            raise UserError(f"{where}: found {found}; expected a {split} split, called {' or '.join(choice)}{remedy}.")
    left_out = [name for name in names if name not in by_split.values()]
    if left_out:
        taken, others = by_split["test"], ", ".join(left_out)
        warn(f"{where}: the test split is {taken}, and {others} is left out (data.test_split={left_out[0]} takes it)")
    return by_split


# The layout of folders.


def _list_folder(root: pathlib.Path, splits: _Splits) -> dict[str, list[Example]]:
    """The images of DIR/<split>/<coarse>/[<fine>/], sorted by class and name."""
    if not os.path.isdir(root):
        raise UserError(f"folder:{root} is no folder: want one that holds train/ and test/.")
    walk = _Walk()
    folders, _ = walk.entries(str(root), ())
    found = {name: path for name, path in folders if name in _SPLIT_OF}
    by_split = splits(found, f"the folders {', '.join(n for n, _ in folders)}" if folders else "no folders")
    on_the_way = (os.path.realpath(root),)
    listed = {split: [*walk.examples(found[name], split, (), on_the_way)] for split, name in by_split.items()}
    if walk.ignored:
        warn(
            f"folder:{root}: ignored {len(walk.ignored)} entries that are hidden, no images or links to a folder above "
            f"them, such as {walk.ignored[0]}"
        )
    if walk.empty:
        warn(f"folder:{root}: {len(walk.empty)} folders hold no image, such as {walk.empty[0]}")
    return listed


class _Walk:
    """Lists folders, and what it leaves out."""

    def __init__(self) -> None:
        self.ignored: list[str] = []
        self.empty: list[str] = []

    def examples(
        self, folder: str, split: str, classes: tuple[str, ...], on_the_way: tuple[str, ...]
    ) -> Iterator[Example]:
        """The images below a folder of a split, that of the `classes` (coarse, fine)."""
        on_the_way = (*on_the_way, os.path.realpath(folder))
        folders, files = self.entries(folder, on_the_way)
        if files and not classes:
            raise UserError(
                f"{files[0]} lies directly in the split: want images in {split}/<coarse>/ or {split}/<coarse>/<fine>/ "
                "(without labels: all of them in one folder)."
            )
        if folders and len(classes) == 2:
            raise UserError(
                f"{folders[0][1]} is a folder inside of a fine class: want {split}/<coarse>/<fine>/ and "
                "images in it; move them up."
            )
        if classes and not folders and not files:
            self.empty.append(folder)
        for file in files:
            yield Example(file, classes[0], classes[1] if len(classes) == 2 else None)
        for name, inner in folders:
            yield from self.examples(inner, split, (*classes, name), on_the_way)

    def entries(self, folder: str, on_the_way: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
        """(class name, folder) of the folders in a folder, and its image files; both sorted, links followed.

        `on_the_way` are the real folders on the way here: one that links back to them is left out, as are hidden
        entries and files that are no images.
        """
        try:
            names = sorted(os.listdir(folder), key=_composed)
        except OSError as error:
            raise UserError(f"cannot list {folder} ({error.strerror}): let it be read, or remove it.") from None
        folders, files = [], []
        for name in names:
            entry = os.path.join(folder, name)
            is_folder = os.path.isdir(entry)
            if name.startswith(".") or (is_folder and os.path.realpath(entry) in on_the_way):
                self.ignored.append(entry)
            elif is_folder:
                folders.append((_class_name(name, folder), entry))
            elif os.path.splitext(name)[1].lower() in decode.SUFFIXES:
                _class_name(name, folder)
                files.append(entry)
            else:
                self.ignored.append(entry)
        return folders, files


def _class_name(name: str, where: str) -> str:
    """A name with its accents composed: macOS writes them decomposed, and a class is one class on both."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where} holds {name!a}, whose name is not UTF-8: rename it.") from None
    return _composed(name)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


# The CSV.


def _list_csv(path: pathlib.Path, splits: _Splits) -> dict[str, list[Example]]:
    """The images of a CSV with the columns path, coarse, split and, if fine labels are known, fine; in its order."""
    rows = _read_csv(path)
    names = dict.fromkeys(row["split"] for _, row in rows)
    for line, row in rows:
        if row["split"] not in _SPLIT_OF:
            raise UserError(f"{path}, line {line}: split is {row['split']!r}: want one of {', '.join(_SPLIT_OF)}.")
    by_split = splits(names, f"the splits {', '.join(names)}" if names else "no splits")
    split_called = {name: split for split, name in by_split.items()}
    listed: dict[str, list[Example]] = {split: [] for split in by_split}
    first: dict[tuple[str, str], int] = {}
    missing: list[int] = []
    for line, row in rows:
        for key in ("path", "coarse"):
            if not row[key]:
                raise UserError(f"{path}, line {line}: {key} is empty: want one for every image.")
        if row["split"] not in split_called:
            continue
        split, file = split_called[row["split"]], os.path.normpath(path.parent / row["path"])
        if (split, file) in first:
            raise UserError(
                f"{path}, line {line}: {row['path']} stands in line {first[split, file]} already: list an image once "
                "in a split, since it would be its own nearest neighbour."
            )
        first[split, file] = line
        coarse, fine = (_class_name(row[key], str(path)) for key in ("coarse", "fine"))
        listed[split].append(Example(file, coarse, fine or None))
        missing += [line for name in (coarse, fine) if name.lower() in _MISSING]
    if missing:
        warn(
            f"{path}: {len(missing)} labels are called {' or '.join(_MISSING)}, the first in line {missing[0]}: they "
            "are classes like any other; if they stand for what is not known, leave these images out, or fine empty "
            "for all"
        )
    return listed


def _read_csv(path: pathlib.Path) -> list[tuple[int, dict[str, str]]]:
    """(line number, column -> text) of every row; a missing column `fine` is empty."""
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder: want csv:FILE, or folder:DIR for folders of images.")
    with (
        reading(path, "want csv:FILE, a CSV in UTF-8"),
        open(path, newline="", encoding="utf-8-sig") as file,  # spreadsheets write a byte-order mark
    ):
        reader = csv.reader(file)
        header = [name.strip() for name in next(reader, [])]
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    missing = [name for name in ("path", "coarse", "split") if name not in header]
    if missing and len(header) == 1 and (other := next((c for c in ";\t|" if c in header[0]), None)):
        raise UserError(f"{path} has {other!r} between its columns: want commas; save it as a CSV with commas.")
    if missing or len(set(header)) < len(header):
        raise UserError(
            f"{path} has the columns {', '.join(map(repr, header)) or 'none'}: want path, coarse, split and, if fine "
            "classes are known, fine, each once, with commas between them."
        )
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(f"{path}, line {line} has {len(row)} values: want {len(header)}, as the first line has.")
        for cell in row:
            if len(cell) > LONGEST or "\0" in cell:
                raise UserError(
                    f"{path}, line {line} has a value of {len(cell)} characters, {cell[:20]!r} and so on: want at most "
                    f"{LONGEST}, and no NUL among them."
                )
    return [(line, {"fine": ""} | dict(zip(header, row, strict=True))) for line, row in rows]
