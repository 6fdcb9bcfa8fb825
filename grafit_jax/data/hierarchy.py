"""The levels of labels: which fine class lies in which coarse one, and what can be trained on."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from grafit_jax.data.records import Level, Records
from grafit_jax.errors import UserError

# What the labels of the two ordinary levels are called in files.
KEYS = {"coarse": "coarse_label", "fine": "label"}
# A larger label is a mistake (an id, a hash), and a name is made up for every number below it.
_MAX_LABEL = 2**20


def check_nested(splits: Sequence[Mapping[str, Level]]) -> None:
    """Checks that a class of one level lies in one class of the next coarser one, in all splits together.

    Args:
      splits: the levels of each split, from coarse to fine, with a label for every image or none.

    Raises:
      UserError: a class has images of two coarser ones.
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
                f"{fine} label {strays[0]} occurs under {coarse} labels {under[0]} and {under[1]}: want one {coarse} "
                f"label for every {fine} one; correct the labels."
            )


def check_level(level: str, known: Sequence[str], coarse: str, where: str) -> None:
    """Raises a UserError for a level that is asked for (not empty) and not among the known ones."""
    if level and level not in known:
        raise UserError(
            f"data.train_level = {level!r} is no level of {where}: want {' or '.join(known)}, or leave it empty for "
            f"{coarse}."
        )


def check_trainable(records: Records, *, neighbours: bool) -> None:
    """Checks that there is something to learn from.

    Raises:
      UserError: fewer than two images, or, where `neighbours` are learned from (the k-NN loss), a coarse class with a
        single image, which can never have a positive.
    """
    if len(records) < 2:
        raise UserError(
            f"the training split holds {len(records)} images, want at least 2: look at data.source, "
            "data.coarse_classes and data.holdout."
        )
    alone = np.flatnonzero(np.bincount(records.train_label) == 1)
    if neighbours and len(alone):
        others = f", and so have {len(alone) - 1} others" if len(alone) > 1 else ""
        raise UserError(
            f"coarse label {alone[0]} ({records.train_names[alone[0]]}) has a single training image{others}, want at "
            "least 2 for the k-NN loss: add images or leave the class out (data.coarse_classes)."
        )


def check_classes(coarse_classes: Sequence[int], coarse_names: Sequence[str]) -> None:
    """Checks a choice of coarse classes by their numbers.

    Raises:
      UserError: what is no number, a class that is given twice or that does not exist.
    """
    if not all(isinstance(number, int) for number in coarse_classes):
        raise UserError(
            f"coarse_classes = {tuple(coarse_classes)}: want the numbers of classes, from 0 ({coarse_names[0]}) to "
            f"{len(coarse_names) - 1} ({coarse_names[-1]})."
        )
    if len(set(coarse_classes)) != len(coarse_classes):
        raise UserError(f"coarse_classes = {tuple(coarse_classes)} names a class twice: want each of them once.")
    for number in coarse_classes:
        if not 0 <= number < len(coarse_names):
            raise UserError(
                f"coarse class {number} is not there: want numbers from 0 to {len(coarse_names) - 1} in coarse_classes."
            )


def select(splits: Mapping[str, Records], coarse_classes: Sequence[int]) -> dict[str, Records]:
    """The images of some coarse classes, in their order.

    The classes of all levels are renumbered from 0 in ascending order of their old numbers, whatever the order of
    `coarse_classes`, alike in all splits, and keep their names. Classes of which no split has an image left go.

    Args:
      splits: by name. Their classes are those of the level that is trained on.
      coarse_classes: numbers of the coarse classes to keep.

    Raises:
      UserError: a class that is given twice, that does not exist or that has no image in a split.
    """
    kept = {}
    for split, records in splits.items():
        check_classes(coarse_classes, records.train_names)
        for number in sorted(coarse_classes):
            if not np.any(records.train_label == number):
                raise UserError(
                    f"coarse class {number} ({records.train_names[number]}) has no image in a split of "
                    f"{len(records)}: leave it out of coarse_classes."
                )
        kept[split] = records.take(np.isin(records.train_label, coarse_classes))
    return renumber(kept)


def renumber(splits: Mapping[str, Records]) -> dict[str, Records]:
    """Drops the classes without an image in any split; the others of a level are numbered from 0, in their order."""
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
    """Records of the image and the labels of the levels of every split; numbers serve as names where there are none."""
    named = {
        level: of_level or _numbers([c[level] for c in columns.values() if level in c], f"{where}: {key(level)}")
        for level, of_level in names.items()
    }
    return {
        split: Records(c["image"], {level: Level(c.get(level), named[level]) for level in named}, coarse)
        for split, c in columns.items()
    }


def key(level: str) -> str:
    """What the labels of a level are called in files."""
    return KEYS.get(level, level)


def _numbers(labels: list[np.ndarray], what: str) -> tuple[str, ...]:
    high = max((int(a.max()) for a in labels if a.dtype.kind in "iu" and a.size), default=-1)
    if high >= _MAX_LABEL:
        raise UserError(f"{what} goes up to {high}, want numbers below {_MAX_LABEL}: number the classes from 0.")
    return tuple(str(i) for i in range(high + 1))
