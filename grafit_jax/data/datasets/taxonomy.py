"""The taxonomy in iNaturalist's categories.json: the genus, family, ... and kingdom of each species."""

import collections
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from grafit_jax.data.files import read_json
from grafit_jax.errors import UserError, warn

# From coarse to fine. These are the keys of categories.json, except that the species is `name`.
LEVELS = ("kingdom", "phylum", "class", "order", "family", "genus", "species")
FILE = "categories.json"
# The number of classes of each level: docs/paper.md section 5.
PUBLISHED_2018 = dict(zip(LEVELS, (6, 25, 57, 273, 1120, 4412, 8142), strict=True))
PUBLISHED_2019 = dict(zip(LEVELS, (3, 4, 9, 34, 57, 72, 1010), strict=True))
_KEYS: Mapping[str, Any] = {"id": int, "name": str} | dict.fromkeys(LEVELS[:-1], str | None)


class Classes(NamedTuple):
    """The classes of a level.

    Attributes:
      of_fine: the class of each of the F finest classes, int32 [F].
      names: the names of the classes.
    """

    of_fine: np.ndarray
    names: tuple[str, ...]


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the categories of a file, sorted by id.

    Raises:
      UserError: the file is missing or malformed, or an id or a species occurs twice.
    """
    expected = f"expected iNaturalist's {FILE} with real names: a list of {{id, name, {', '.join(LEVELS[:-1])}}}"
    categories = read_json(path, list, expected)
    if not categories:
        raise UserError(f"{path}: found no category; {expected}.")
    for position, category in enumerate(categories):
        keys = category.keys() if isinstance(category, dict) else ()
        for key, kind in _KEYS.items():
            if key not in keys:
                raise UserError(f"{path}: found no {key} in category {position}; {expected}.")
            if not isinstance(category[key], kind):
                raise UserError(f"{path}: found {key} = {category[key]!r} in category {position}; {expected}.")
    for key in ("id", "name"):
        value, count = collections.Counter(category[key] for category in categories).most_common(1)[0]
        if count > 1:
            raise UserError(f"{path}: found the {key} {value} {count} times; expected each once.")
    return sorted(categories, key=lambda category: category["id"])


def classes(categories: Sequence[Mapping[str, Any]]) -> dict[str, Classes]:
    """Returns the classes of every level, from coarse to fine; the finest are the categories in the given order.

    A class is identified by its path from the kingdom, because a genus of birds and one of plants may share a name;
    such a name is followed by the next coarser one in brackets. Classes are numbered in the order of their paths.
    """
    lineages = [tuple(category[level] or "unnamed" for level in LEVELS[:-1]) for category in categories]
    found = {}
    for depth, level in enumerate(LEVELS[:-1], start=1):
        paths = sorted({lineage[:depth] for lineage in lineages})
        number = {path: i for i, path in enumerate(paths)}
        of_fine = np.array([number[lineage[:depth]] for lineage in lineages], np.int32)
        found[level] = Classes(of_fine, _names(paths))
    species = tuple(category["name"] for category in categories)
    return found | {LEVELS[-1]: Classes(np.arange(len(species), dtype=np.int32), species)}


def _names(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Returns the shortest unique suffix of each path, such as "Morus (Moraceae)" or "Aves"."""
    names = [""] * len(paths)
    for length in range(1, len(paths[0]) + 1):
        ends = [path[-length:] for path in paths]
        counts = collections.Counter(ends)
        for i, end in enumerate(ends):
            if not names[i] and counts[end] == 1:
                names[i] = end[-1] + (f" ({', '.join(reversed(end[:-1]))})" if length > 1 else "")
    return tuple(names)


def of_labels(path: pathlib.Path, label_names: Sequence[str], where: str) -> dict[str, Classes]:
    """Returns the classes of the levels above the species `label_names`.

    Raises:
      UserError: as `read`, or the file lacks a species.
    """
    categories = {category["name"]: category for category in read(path)}
    missing = [name for name in label_names if name not in categories]
    if missing:
        raise UserError(
            f"{path}: found no category for {len(missing)} of the {len(label_names)} species of {where}, such as "
            f"{missing[0]}; expected the {FILE} of that data set."
        )
    found = classes([categories[name] for name in label_names])
    return {level: found[level] for level in LEVELS[:-1]}


def check_counts(found: Mapping[str, Classes], published: Mapping[str, int], where: str) -> None:
    """Prints a warning if the number of classes of a level is not the published one."""
    differing = [
        f"{len(found[level].names)} classes of {level} (published: {published[level]})"
        for level in found
        if len(found[level].names) != published[level]
    ]
    if differing:
        warn(f"{where}: found {', '.join(differing)}; results are not comparable with published ones.")
