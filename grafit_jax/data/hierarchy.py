"""The two levels of labels: which fine class lies in which coarse one, and what can be trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from grafit_jax.errors import UserError

if TYPE_CHECKING:  # sources imports this module
    from grafit_jax.data.sources import Records


def fine_to_coarse(label: np.ndarray, coarse_label: np.ndarray) -> np.ndarray:
    """The coarse class of every fine class, as the images show it.

    Args:
      label: int [N] fine labels, from 0.
      coarse_label: int [N] coarse labels, from 0.

    Returns:
      int32 [max(label) + 1]; -1 for a number that no image has.

    Raises:
      UserError: the arrays differ in length, or a fine class has images of two coarse classes.
    """
    if len(label) != len(coarse_label):
        raise UserError(f"{len(label)} fine and {len(coarse_label)} coarse labels: give one of each for every image.")
    parent = np.full(int(np.max(label, initial=-1)) + 1, -1, np.int32)
    parent[label] = coarse_label
    strays = np.flatnonzero(parent[label] != coarse_label)
    if len(strays):
        fine = int(label[strays[0]])
        under = np.unique(coarse_label[label == fine])
        raise UserError(
            f"fine label {fine} occurs under coarse labels {under[0]} and {under[1]}: want one coarse label for every "
            "fine one; correct the labels."
        )
    return parent


def check_trainable(records: Records) -> None:
    """Checks that the k-NN loss and the classifier have something to learn from.

    Raises:
      UserError: fewer than two images, or a coarse class with a single image, which can never have a
        positive.
    """
    if len(records) < 2:
        raise UserError(
            f"the training split holds {len(records)} images, want at least 2: look at data.source, "
            "data.coarse_classes and data.holdout."
        )
    for number in np.flatnonzero(np.bincount(records.coarse_label) == 1):
        raise UserError(
            f"coarse label {number} ({records.coarse_names[number]}) has a single training image, want at least 2: "
            "add images or leave the class out (data.coarse_classes)."
        )


def check_classes(coarse_classes: Sequence[int], coarse_names: Sequence[str]) -> None:
    """Checks a choice of coarse classes by their numbers.

    Raises:
      UserError: a class that is given twice or that does not exist.
    """
    if len(set(coarse_classes)) != len(coarse_classes):
        raise UserError(f"coarse_classes = {tuple(coarse_classes)} names a class twice: want each of them once.")
    for number in coarse_classes:
        if not 0 <= number < len(coarse_names):
            raise UserError(
                f"coarse class {number} is not there: want numbers from 0 to {len(coarse_names) - 1} in coarse_classes."
            )


def select(records: Records, coarse_classes: Sequence[int], *, parent: np.ndarray | None = None) -> Records:
    """The images of some coarse classes, in their order.

    Coarse and fine classes are renumbered from 0 in ascending order of their old numbers, whatever the order of
    `coarse_classes`, and keep their names. Fine classes of which there is no image go.

    Args:
      records: a split.
      coarse_classes: numbers of the coarse classes to keep.
      parent: what `fine_to_coarse` says of all splits together. Without it this split alone decides which fine classes
        there are, and so two splits may come out numbered differently.

    Raises:
      UserError: a class that is given twice, that does not exist or that has no image here.
    """
    check_classes(coarse_classes, records.coarse_names)
    classes = np.unique(np.asarray(coarse_classes, np.int64))
    for number in classes:
        if not np.any(records.coarse_label == number):
            raise UserError(
                f"coarse class {number} ({records.coarse_names[number]}) has no image in a split of {len(records)}: "
                "leave it out of coarse_classes."
            )
    kept = np.isin(records.coarse_label, classes)
    coarse_label, coarse_names = _renumber(records.coarse_label[kept], classes, records.coarse_names)
    label, label_names = records.label, records.label_names
    if parent is None and label is not None:
        parent = fine_to_coarse(label, records.coarse_label)
    if parent is not None:
        fine = np.flatnonzero(np.isin(parent, classes))
        label = None if label is None else label[kept]
        label, label_names = _renumber(label, fine, label_names)
    return dataclasses.replace(
        records,
        image=records.image[kept],
        filename=None if records.filename is None else records.filename[kept],
        label=label,
        coarse_label=coarse_label,
        label_names=label_names,
        coarse_names=coarse_names,
    )


def _renumber(label, classes: np.ndarray, names: tuple[str, ...]):
    """Labels (or None) as positions in the ascending `classes`, and the names of these."""
    names = tuple(names[c] for c in classes)
    return None if label is None else np.searchsorted(classes, label).astype(np.int32), names
