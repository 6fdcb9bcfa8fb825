"""What the sections of a page show: runs, and the test images that all of them embed."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from grafit_jax.data.records import Records
from grafit_jax.retrieval import neighbors
from grafit_jax.runs.results import Result

_NEIGHBOURS = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run and its embeddings of the test images."""

    name: str  # as the page calls it
    result: Result  # as `results.collect` gives it
    log: Sequence[Mapping[str, Any]]  # as `workdir.read_log` gives it
    layer: str  # which embedding: trunk or projector
    embedding: np.ndarray  # float32 [N, D], of at least two images

    @functools.cached_property
    def neighbours(self) -> tuple[np.ndarray, np.ndarray]:
        """The other images nearest to each one, nearest first: cosines float32 [N, k], rows int [N, k]."""
        row = np.arange(len(self.embedding))
        k = min(_NEIGHBOURS, len(row) - 1)
        return neighbors.search(self.embedding, self.embedding, k, query_ids=row, gallery_ids=row)

    @property
    def nearest(self) -> np.ndarray:
        """int [N], the row of the nearest other image."""
        return self.neighbours[1][:, 0]


class Classes(NamedTuple):
    """A level and its labels: int [N], with their names."""

    level: str
    label: np.ndarray
    names: tuple[str, ...]

    def of(self, row: int) -> str:
        """The name of an image's class."""
        return self.names[self.label[row]]


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """What a page is made of."""

    runs: Sequence[Run]  # one, or up to three side by side; the seed of the first one draws the images of the map
    test: Records  # the images that all of them embed, at least two
    ids: np.ndarray  # int [N], their rows in the test split

    @functools.cached_property
    def classes(self) -> list[Classes]:
        """The finest level that is known and, if there is one, a coarser one: the trained one, or else the next."""
        known = [
            Classes(n, level.label, level.names) for n, level in self.test.levels.items() if level.label is not None
        ]
        *coarser, fine = known
        trained = [level for level in coarser if level.level == self.test.train_level]
        return [fine, *(trained or coarser)[-1:]]

    def described(self, row: int) -> str:
        """The classes of an image, the coarser one in brackets."""
        fine, *coarser = (level.of(row) for level in self.classes)
        return f"{fine} ({coarser[0]})" if coarser else fine
