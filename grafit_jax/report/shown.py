"""Data of a page: runs and the test images that all of them embed."""

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
    """A run with its embeddings of the test images."""

    name: str  # display name
    result: Result  # from `results.collect`
    log: Sequence[Mapping[str, Any]]  # from `workdir.read_log`
    layer: str  # of the embedding
    embedding: np.ndarray  # float32 [N, D], N >= 2

    @functools.cached_property
    def neighbours(self) -> tuple[np.ndarray, np.ndarray]:
        """Nearest other images of each image, nearest first: cosines float32 [N, k] and rows int [N, k]."""
        row = np.arange(len(self.embedding))
        k = min(_NEIGHBOURS, len(row) - 1)
        return neighbors.search(self.embedding, self.embedding, k, query_ids=row, gallery_ids=row)

    @property
    def nearest(self) -> np.ndarray:
        """Row of the nearest other image of each image, int [N]."""
        return self.neighbours[1][:, 0]


class Classes(NamedTuple):
    """A level: its name, the labels int [N] and the class names."""

    level: str
    label: np.ndarray
    names: tuple[str, ...]

    def of(self, row: int) -> str:
        """Returns the class name of an image."""
        return self.names[self.label[row]]


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """Input of the page sections."""

    runs: Sequence[Run]  # one to three; the seed of the first run samples the images of the map
    test: Records  # the N >= 2 test images that all runs embed
    ids: np.ndarray  # int [N], rows of these images in the test split

    @functools.cached_property
    def classes(self) -> list[Classes]:
        """The finest known level and, if there is one, a coarser level: the training level, or else the next one."""
        known = [
            Classes(n, level.label, level.names) for n, level in self.test.levels.items() if level.label is not None
        ]
        *coarser, fine = known
        trained = [level for level in coarser if level.level == self.test.train_level]
        return [fine, *(trained or coarser)[-1:]]

    def described(self, row: int) -> str:
        """Returns the class of an image, with the coarser class in brackets."""
        fine, *coarser = (level.of(row) for level in self.classes)
        return f"{fine} ({coarser[0]})" if coarser else fine
