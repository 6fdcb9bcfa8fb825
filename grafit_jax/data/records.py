"""A split of a data set: images, and their labels at every level of the hierarchy."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class InFiles(Protocol):
    """The images of a split that stay in their files, uint8 [N, H, W, C]: see `readers.folder` and `readers.tfds`."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Any: ...

    @property
    def ndim(self) -> int: ...

    def identity(self) -> bytes:
        """What tells them from the images of another data set, without reading them."""
        ...

    def in_order(self, batch_size: int) -> Iterator[np.ndarray]:
        """Every image once, in the order of its id; the last batch may be smaller."""
        ...

    def read(self) -> np.ndarray:
        """All images, in memory."""
        ...

    def shuffled(self, batch_size: int, *, seed: int, **options: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One epoch as (id int32 [B], image uint8 [B, ...]), in an order that `seed` alone decides."""
        ...


class Level(NamedTuple):
    """One level of a hierarchy: the labels of a split's images, and what they mean.

    Attributes:
      label: int32 [N], or None where they are not known.
      names: the name of every label; shared by all splits of a data set.
    """

    label: np.ndarray | None
    names: tuple[str, ...]


def two_levels(label, coarse_label, label_names, coarse_names) -> dict[str, Level]:
    """The levels of an ordinary data set; `label` is None where fine labels are not known."""
    return {"coarse": Level(coarse_label, tuple(coarse_names)), "fine": Level(label, tuple(label_names))}


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """A split.

    Attributes:
      image: uint8 [N, H, W, C], an array in the host's memory or `InFiles`.
      levels: by name, from coarse to fine: "coarse" and "fine", or those of a deeper hierarchy. A class of one level
        lies in one class of each coarser level.
      train_level: the level that is trained on.
      filename: str [N], where the images lie, or None where they have no files of their own.
      broken: files that could not be read and are not among the N, each with the reason.
    """

    image: Any
    levels: Mapping[str, Level]
    train_level: str = "coarse"
    filename: np.ndarray | None = None
    broken: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.image)

    @property
    def finest(self) -> str:
        """The name of the finest level."""
        return [*self.levels][-1]

    @property
    def label(self) -> np.ndarray | None:
        """int32 [N], the labels of the finest level, or None where they are not known."""
        return self.levels[self.finest].label

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.levels[self.finest].names

    @property
    def train_label(self) -> np.ndarray:
        """int32 [N], the labels of the level that is trained on."""
        label = self.levels[self.train_level].label
        assert label is not None
        return label

    @property
    def train_names(self) -> tuple[str, ...]:
        return self.levels[self.train_level].names

    @property
    def labels(self) -> dict[str, np.ndarray]:
        """The labels that are known, as `metrics.retrieval_metrics` takes them: "" is the finest level."""
        known = {name: level.label for name, level in self.levels.items() if level.label is not None}
        return {"" if name == self.finest else name: label for name, label in known.items()}

    def relabel(self, change: Callable[[str, Level], Level]) -> "Records":
        """With `change` of the name and the level in place of every level."""
        return dataclasses.replace(self, levels={name: change(name, level) for name, level in self.levels.items()})

    def take(self, rows: np.ndarray) -> "Records":
        """Some of the images, in their order: bool [N]."""
        taken = self.relabel(lambda _, level: level._replace(label=None if level.label is None else level.label[rows]))
        filename = None if self.filename is None else self.filename[rows]
        return dataclasses.replace(taken, image=self.image[rows], filename=filename)

    @property
    def id(self) -> np.ndarray:
        """int32 [N]: the position in the split, which is the image's slot in the memory."""
        return np.arange(len(self), dtype=np.int32)

    def fingerprint(self) -> str:
        """16 hexadecimal digits of a SHA-256 over images and labels and their shapes; names do not count.

        Of streamed images the names and sizes of their files or of their data set stand for them.
        """
        return self._fingerprint

    @functools.cached_property  # a pass over all images, which a run and its checks ask for several times
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        levels = [(level.label, "<i4") for level in reversed([*self.levels.values()])]
        for array, dtype in ((self.image, "u1"), *levels):
            digest.update(b"none" if array is None else str(array.shape).encode())
            if isinstance(array, InFiles):
                digest.update(array.identity())
            elif array is not None:
                digest.update(np.ascontiguousarray(array, dtype).tobytes())
        return digest.hexdigest()[:16]

    def content(self) -> str | None:
        """As `fingerprint`, whatever the order of the images; None where they stay in files, of which only names tell.

        The same images and labels have the same content wherever they are read from, and in whichever order.
        """
        if isinstance(self.image, InFiles):
            return None
        labels = [level.label for level in reversed([*self.levels.values()]) if level.label is not None]
        rows = [np.ascontiguousarray(self.image, "u1").reshape(len(self), -1)]
        rows += [np.ascontiguousarray(label, "<i4").view("u1").reshape(len(self), 4) for label in labels]
        each = (hashlib.sha256(b"".join(part.tobytes() for part in row)) for row in zip(*rows, strict=True))
        shape = str((*self.image.shape, len(labels))).encode()
        return hashlib.sha256(shape + b"".join(sorted(row.digest() for row in each))).hexdigest()[:16]


def in_order(images: np.ndarray | InFiles, batch_size: int) -> Iterator[np.ndarray]:
    """The images of a split in batches, in the order of their ids; the last batch may be smaller."""
    if isinstance(images, InFiles):
        return images.in_order(batch_size)
    return (images[start : start + batch_size] for start in range(0, len(images), batch_size))
