"""Label hierarchies: consistency checks, class selection and renumbering."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from grafit_jax.data.records import Level, Records
from grafit_jax.errors import UserError, did_you_mean

# The names of the two standard levels' labels in files.
KEYS = {"coarse": "coarse_label", "fine": "label"}
# A larger label is a mistake (an id, a hash), and every number below it gets a generated name.
_MAX_LABEL = 2**20


def check_nested(splits: Sequence[Mapping[str, Level]]) -> None:
    """Checks that each class of a level lies in one class of the next coarser level, over all splits.

    Args:
      splits: the levels of each split, from coarse to fine; a level's labels are all known or all unknown.

    Raises:
      UserError: a class has images in two coarser classes.
    """
    for coarse, fine in itertools.pairwise(splits[0]):
        pairs = [(levels[fine].label, levels[coarse].label) for levels in splits]
        known = [pair for pair in pairs if all(label is not None for label in pair)]
        if not known:
            continue
        label, coarse_label = (np.concatenate(labels) for labels in zip(*known, strict=True))
        parent = np.zeros(np.max(label) + 1, np.int32)
        parent[label] = coarse_label
        strays = label[parent[label] != coarse_label]
        if len(strays):
            under = np.unique(coarse_label[label == strays[0]])
            raise UserError(
                f"found {fine} label {strays[0]} under {coarse} labels {under[0]} and {under[1]}; expected one "
                f"{coarse} label for every {fine} label; correct the labels."
            )


def check_level(level: str, known: Sequence[str], coarse: str, where: str) -> None:
    """Raises a UserError if `level` is unknown; an empty one is valid."""
    if level and level not in known:
        raise UserError(
            f"{where}: found data.train_level = {level!r}; expected {' or '.join(known)}, or empty for {coarse}."
        )


def ancestors(records: Records, level: str, where: str) -> np.ndarray:
    """Returns the class at a level, int32 [C], of each class of the training level; -1 for a class without images.

    Raises:
      UserError: the level is unknown, or finer than the training level.
    """
    known = [name for name, of in records.levels.items() if of.label is not None]
    coarser = known[: known.index(records.train_level) + 1]
    if level not in coarser:
        raise UserError(
            f"found {where} = {level!r}; expected data.train_level, {records.train_level}, or a coarser level, one of "
            f"{', '.join(coarser)}."
        )
    found = np.full(len(records.train_names), -1, np.int32)
    label = records.levels[level].label
    assert label is not None
    found[records.train_label] = label
    return found


def check_trainable(records: Records, *, neighbours: bool) -> None:
    """Checks that a training split has enough images.

    Raises:
      UserError: it has fewer than two images or, with `neighbours` (the k-NN loss), a class with a single image, which
        can never have a positive.
    """
    if len(records) < 2:
        raise UserError(
            f"found {len(records)} training images; expected at least 2; check data.source, data.coarse_classes and "
            "data.holdout."
        )
    single = np.flatnonzero(np.bincount(records.train_label) == 1)
    if neighbours and len(single):
        others = f" and of {len(single) - 1} other classes" if len(single) > 1 else ""
        raise UserError(
            f"found a single training image of class {single[0]} ({records.train_names[single[0]]}){others}; "
            "expected at least 2 for the k-NN loss; add images or leave the class out (data.coarse_classes)."
        )


def numbers(coarse_classes: Sequence[int | str], coarse_names: Sequence[str]) -> list[int]:
    """Returns the numbers of a selection of coarse classes, which are given by number or name.

    Raises:
      UserError: a class is repeated or does not exist.
    """
    found = []
    for given in coarse_classes:
        if not isinstance(given, int | str):
            raise UserError(f"coarse_classes: found {given!r}; expected numbers or names of classes.")
        if isinstance(given, str) and given not in coarse_names:
            hint = did_you_mean(given, coarse_names)
            raise UserError(
                f"coarse_classes: found {given!r}{hint}; expected names such as {coarse_names[0]}, or numbers from 0 "
                f"to {len(coarse_names) - 1}."
            )
        found.append(coarse_names.index(given) if isinstance(given, str) else given)
        if not 0 <= found[-1] < len(coarse_names):
            raise UserError(f"coarse_classes: found {given}; expected numbers from 0 to {len(coarse_names) - 1}.")
    if len({*found}) != len(found):
        raise UserError(f"found a class twice in coarse_classes = {tuple(coarse_classes)}; expected each class once.")
    return found


def select(splits: Mapping[str, Records], coarse_classes: Sequence[int | str]) -> dict[str, Records]:
    """Returns the images of the selected coarse classes, in their original order.

    Renumbers the classes of every level from 0, in ascending order of their old numbers and alike in all splits. Drops
    the classes that have no image left in any split. Names are kept.

    Args:
      splits: the records of each split, by name; the classes are those of `train_level`.
      coarse_classes: the numbers or names of the coarse classes to keep, in any order.

    Raises:
      UserError: a class is repeated, does not exist or has no image in a split.
    """
    kept = {}
    for split, records in splits.items():
        chosen = numbers(coarse_classes, records.train_names)
        for number in sorted(chosen):
            if not np.any(records.train_label == number):
                raise UserError(
                    f"found no image of coarse class {number} ({records.train_names[number]}) among the {len(records)} "
                    f"of split {split}; remove it from coarse_classes."
                )
        kept[split] = records.take(np.isin(records.train_label, chosen))
    return renumber(kept)


def renumber(splits: Mapping[str, Records]) -> dict[str, Records]:
    """Drops the classes without an image in any split and renumbers the others from 0, in their order."""
    present = {}
    for name in next(iter(splits.values())).levels:
        labels = [r.levels[name].label for r in splits.values()]
        present[name] = np.unique(np.concatenate([np.zeros(0, np.int32), *(x for x in labels if x is not None)]))

    def renumbered(name: str, level: Level) -> Level:
        names = tuple(level.names[c] for c in present[name])
        label = level.label
        label = None if label is None else np.searchsorted(present[name], label).astype(np.int32)
        return level._replace(label=label, names=names)

    return {split: records.relabel(renumbered) for split, records in splits.items()}


def records_of(
    columns: Mapping[str, Mapping[str, Any]], names: Mapping[str, tuple[str, ...]], coarse: str, where: str
) -> dict[str, Records]:
    """Returns the records of every split, from its columns "image" and one per level; unnamed classes get numbers."""
    named = {
        level: of_level or _numbers([c[level] for c in columns.values() if level in c], f"{where}: {key(level)}")
        for level, of_level in names.items()
    }
    return {
        split: Records(c["image"], {level: Level(c.get(level), named[level]) for level in named}, coarse)
        for split, c in columns.items()
    }


def key(level: str) -> str:
    """Returns the name of a level's labels in files."""
    return KEYS.get(level, level)


def _numbers(labels: list[np.ndarray], what: str) -> tuple[str, ...]:
    high = max((int(a.max()) for a in labels if a.dtype.kind in "iu" and a.size), default=-1)
    if high >= _MAX_LABEL:
        raise UserError(f"{what}: found label {high}; expected labels below {_MAX_LABEL}; number the classes from 0.")
    return tuple(str(i) for i in range(high + 1))
