"""Image files to pixels, upright and RGB whatever they hold, decoded on all processors of the host."""

import collections
import concurrent.futures
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
import PIL.Image
import PIL.ImageOps

# What is decoded, whatever a file calls itself: a format that would start another program (EPS) is none of them.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")
)
# 16 bits to 8: 65535 / 255.
_SIXTEEN = 257


class Unreadable(Exception):
    """A file that cannot be decoded; the message names it, with the reason, in one line."""


def decode(file: str | pathlib.Path, size: int = 0) -> np.ndarray:
    """The first frame of a file as RGB, as its EXIF says it is to be held, transparency on white.

    16-bit values are scaled to 8 bits. A JPEG of more than twice the wanted size is decoded at a half, a quarter or an
    eighth of its own (as `PIL.Image.thumbnail` does), which saves most of the time.

    Args:
      file: JPEG, PNG, GIF, BMP, TIFF, WebP or PPM.
      size: S > 0 resizes the image, as a whole, to S x S pixels (bilinear, antialiased).

    Returns:
      uint8 [H, W, 3].

    Raises:
      Unreadable: anything that keeps it from being decoded: not there, no permission, no image, cut short, more pixels
        than PIL trusts (179 million), values without a known white (32 bits).
    """
    try:
        with PIL.Image.open(file, formats=_FORMATS) as image:
            if size:
                image.draft(None, (2 * size, 2 * size))
            upright = _rgb(PIL.ImageOps.exif_transpose(image))
            return np.asarray(upright.resize((size, size), PIL.Image.Resampling.BILINEAR) if size else upright)
    except PIL.UnidentifiedImageError as error:
        raise Unreadable(f"{file} (no {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]})") from error
    except Exception as error:  # a decoder may raise anything at what is in a broken file
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise Unreadable(f"{file} ({reason})") from error


def decode_all(files: Iterable[str], size: int, ahead: int) -> Iterator[np.ndarray | Unreadable]:
    """`decode` of each file, in order, on all processors; up to `ahead` files before the one that is asked for.

    An error is handed over in its image's place, for the caller to decide on.
    """
    pool = concurrent.futures.ThreadPoolExecutor()  # PIL lets go of the interpreter while it decodes and resizes
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    try:
        for file in files:
            waiting.append(pool.submit(_decode_or_error, file, size))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also where the caller stops early
        pool.shutdown(wait=False, cancel_futures=True)


def _decode_or_error(file: str, size: int) -> np.ndarray | Unreadable:
    try:
        return decode(file, size)
    except Unreadable as error:
        return error


def _rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode == "F":
        raise ValueError("its values are floating point, of which the white is not known: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() >= 2**16:
            raise ValueError("its values have 32 bits, of which the white is not known: save it with 8 or 16 bits")
        image = PIL.Image.fromarray(((values + _SIXTEEN // 2) // _SIXTEEN).astype(np.uint8))
    if image.has_transparency_data:
        white = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
