"""The tree of life in iNaturalist's categories.json: each species with its genus, family and so on to the kingdom."""

import collections
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from grafit_jax.data.files import read_json
from grafit_jax.errors import UserError, warn

# From coarse to fine; all but the last are keys of categories.json, which calls the species `name`.
LEVELS = ("kingdom", "phylum", "class", "order", "family", "genus", "species")
FILE = "categories.json"
# How many classes a level has: docs/paper.md section 5.
PUBLISHED_2018 = dict(zip(LEVELS, (6, 25, 57, 273, 1120, 4412, 8142), strict=True))
PUBLISHED_2019 = dict(zip(LEVELS, (3, 4, 9, 34, 57, 72, 1010), strict=True))
_KEYS: Mapping[str, Any] = {"id": int, "name": str} | dict.fromkeys(LEVELS[:-1], str | None)


class Classes(NamedTuple):
    """The classes of a level.

    Attributes:
      of_fine: int32 [F], the class that each class of the finest level lies in.
      names: of the classes.
    """

    of_fine: np.ndarray
    names: tuple[str, ...]


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The categories of a file, by ascending id.

    Raises:
      UserError: a file that is missing or is not such a one, or an id or a species that it holds twice.
    """
    wanted = f"want iNaturalist's {FILE} with real names: a list of {{id, name, {', '.join(LEVELS[:-1])}}}"
    categories = read_json(path, list, wanted)
    if not categories:
        raise UserError(f"{path} holds no category: {wanted}.")
    for place, category in enumerate(categories):
        keys = category.keys() if isinstance(category, dict) else ()
        for key, kind in _KEYS.items():
            if key not in keys:
                raise UserError(f"{path}: category {place} has no {key}: {wanted}.")
            if not isinstance(category[key], kind):
                raise UserError(f"{path}: category {place} has {category[key]!r} as {key}: {wanted}.")
    for key in ("id", "name"):
        value, times = collections.Counter(category[key] for category in categories).most_common(1)[0]
        if times > 1:
            raise UserError(f"{path} holds the {key} {value} {times} times: want each once.")
    return sorted(categories, key=lambda category: category["id"])


def classes(categories: Sequence[Mapping[str, Any]]) -> dict[str, Classes]:
    """The classes of every level, from coarse to fine; the finest are the categories in the given order.

    A class is told apart by its whole path from the kingdom down: a genus of birds may have the name of one of plants.
    Such a name stands with the next coarser one in brackets. Classes are numbered in the order of their paths.
    """
    lines = [tuple(category[level] or "unnamed" for level in LEVELS[:-1]) for category in categories]
    found = {}
    for depth, level in enumerate(LEVELS[:-1], start=1):
        paths = sorted({line[:depth] for line in lines})
        number = {path: i for i, path in enumerate(paths)}
        of_fine = np.array([number[line[:depth]] for line in lines], np.int32)
        found[level] = Classes(of_fine, _names(paths))
    species = tuple(category["name"] for category in categories)
    return found | {LEVELS[-1]: Classes(np.arange(len(species), dtype=np.int32), species)}


def _names(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The shortest end of each path that no other path has: "Morus (Moraceae)", or simply "Aves"."""
    names = [""] * len(paths)
    for length in range(1, len(paths[0]) + 1):
        ends = [path[-length:] for path in paths]
        often = collections.Counter(ends)
        for i, end in enumerate(ends):
            if not names[i] and often[end] == 1:
                names[i] = end[-1] + (f" ({', '.join(reversed(end[:-1]))})" if length > 1 else "")
    return tuple(names)


def of_labels(path: pathlib.Path, label_names: Sequence[str], where: str) -> dict[str, Classes]:
    """The classes above the species `label_names`, in their order.

    Raises:
      UserError: as `read`, or a species that the file has not.
    """
    categories = {category["name"]: category for category in read(path)}
    missing = [name for name in label_names if name not in categories]
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} of the {len(label_names)} species of {where}, the first is {missing[0]}: "
            f"want the {FILE} of that data set."
        )
    found = classes([categories[name] for name in label_names])
    return {level: found[level] for level in LEVELS[:-1]}


def check_counts(found: Mapping[str, Classes], published: Mapping[str, int], where: str) -> None:
    """Warns of a level with another number of classes than the published one."""
    other = [
        f"{len(found[level].names)} of {level} (published: {published[level]})"
        for level in found
        if len(found[level].names) != published[level]
    ]
    if other:
        warn(f"{where}: found {', '.join(other)}: these are not the published classes.")
