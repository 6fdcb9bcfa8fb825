"""Records: the images of a split and their labels at every level of the hierarchy."""

import abc
import copy
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from grafit_jax.views.crops import Crops

# The batch size for reading a whole split.
READ_BATCH = 500
# A function of an image's id, or of its id and its decoded pixels.
Transform = Callable[..., Any]


class InFiles(abc.ABC):
    """The images of a split kept in their files, with the shape and dtype of an array and iterators over batches.

    Attributes:
      shape: (N, H, W, C).
      dtype: uint8.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, rows: np.ndarray, channels: int, image_size: int, resize_mode: str, size: Sequence[int] = ()):
        """Stores the locations `rows` of the images, [N], whose meaning a subclass defines, and their size.

        With image_size S > 0, images are resized to S x S by `crops.RESIZE_MODES[resize_mode]`; otherwise they have
        the size (H, W).
        """
        self._rows, self._image_size, self._resize_mode = rows, image_size, resize_mode
        self.shape = (len(rows), *((image_size, image_size) if image_size else size), channels)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, kept: np.ndarray) -> "InFiles":
        """Returns the images where `kept`, bool [N], is True, in their order."""
        some = copy.copy(self)
        some._rows = self._rows[kept]
        some.shape = (len(some._rows), *self.shape[1:])
        return some

    @abc.abstractmethod
    def identity(self) -> bytes:
        """Returns bytes that identify the images without decoding them, for the fingerprint."""

    @property
    def _resizing(self) -> Any:
        """The resizing parameters, for `identity`."""
        return self._image_size if self._resize_mode == "squash" else (self._image_size, self._resize_mode)

    @abc.abstractmethod
    def in_order(self, batch_size: int) -> Iterator[np.ndarray]:
        """Yields every image once in the order of the ids, uint8 [B, H, W, C]; the last batch may be smaller.

        Raises:
          UserError: a file is unreadable and unreadable files are not skipped.
        """

    def read(self) -> np.ndarray:
        """Returns all images, uint8 [N, H, W, C]; raises as `in_order`."""
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
        """Yields one shuffled epoch as (id int32 [B], image uint8 [B, H, W, C]); the order depends only on `seed`.

        The images past the last full batch are dropped.

        Args:
          batch_size: the batch size B of this host.
          seed: the seed of the epoch.
          buffer_size: the number of images in the shuffle buffer, for readers that read their files sequentially.
          shard: (i, n) selects the i-th of n shards of almost equal size: one host's images.
          crops: if given, yields crops of the full-size images, uint8 [B, T, S, S, C].
          first: the number of batches to skip at the beginning without decoding them.

        Raises:
          UserError: a file is unreadable and unreadable files are not skipped, or fewer than B images are readable.
        """
        transform = self._square if crops is None else functools.partial(self.cropped, crops, seed)
        return self._epoch(transform, batch_size, seed, buffer_size, shard, first)

    # The two transforms of an image: a square of the whole, or random crops.
    _square: Transform
    cropped: Transform

    @abc.abstractmethod
    def _epoch(
        self, transform: Transform, batch_size: int, seed: int, buffer_size: int, shard: tuple[int, int], first: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Implements `shuffled`, with `transform` applied to each image."""


class Level(NamedTuple):
    """One level of a hierarchy.

    Attributes:
      label: the labels of the split's images, int32 [N], or None if unknown.
      names: the name of every class; shared by all splits of a data set.
    """

    label: np.ndarray | None
    names: tuple[str, ...]


def two_levels(label, coarse_label, label_names, coarse_names) -> dict[str, Level]:
    """Returns the levels "coarse" and "fine"; `label` is None if fine labels are unknown."""
    return {"coarse": Level(coarse_label, tuple(coarse_names)), "fine": Level(label, tuple(label_names))}


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """A split of a data set.

    Attributes:
      image: uint8 [N, H, W, C], an array in host memory or `InFiles`.
      levels: the levels by name, from coarse to fine: "coarse" and "fine", or those of a deeper hierarchy. Each class
        of a level lies in one class of every coarser level.
      train_level: the name of the level used for training.
      filename: the image files, str [N], or None if images have no files of their own.
      root: the folder of the data set, in which lists of the image files start.
      broken: the unreadable files that were skipped (not among the N), each with the reason.
    """

    image: Any
    levels: Mapping[str, Level]
    train_level: str = "coarse"
    filename: np.ndarray | None = None
    root: str = ""
    broken: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.image)

    @property
    def finest(self) -> str:
        """The name of the finest level."""
        return [*self.levels][-1]

    @property
    def label(self) -> np.ndarray | None:
        """The labels of the finest level, int32 [N], or None if unknown."""
        return self.levels[self.finest].label

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.levels[self.finest].names

    @property
    def train_label(self) -> np.ndarray:
        """The labels of the training level, int32 [N]."""
        label = self.levels[self.train_level].label
        assert label is not None
        return label

    @property
    def train_names(self) -> tuple[str, ...]:
        return self.levels[self.train_level].names

    @property
    def labels(self) -> dict[str, np.ndarray]:
        """The known labels by level, as `metrics.retrieval_metrics` expects them: the finest level's key is ""."""
        known = {name: level.label for name, level in self.levels.items() if level.label is not None}
        return {"" if name == self.finest else name: label for name, label in known.items()}

    def relabel(self, change: Callable[[str, Level], Level]) -> "Records":
        """Returns a copy with every level replaced by `change(name, level)`."""
        return dataclasses.replace(self, levels={name: change(name, level) for name, level in self.levels.items()})

    def take(self, rows: np.ndarray) -> "Records":
        """Returns the images where `rows`, bool [N], is True, in their order."""
        taken = self.relabel(lambda _, level: level._replace(label=None if level.label is None else level.label[rows]))
        filename = None if self.filename is None else self.filename[rows]
        return dataclasses.replace(taken, image=self.image[rows], filename=filename)

    @property
    def id(self) -> np.ndarray:
        """The positions in the split, int32 [N]: an image's id is its slot in the memory."""
        return np.arange(len(self), dtype=np.int32)

    def fingerprint(self) -> str:
        """Returns 16 hexadecimal digits of a SHA-256 of images, labels and their shapes; class names do not count.

        For streamed images, the names and sizes of their files or of their data set replace the pixels.
        """
        return self._fingerprint

    @functools.cached_property  # hashing takes a pass over all images, and several callers need it
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
        """Returns a fingerprint that does not depend on the order or source of the images; None for streamed ones."""
        if isinstance(self.image, InFiles):
            return None
        labels = [level.label for level in reversed([*self.levels.values()]) if level.label is not None]
        rows = [np.ascontiguousarray(self.image, "u1").reshape(len(self), -1)]
        rows += [np.ascontiguousarray(label, "<i4").view("u1").reshape(len(self), 4) for label in labels]
        each = (hashlib.sha256(b"".join(part.tobytes() for part in row)) for row in zip(*rows, strict=True))
        shape = str((*self.image.shape, len(labels))).encode()
        return hashlib.sha256(shape + b"".join(sorted(row.digest() for row in each))).hexdigest()[:16]


def in_order(images: np.ndarray | InFiles, batch_size: int) -> Iterator[np.ndarray]:
    """Returns batches of a split's images in the order of the ids; the last batch may be smaller."""
    if isinstance(images, InFiles):
        return images.in_order(batch_size)
    return (images[start : start + batch_size] for start in range(0, len(images), batch_size))
