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
    """Some images of a split, `Records.image`, in their proportions with at most `side` pixels a side, by their row."""
    wanted = np.zeros(len(images), bool)
    wanted[rows] = True
    read = (image for batch in records.in_order(images[wanted], _READ_BATCH) for image in batch)
    made = {}
    for row, image in zip(np.flatnonzero(wanted).tolist(), read, strict=True):
        made[row] = PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        made[row].thumbnail((side, side), PIL.Image.Resampling.BOX)
    return made


def sheet(images: Sequence[PIL.Image.Image]) -> tuple[str, int]:
    """All images in one, as a URL that holds it, in rows of so many square cells; each in the middle of its cell."""
    columns = math.ceil(math.sqrt(len(images)))
    cell = max(max(image.size) for image in images)
    whole = PIL.Image.new(images[0].mode, (columns * cell, math.ceil(len(images) / columns) * cell))
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        whole.paste(image, (column * cell + (cell - image.width) // 2, row * cell + (cell - image.height) // 2))
    return data_uri(whole, cell), columns


def data_uri(image: PIL.Image.Image, side: int = 0) -> str:
    """The image as a URL that holds it; `side` is that of the images in it, where it is a sheet of them."""
    tiny = (side or max(image.size)) <= _TINY
    kind, options = ("png", {"optimize": True}) if tiny else ("webp", {"quality": _QUALITY})
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
