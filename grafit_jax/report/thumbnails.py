"""Images for a page: small, and within it."""

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image

from grafit_jax.data import records

_READ_BATCH = 64
# Up to so many pixels a side, an image is a drawing of pixels, which lossy compression would blur.
_TINY = 16
_QUALITY = 75


def thumbnails(images: Any, rows: np.ndarray, side: int) -> dict[int, PIL.Image.Image]:
    """Some images of a split, `Records.image`, at no more than `side` pixels a side; row -> thumbnail."""
    wanted = np.zeros(len(images), bool)
    wanted[rows] = True
    read = (image for batch in records.in_order(images[wanted], _READ_BATCH) for image in batch)
    return {int(row): thumbnail(image, side) for row, image in zip(np.flatnonzero(wanted), read, strict=True)}


def thumbnail(image: np.ndarray, side: int) -> PIL.Image.Image:
    """uint8 [H, W, 1 or 3] as it is, or in its proportions with `side` pixels on the longer side."""
    made = PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    made.thumbnail((side, side), PIL.Image.Resampling.BOX)
    return made


def data_uri(image: PIL.Image.Image) -> str:
    """The image as a URL that holds it."""
    return _uri(image, tiny=max(image.size) <= _TINY)


def sheet(images: Sequence[PIL.Image.Image]) -> tuple[str, int]:
    """All images in one, as a URL that holds it, in rows of so many square cells; each in the middle of its cell."""
    columns = math.ceil(math.sqrt(len(images)))
    cell = max(max(image.size) for image in images)
    whole = PIL.Image.new(images[0].mode, (columns * cell, math.ceil(len(images) / columns) * cell))
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        whole.paste(image, (column * cell + (cell - image.width) // 2, row * cell + (cell - image.height) // 2))
    return _uri(whole, tiny=cell <= _TINY), columns


def _uri(image: PIL.Image.Image, *, tiny: bool) -> str:
    kind, options = ("png", {"optimize": True}) if tiny else ("webp", {"quality": _QUALITY})
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
