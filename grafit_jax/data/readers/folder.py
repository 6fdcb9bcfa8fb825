"""Image folders and CSV files of images, read into host memory or streamed.

docs/own_images.md documents the layout and the handling of unusual files.
"""

import collections
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tqdm

from grafit_jax.data import hierarchy
from grafit_jax.data.readers import decode, listing
from grafit_jax.data.readers.decode import Unreadable
from grafit_jax.data.records import READ_BATCH, InFiles, Level, Records
from grafit_jax.errors import UserError, warn
from grafit_jax.views.crops import RESIZE_MODES, Crops

ON_UNREADABLE = ("fatal", "skip")
# So many unreadable files in a row mean that the disk has failed.
_MAX_CONSECUTIVE = 100
_DISK = "check the disk"
# Seconds before a progress bar appears.
_BAR_DELAY = 5.0


class FolderImages(InFiles):
    """The images of a split kept in their files and resized to S x S when read.

    Attributes:
      broken: the unreadable files skipped while streaming; selections of a split share this list.
      unread: the rows that `in_order` could not read and yielded as black images.
    """

    def __init__(self, root: str, files: np.ndarray, image_size: int, resize_mode: str, *, skip: bool):
        """Reads `files`, str [N], below the folder `root`; with `skip`, skips unreadable ones."""
        super().__init__(files, 3, image_size, resize_mode)
        self._root, self._skip = root, skip
        self.broken: list[str] = []
        self.unread: set[int] = set()

    def identity(self) -> bytes:
        """Returns the relative paths, the file sizes and the resizing parameters."""
        named = [(os.path.relpath(file, self._root), _file_size(file)) for file in self._rows]
        return repr((named, self._resizing)).encode()

    def in_order(self, batch_size: int) -> Iterator[np.ndarray]:
        self.unread = set(range(len(self)))
        read = self._decoded(range(len(self)), self._square, ahead=2 * batch_size)
        following = next(read, None)
        for start in range(0, len(self), batch_size):
            batch = np.zeros((min(batch_size, len(self) - start), *self.shape[1:]), np.uint8)
            while following is not None and following[0] < start + batch_size:
                batch[following[0] - start] = following[1]
                self.unread.remove(following[0])
                following = next(read, None)
            yield batch

    def _epoch(self, transform, batch_size, seed, buffer_size, shard, first):
        """Shuffles all files without a buffer; shards interleave them, so that each has images of every class.

        The images past the last full batch replace unreadable files, then the epoch's images repeat from its
        beginning. The number of full batches is therefore constant, and no batch holds an image twice.
        """
        index, count = shard
        # RandomState's stream is frozen (NEP 19), so every version of NumPy draws the same order.
        order = np.random.RandomState(seed).permutation(np.arange(len(self), dtype=np.int32)[index::count])
        num_batches = len(order) // batch_size
        used, spare = np.split(order, [num_batches * batch_size])
        # Lazy: a later sequence starts only when the ones before it are exhausted.
        decoded = itertools.chain.from_iterable(
            self._decoded(rows, transform, ahead=2 * batch_size)
            for rows in (used[first * batch_size :], spare, *((used, spare) * num_batches))
        )
        for _ in range(first, num_batches):
            batch = dict(itertools.islice(decoded, batch_size))
            if len(batch) < batch_size:  # exhausted, or an id repeats, which would write its memory slot twice
                raise self.gone(len(self.broken))
            yield np.array([*batch], np.int32), np.stack([*batch.values()])

    def gone(self, number: int) -> UserError:
        """Returns the error for `number` unreadable images, too many to continue."""
        file = (self.broken or self._rows)[0]
        return UserError(f"found {number} of {len(self)} images unreadable, such as {file}; {_DISK}.")

    def _square(self, row: int) -> np.ndarray:
        return _square(self._rows[row], self._image_size, self._resize_mode)

    def cropped(self, crops: Crops, seed: int, row: int) -> np.ndarray:
        return decode.decode_boxes(self._rows[row], crops.size, functools.partial(crops.boxes, seed, row))

    def _decoded(
        self, rows: Sequence[int] | np.ndarray, transform: Callable[[int], np.ndarray], *, ahead: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (row, transformed image) of the readable rows."""
        consecutive = 0
        decoded = decode.decode_all((functools.partial(transform, row) for row in rows), ahead)
        for row, image in zip(rows, decoded, strict=True):
            if not isinstance(image, Unreadable):
                consecutive = 0
                yield row, image
                continue
            if not self._skip:
                raise UserError(_fatal(image))
            consecutive += 1
            if consecutive == _MAX_CONSECUTIVE:
                raise UserError(f"found {consecutive} unreadable images in a row, such as {image}; {_DISK}.")
            if self._rows[row] not in self.broken:
                self.broken.append(str(self._rows[row]))
                warn(f"skipped an unreadable image (number {len(self.broken)}): {image}")


def read(
    kind: str,
    name: str,
    coarse_classes: tuple[int | str, ...],
    *,
    stream: bool,
    image_size: int,
    resize_mode: str,
    on_unreadable: str,
    test_split: str = "",
    need_test: bool = True,
) -> dict[str, Records]:
    """Returns the records of each split. Class names are sorted and shared by the splits.

    A name that occurs under two coarser classes gives two classes, "coarse/fine".

    Args:
      kind: "folder" or "csv".
      name: the folder with train/ and test/ (or val/, validation/), or the CSV file.
      coarse_classes: the coarse classes to decode, by number or name; see `hierarchy.select`. Empty for all.
      stream: return the training images as `FolderImages`.
      image_size: the side S to resize images to, pixels; 0 keeps their size, which must be the same for all.
      resize_mode: how to make images square, a key of `crops.RESIZE_MODES`.
      on_unreadable: how to treat an unreadable file: "fatal" raises, "skip" leaves it out.
      test_split, need_test: see `listing.list_images`.

    Raises:
      UserError: the layout or CSV is not as in docs/own_images.md, or a file is unreadable and `on_unreadable` is
        "fatal".
    """
    if on_unreadable not in ON_UNREADABLE:
        raise UserError(f"found data.on_unreadable = {on_unreadable!r}; expected one of {', '.join(ON_UNREADABLE)}.")
    if stream and not image_size:
        raise UserError(
            f"{kind}:{name}: found data.stream with data.image_size = 0; expected the side in pixels to resize images "
            "to (such as 256 for crops of 224)."
        )
    path = pathlib.Path(os.path.abspath(os.path.expanduser(name)))
    listed = listing.list_images(kind, path, test_split=test_split, need_test=need_test)
    root = str(path if kind == "folder" else path.parent)

    of_levels = _names([e.classes for examples in listed.splits.values() for e in examples], len(listed.levels))
    coarse_names = [*of_levels[0].values()]
    kept = {coarse_names[number] for number in hierarchy.numbers(coarse_classes, coarse_names)}
    records = {}
    for split, examples in listed.splits.items():
        if coarse_classes:
            examples = [e for e in examples if e.classes[0] in kept]
        if not examples:
            raise UserError(
                f"{kind}:{name}: found no image for {split} with coarse_classes = {coarse_classes}; add other classes."
            )
        images, readable, broken = _images(
            np.array([e.file for e in examples], str), image_size, resize_mode,
            root=root, stream=stream and split == "train", skip=on_unreadable == "skip",
        )  # fmt: skip
        examples = [e for e, is_readable in zip(examples, readable, strict=True) if is_readable]
        levels = {}
        for depth, (level, names) in enumerate(zip(listed.levels, of_levels, strict=True), start=1):
            number = {path: i for i, path in enumerate(names)}
            known = len(examples[0].classes) >= depth  # for all images of a split or for none
            label = np.array([number[e.classes[:depth]] for e in examples], np.int32) if known else None
            levels[level] = Level(label, tuple(names.values()))
        filename = np.array([e.file for e in examples], str)
        records[split] = Records(images, levels, listed.levels[0], filename=filename, root=root, broken=broken)
    return records


def _square(file: str, image_size: int, resize_mode: str) -> np.ndarray:
    """Returns the whole image, uint8 [S, S, 3], or [H, W, 3] for image_size 0."""
    return decode.decode_boxes(file, image_size, RESIZE_MODES[resize_mode])[0] if image_size else decode.decode(file)


def _images(
    files: np.ndarray, image_size: int, resize_mode: str, *, root: str, stream: bool, skip: bool
) -> tuple[Any, np.ndarray, tuple[str, ...]]:
    """Returns the images, which of `files` are readable (bool [N]), and the unreadable ones with their reasons.

    With `stream` and `skip`, decodes all files once, because ids count the readable ones only. One pixel per image is
    enough, which saves most of a JPEG's decoding time.
    """
    readable, broken = np.ones(len(files), bool), []
    if stream and not skip:
        return FolderImages(root, files, image_size, resize_mode, skip=False), readable, ()
    pixels: np.ndarray | None = None
    size = 1 if stream else image_size
    decoded = decode.decode_all(
        (functools.partial(_square, file, size, resize_mode) for file in files), ahead=2 * READ_BATCH
    )
    bar = tqdm.tqdm(decoded, total=len(files), desc="reading images", unit="img", delay=_BAR_DELAY, leave=False)
    for row, image in enumerate(bar):
        if isinstance(image, Unreadable):
            if not skip:
                raise UserError(_fatal(image))
            broken.append(str(image))
            readable[row] = False
        elif not stream:
            if pixels is None:
                pixels, first = np.empty((len(files), *image.shape), np.uint8), files[row]
            if image.shape != pixels.shape[1:]:
                (h, w, _), (first_h, first_w, _) = image.shape, pixels.shape[1:]
                raise UserError(
                    f"{files[row]}: found {w} x {h} pixels; expected {first_w} x {first_h} as in {first}; set "
                    "data.image_size to the side in pixels to resize images to (such as 224)."
                )
            pixels[row] = image
    if broken:
        warn(f"skipped {len(broken)} of {len(files)} images, which are unreadable, such as {broken[0]}")
    if not np.any(readable):
        raise UserError(f"found no readable image among {len(files)}, such as {broken[0]}; check the files.")
    if stream:
        return FolderImages(root, files[readable], image_size, resize_mode, skip=True), readable, tuple(broken)
    assert pixels is not None
    return pixels if np.all(readable) else pixels[readable], readable, tuple(broken)


def _fatal(error: Unreadable) -> str:
    return f"found an unreadable image: {error}; repair or remove it, or use data.on_unreadable=skip."


def _file_size(file: str) -> int:
    try:
        return os.path.getsize(file)
    except OSError:  # the decoder reports the reason
        return -1


def _names(classes: Sequence[tuple[str, ...]], levels: int) -> list[dict[tuple[str, ...], str]]:
    """Maps the path of each class to its name, sorted by that name, for every level."""
    found = []
    for depth in range(1, levels + 1):
        paths = {path[:depth] for path in classes if len(path) >= depth}
        times = collections.Counter(path[-1] for path in paths)
        named = {path: path[-1] if times[path[-1]] == 1 else "/".join(path) for path in paths}
        found.append(dict(sorted(named.items(), key=lambda item: (item[1], item[0]))))
    return found
