"""Images of one's own, from a folder or a CSV: whole in the host's memory, or streamed from their files.

docs/own_images.md says how they are to lie, and what becomes of odd ones.
"""

import collections
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tqdm

from grafit_jax.data import hierarchy
from grafit_jax.data.readers import decode, listing
from grafit_jax.data.readers.decode import Unreadable
from grafit_jax.data.records import READ_BATCH, InFiles, Records, two_levels
from grafit_jax.errors import UserError, warn
from grafit_jax.views.crops import RESIZE_MODES, Crops

ON_UNREADABLE = ("fatal", "skip")
# So many files one after the other are not broken: their disk is gone.
_IN_A_ROW = 100
_DISK = "look at the disk that they are on"
# Bars of what is over sooner than this many seconds stay away.
_BAR_DELAY = 5.0


class FolderImages(InFiles):
    """The images of a split that stay in their files, each made S x S as it is read.

    Attributes:
      broken: files that could not be read after all, and were passed over; one list for all parts of a split.
      unread: rows that `in_order` had no image for: they are black.
    """

    def __init__(self, root: str, files: np.ndarray, image_size: int, resize_mode: str, *, skip: bool):
        """The images of `files`, str [N], under the folder `root`. `skip`: what is unreadable is passed over."""
        super().__init__(files, 3, image_size, resize_mode)
        self._root, self._skip = root, skip
        self.broken: list[str] = []
        self.unread: set[int] = set()

    def identity(self) -> bytes:
        """Names and sizes in bytes."""
        named = [(os.path.relpath(file, self._root), _bytes(file)) for file in self._rows]
        return repr((named, self._made)).encode()

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

    def _epoch(self, made, batch_size, seed, buffer_size, shard, first):
        """Files are read in any order: all of them are shuffled, without a buffer, and parts are alike in classes, too.

        After a file that is passed over, the images past the last full batch move up, and after them those of the
        epoch's beginning once more, so that an epoch has its number of full batches, of readable images under their
        own ids, none twice in a batch, whatever becomes of a file.
        """
        index, count = shard
        # RandomState's stream is frozen (NEP 19), so the order stays the same with every version of NumPy.
        order = np.random.RandomState(seed).permutation(np.arange(len(self), dtype=np.int32)[index::count])
        num_batches = len(order) // batch_size
        used, spare = np.split(order, [num_batches * batch_size])
        # The later ones are not begun unless the earlier ones run out.
        decoded = itertools.chain.from_iterable(
            self._decoded(rows, made, ahead=2 * batch_size)
            for rows in (used[first * batch_size :], spare, *((used, spare) * num_batches))
        )
        for _ in range(first, num_batches):
            batch = dict(itertools.islice(decoded, batch_size))
            if len(batch) < batch_size:  # or one of them comes again, which would write its slot of the memory twice
                raise self.gone(len(self.broken))
            yield np.array([*batch], np.int32), np.stack([*batch.values()])

    def gone(self, number: int) -> UserError:
        """What to raise where so many of them cannot be read that nothing is left to go on with."""
        file = (self.broken or self._rows)[0]
        return UserError(f"{number} of {len(self)} images cannot be read any more, such as {file}: {_DISK}.")

    def _square(self, row: int) -> np.ndarray:
        return _square(self._rows[row], self._image_size, self._resize_mode)

    def cropped(self, crops: Crops, seed: int, row: int) -> np.ndarray:
        return decode.decode_boxes(self._rows[row], crops.size, functools.partial(crops.boxes, seed, row))

    def _decoded(
        self, rows: Sequence[int] | np.ndarray, made: Callable[[int], np.ndarray], *, ahead: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(row, what is `made` of it) of those of the rows that can be read."""
        in_a_row = 0
        decoded = decode.decode_all((functools.partial(made, row) for row in rows), ahead)
        for row, image in zip(rows, decoded, strict=True):
            if not isinstance(image, Unreadable):
                in_a_row = 0
                yield row, image
                continue
            if not self._skip:
                raise UserError(_fatal(image))
            in_a_row += 1
            if in_a_row == _IN_A_ROW:
                raise UserError(f"{in_a_row} images in a row cannot be read any more, such as {image}: {_DISK}.")
            if self._rows[row] not in self.broken:
                self.broken.append(str(self._rows[row]))
                warn(f"passed over an image that cannot be read (number {len(self.broken)}): {image}")


def read(
    kind: str,
    name: str,
    coarse_classes: tuple[int, ...],
    *,
    stream: bool,
    image_size: int,
    resize_mode: str,
    on_unreadable: str,
    test_split: str = "",
    need_test: bool = True,
) -> dict[str, Records]:
    """The records of each split. Names are sorted and shared by the splits.

    A fine name under two coarse ones is two classes, "coarse/fine".

    Args:
      kind: "folder" or "csv".
      name: the folder with train/ and test/ (or val/, validation/), or the CSV file.
      coarse_classes: images of other coarse classes are not decoded; see `hierarchy.select`. Empty: all.
      stream: the training images are `FolderImages`.
      image_size: S > 0 makes images S x S; 0 leaves them as they are, if all have one size.
      resize_mode: how; see `crops.RESIZE_MODES`.
      on_unreadable: what to do with a file that cannot be read: "fatal" raises, "skip" leaves it out.
      test_split, need_test: see `listing.list_images`.

    Raises:
      UserError: a layout or CSV that is not as docs/own_images.md has it, or what `on_unreadable` = "fatal" is about.
    """
    if on_unreadable not in ON_UNREADABLE:
        raise UserError(f"data.on_unreadable = {on_unreadable!r}: want one of {', '.join(ON_UNREADABLE)}.")
    if stream and not image_size:
        raise UserError(
            f"data.stream is on with {kind}:{name} and data.image_size is 0: set it to the pixels of a side to which "
            "images are resized as they are read (such as 256 for crops of 224)."
        )
    path = pathlib.Path(os.path.abspath(os.path.expanduser(name)))
    listed = listing.list_images(kind, path, test_split=test_split, need_test=need_test)
    root = str(path if kind == "folder" else path.parent)

    coarse_names = sorted({e.coarse for split in listed.values() for e in split})
    if coarse_classes:
        hierarchy.check_classes(coarse_classes, coarse_names)
    fine_names = _fine_names({(e.coarse, e.fine) for split in listed.values() for e in split if e.fine is not None})
    coarse_number = {coarse: i for i, coarse in enumerate(coarse_names)}
    fine_number = {key: i for i, key in enumerate(fine_names)}
    records = {}
    for split, examples in listed.items():
        if coarse_classes:
            examples = [e for e in examples if coarse_number[e.coarse] in coarse_classes]
        if not examples:
            raise UserError(f"{kind}:{name}: no image for {split} is of coarse_classes = {coarse_classes}: add others.")
        images, readable, broken = _images(
            np.array([e.file for e in examples], str), image_size, resize_mode,
            root=root, stream=stream and split == "train", skip=on_unreadable == "skip",
        )  # fmt: skip
        examples = [e for e, kept in zip(examples, readable, strict=True) if kept]
        coarse = np.array([coarse_number[e.coarse] for e in examples], np.int32)
        fine = [fine_number[e.coarse, e.fine] for e in examples if e.fine is not None]
        label = np.array(fine, np.int32) if fine else None  # all or none: `listing` has seen to it
        levels = two_levels(label, coarse, fine_names.values(), coarse_names)
        filename = np.array([e.file for e in examples], str)
        records[split] = Records(images, levels, filename=filename, broken=broken)
    return records


def _square(file: str, image_size: int, resize_mode: str) -> np.ndarray:
    """uint8 [S, S, 3]; or as it is, for image_size 0."""
    return decode.decode_boxes(file, image_size, RESIZE_MODES[resize_mode])[0] if image_size else decode.decode(file)


def _images(
    files: np.ndarray, image_size: int, resize_mode: str, *, root: str, stream: bool, skip: bool
) -> tuple[Any, np.ndarray, tuple[str, ...]]:
    """The images, whether each of `files` is readable (bool [N]), and the broken ones with their reasons.

    With `stream` and `skip` all files are decoded once, at the size of a pixel, which saves most of a JPEG's time: ids
    are rows of the readable ones, so these have to be known first.
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
                    f"{files[row]} has {w} x {h} pixels and {first} has {first_w} x {first_h}: set data.image_size to "
                    "the pixels of a side to resize them to (such as 224)."
                )
            pixels[row] = image
    if broken:
        warn(f"left out {len(broken)} of {len(files)} images that cannot be read, such as {broken[0]}")
    if not np.any(readable):
        raise UserError(f"found no image that can be read among {len(files)}, such as {broken[0]}: look at the files.")
    if stream:
        return FolderImages(root, files[readable], image_size, resize_mode, skip=True), readable, tuple(broken)
    assert pixels is not None
    return pixels if np.all(readable) else pixels[readable], readable, tuple(broken)


def _fatal(error: Unreadable) -> str:
    return f"an image cannot be read: {error}; repair or remove it, or pass over such files by data.on_unreadable=skip."


def _bytes(file: str) -> int:
    try:
        return os.path.getsize(file)
    except OSError:  # what is wrong with it, its decoder will say
        return -1


def _fine_names(keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """(coarse, fine) -> the name of the fine class, sorted by that."""
    keys = list(keys)
    times = collections.Counter(fine for _, fine in keys)
    named = {(coarse, fine): fine if times[fine] == 1 else f"{coarse}/{fine}" for coarse, fine in keys}
    return dict(sorted(named.items(), key=lambda item: (item[1], item[0])))
