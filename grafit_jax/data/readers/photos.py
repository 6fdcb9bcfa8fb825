"""Lists any images: files, folders, CSV files and images in memory, with the class names that their places tell."""

import dataclasses
import io
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import PIL.Image

from grafit_jax.data.readers import decode, listing
from grafit_jax.errors import UserError

# A file, a folder, a CSV, an image in memory, uint8 images [N, H, W, C], or an iterable of these.
Images = str | os.PathLike | PIL.Image.Image | np.ndarray | Iterable[Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Photo:
    """An image that is not decoded yet.

    Attributes:
      image: its absolute path, or the image in memory.
      id: the path as it was given or found below a given folder; the position of an image in memory.
      coarse, fine: the names of its classes; "" if unknown.
    """

    image: decode.Source
    id: str
    coarse: str = ""
    fine: str = ""

    @property
    def filename(self) -> str:
        """The absolute path; empty for an image in memory."""
        return self.image if isinstance(self.image, str) else ""


def each(images: Images, first: int = 0) -> Iterator[Photo]:
    """Yields the photos of `images`, one at a time: a generator is asked for the next image when that is needed.

    - A folder: the image files below it, sorted. The last two folders of a file name its coarse and fine class, a
      single folder its coarse class. A first folder named like a split (train, test, val, validation) does not count.
    - A CSV: rows with the column path, relative to the CSV, and perhaps coarse and fine. Of a CSV to train on, whose
      levels have other names, the two finest count.
    - An array uint8 [N, H, W, C]: N images. An array of paths: these.
    - An iterable: the photos of its entries, which may be folders too.

    Args:
      images: the images.
      first: the position of the first image, which counts in the ids of images in memory.

    Raises:
      UserError: no such file, a folder or CSV without images, or an array of another dtype or shape.
    """
    for position, photo in enumerate(_each(images), start=first):
        yield photo if photo.id else dataclasses.replace(photo, id=str(position))


def _each(images: Images) -> Iterator[Photo]:
    if isinstance(images, str | os.PathLike):
        path = os.path.expanduser(os.fspath(images))
        if os.path.isdir(path):
            yield from _of_folder(path)
        elif path.lower().endswith(".csv"):
            yield from _of_csv(pathlib.Path(path))
        elif os.path.exists(path):
            yield _of_file(path)
        else:
            raise UserError(
                f"found no file {path!r}; expected an image, a folder of images or a CSV with a column path."
            )
    elif isinstance(images, PIL.Image.Image):
        yield Photo(images, "")
    elif hasattr(images, "__array__"):  # NumPy, JAX, PyTorch, pandas
        yield from _of_array(np.asarray(images))
    elif isinstance(images, Iterable) and not isinstance(images, bytes | bytearray | io.IOBase):
        for entry in images:
            yield from _each(entry)
    else:
        raise UserError(f"found an image of type {type(images).__name__}; expected a path, a PIL image or an array.")


def _of_array(array: np.ndarray) -> Iterator[Photo]:
    if array.dtype.kind in "UOT" and array.ndim:
        for entry in array.tolist():
            yield from _each(entry)
        return
    channels = array.shape[-1] if array.ndim > 2 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3, 4) or channels not in (1, 3, 4) or not array.size:
        raise UserError(
            f"found an array of {array.dtype} {list(array.shape)}; expected uint8 [H, W], [H, W, C] or [N, H, W, C] "
            "with 1, 3 or 4 channels and values from 0 to 255."
        )
    yield from (Photo(image, "") for image in (array if array.ndim == 4 else array[None]))


def _of_file(path: str, coarse: str = "", fine: str = "") -> Photo:
    listing.check_name(os.path.basename(path), os.path.dirname(path))
    absolute = os.path.abspath(path)
    if ".." in path and not os.path.exists(absolute):  # of a linked folder
        absolute = os.path.join(os.getcwd(), path)
    return Photo(absolute, pathlib.Path(os.path.normpath(path)).as_posix(), coarse, fine)


def _of_folder(path: str) -> Iterator[Photo]:
    empty = True
    for file, names in listing.walk(path):
        empty = False
        yield _of_file(file, *(names[1:] if names[:1] and names[0] in listing.SPLIT_OF else names)[-2:])
    if empty:
        raise UserError(f"{path}: found no images in this folder; expected files such as {path}/a.jpg.")


def _of_csv(path: pathlib.Path) -> Iterator[Photo]:
    rows = listing.read_csv(path, ("path",), listing.LEVELS)
    if not rows:
        raise UserError(f"{path}: found no rows; expected an image in each.")
    columns = rows[0][1]
    levels = listing.level_columns(columns) if "split" in columns else listing.LEVELS
    for line, row in rows:
        if not row["path"]:
            raise UserError(f"{path}, line {line}: found no path; expected one for every image.")
        names = tuple(row.get(level, "") for level in levels)
        if levels != listing.LEVELS:
            names = listing.completed(tuple(filter(None, names)), len(levels))
        yield _of_file(str(path.parent / row["path"]), *names[-2:])
