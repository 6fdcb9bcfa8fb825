"""Thumbnails embedded in a page as data URIs."""

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image

from grafit_jax.data import records

_READ_BATCH = 64
# Images of at most this many pixels per side are stored as PNG, because lossy compression would blur them.
_TINY = 16
# Images of at most this many pixels per side are enlarged without smoothing.
_UNSMOOTHED = 64
_QUALITY = 75


def thumbnails(images: Any, rows: np.ndarray, side: int) -> dict[int, PIL.Image.Image]:
    """Returns row -> thumbnail of `Records.image`, with at most `side` pixels per side and the aspect ratio kept."""
    chosen = np.zeros(len(images), bool)
    chosen[rows] = True
    read = (image for batch in records.in_order(images[chosen], _READ_BATCH) for image in batch)
    return {row: thumbnail(image, side) for row, image in zip(np.flatnonzero(chosen).tolist(), read, strict=True)}


def thumbnail(image: np.ndarray, side: int) -> PIL.Image.Image:
    """Returns an image, uint8 [H, W, C], with at most `side` pixels per side and the aspect ratio kept."""
    small = PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    small.thumbnail((side, side), PIL.Image.Resampling.BOX)
    return small


def sheet(images: Sequence[PIL.Image.Image]) -> tuple[str, int]:
    """Returns a sprite sheet of square cells as a data URI, and its number of columns; images are centred in cells."""
    columns = math.ceil(math.sqrt(len(images)))
    cell = max(max(image.size) for image in images)
    whole = PIL.Image.new(images[0].mode, (columns * cell, math.ceil(len(images) / columns) * cell))
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        whole.paste(image, (column * cell + (cell - image.width) // 2, row * cell + (cell - image.height) // 2))
    return data_uri(whole, cell), columns


def img(image: PIL.Image.Image) -> str:
    """Returns the start of an img tag of the image, without its end; the page enlarges small images unsmoothed."""
    tiny = " data-tiny" if max(image.size) <= _UNSMOOTHED else ""
    return f'<img{tiny} src="{data_uri(image)}"'


def data_uri(image: PIL.Image.Image, side: int = 0) -> str:
    """Returns the image as a data URI; for a sprite sheet, `side` is the size of a cell."""
    tiny = (side or max(image.size)) <= _TINY
    kind, options = ("png", {"optimize": True}) if tiny else ("webp", {"quality": _QUALITY})
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
