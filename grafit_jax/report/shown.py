"""What a page is made of."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from grafit_jax.data.records import Records
from grafit_jax.runs.results import Result


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run, with what it makes of the test images.

    Attributes:
      name: as it is called on the page.
      result: as `results.collect` gives it.
      log: as `workdir.read_log` gives it.
      layer: which embedding: trunk or projector.
      embedding: float32 [N, D].
    """

    name: str
    result: Result
    log: Sequence[Mapping[str, Any]]
    layer: str
    embedding: np.ndarray


class Seen(NamedTuple):
    """A run with the other test images that are nearest to each one.

    Attributes:
      run: the run.
      similarity: float32 [N, k], cosines.
      near: int [N, k], rows, nearest first.
    """

    run: Run
    similarity: np.ndarray
    near: np.ndarray

    @property
    def nearest(self) -> np.ndarray:
        """int [N]."""
        return self.near[:, 0]


class Classes(NamedTuple):
    """The labels of a level.

    Attributes:
      level: its name.
      prefix: what the names of its metrics begin with.
      label: int [N].
      names: of the labels.
    """

    level: str
    prefix: str
    label: np.ndarray
    names: tuple[str, ...]

    def of(self, row: int) -> str:
        """The name of an image's class."""
        return self.names[self.label[row]]


class Part(NamedTuple):
    """A part of the page: its name in links, its heading, and HTML."""

    name: str
    heading: str
    content: str


def classes_of(test: Records) -> list[Classes]:
    """The finest level that is known and, if there is one, a coarser one: the one that was trained on, or the next."""
    known = [
        Classes(name, "" if name == test.finest else f"{name}/", level.label, level.names)
        for name, level in test.levels.items()
        if level.label is not None
    ]
    *coarser, fine = known
    trained = [level for level in coarser if level.level == test.train_level]
    return [fine, *(trained or coarser)[-1:]]


def described(classes: Sequence[Classes], row: int) -> str:
    """The classes of an image, the coarser one in brackets."""
    fine, *coarser = (level.of(row) for level in classes)
    return f"{fine} ({coarser[0]})" if coarser else fine
