"""A split of a data set: images, and their labels at every level of the hierarchy."""

import abc
import copy
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from grafit_jax.views.crops import Crops

# Images that are read at a time where a split is read from end to end.
READ_BATCH = 500


class InFiles(abc.ABC):
    """The images of a split that stay in their files: what an array of them tells of itself, and ways to read them.

    Attributes:
      shape: (N, H, W, C).
      dtype: uint8.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, rows: np.ndarray, channels: int, image_size: int, resize_mode: str, size: Sequence[int] = ()):
        """The images that `rows`, [N], say how to find.

        With image_size S > 0 each of them is made S x S pixels, square by one of `crops.RESIZE_MODES`; else they are of
        `size`, (H, W), as they are.
        """
        self._rows, self._image_size, self._resize_mode = rows, image_size, resize_mode
        self.shape = (len(rows), *((image_size, image_size) if image_size else size), channels)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, kept: np.ndarray) -> "InFiles":
        """Some of the images, in their order: bool [N]."""
        some = copy.copy(self)
        some._rows = self._rows[kept]
        some.shape = (len(some._rows), *self.shape[1:])
        return some

    @abc.abstractmethod
    def identity(self) -> bytes:
        """What tells them from the images of another data set, without reading them."""

    @property
    def _made(self) -> Any:
        """How they are made square, for `identity`."""
        return self._image_size if self._resize_mode == "squash" else (self._image_size, self._resize_mode)

    @abc.abstractmethod
    def in_order(self, batch_size: int) -> Iterator[np.ndarray]:
        """uint8 [B, H, W, C], every image once in the order of its id; the last batch may be smaller.

        Raises:
          UserError: a file that cannot be read, unless it is to be passed over.
        """

    def read(self) -> np.ndarray:
        """All of them, uint8 [N, H, W, C]; raises as `in_order`."""
        images, start = np.empty(self.shape, np.uint8), 0
        for batch in self.in_order(READ_BATCH):
            images[start : start + len(batch)] = batch
            start += len(batch)
        assert start == len(images), f"{start} of {len(images)} images in the files"
        return images

    def shuffled(
        self,
        batch_size: int,
        *,
        seed: int,
        buffer_size: int = 1,
        shard: tuple[int, int] = (0, 1),
        crops: Crops | None = None,
        first: int = 0,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One epoch as (id int32 [B], image uint8 [B, H, W, C]), in an order that `seed` alone decides.

        Images past the last full batch are left out.

        Args:
          batch_size: B, of this host.
          seed: of the epoch.
          buffer_size: images in the shuffle buffer of files that are read from end to end.
          shard: (i, n): the i-th of n parts of the images, as alike in size as can be: those of one host.
          crops: gives crops of the images as they are in the files instead, uint8 [B, T, S, S, C].
          first: batches to leave out at the beginning, which are not decoded.

        Raises:
          UserError: a file that cannot be read, unless it is to be passed over, or fewer that can than a batch has.
        """
        made = self._square if crops is None else functools.partial(self.cropped, crops, seed)
        return self._epoch(made, batch_size, seed, buffer_size, shard, first)

    # What a batch has of an image: all of it as a square, or crops of it.
    _square: Callable[..., Any]
    cropped: Callable[..., Any]

    @abc.abstractmethod
    def _epoch(
        self, made: Callable[..., Any], batch_size: int, seed: int, buffer_size: int, shard: tuple[int, int], first: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As `shuffled`, of what is `made` of an image."""


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
