"""Image files to pixels, upright and RGB whatever they hold, decoded on all processors of the host."""

import collections
import concurrent.futures
import contextlib
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import PIL.Image
import PIL.ImageOps

from grafit_jax.views.crops import Boxes

# What is decoded, whatever a file calls itself: a format that would start another program (EPS) is none of them.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")
)
# 16 bits to 8: 65535 / 255.
_SIXTEEN = 257


class Unreadable(Exception):
    """A file that cannot be decoded; the message names it, with the reason, in one line."""


def decode(file: str | pathlib.Path) -> np.ndarray:
    """The first frame of a file as RGB, as its EXIF says it is to be held, transparency on white.

    16-bit values are scaled to 8 bits.

    Args:
      file: JPEG, PNG, GIF, BMP, TIFF, WebP or PPM.

    Returns:
      uint8 [H, W, 3].

    Raises:
      Unreadable: anything that keeps it from being decoded: not there, no permission, no image, cut short, more pixels
        than PIL trusts (179 million), values without a known white (32 bits).
    """
    with _opened(file) as image:
        return np.asarray(_upright(image))


def decode_boxes(file: str | pathlib.Path, size: int, boxes: Boxes) -> np.ndarray:
    """Parts of an image as `decode` reads it, each of them resized to S x S (bilinear, antialiased), of one decode.

    A JPEG is decoded at a half, a quarter or an eighth of its size where the smallest box keeps twice S a side (as
    `PIL.Image.thumbnail` does), which saves most of the time.

    Args:
      file: as for `decode`.
      size: S.
      boxes: from height and width to (top, left, height, width) of the parts, [T, 4]; see `crops`.

    Returns:
      uint8 [T, S, S, 3].

    Raises:
      Unreadable: as for `decode`.
    """
    with _opened(file) as image:
        sides = image.size
        if min(sides) >= 4 * size:  # of which a half is enough for the largest box
            # Whether it is stored on its side is known later, so the smallest box is that of either way.
            smallest = min(float(boxes(*way)[:, 2:].min()) for way in (sides, sides[::-1]))
            image.draft(None, (math.ceil(sides[0] * 2 * size / smallest), math.ceil(sides[1] * 2 * size / smallest)))
        upright = _upright(image)
        top, left, height, width = boxes(upright.height, upright.width).T
        # A box at the border may reach beyond it by a rounding error.
        corners = np.stack([left, top, left + width, top + height], axis=1).clip(0, np.tile(upright.size, 2))
        resized = [upright.resize((size, size), PIL.Image.Resampling.BILINEAR, box=tuple(c)) for c in corners.tolist()]
        return np.stack([np.asarray(part) for part in resized])


def decode_all(decoders: Iterable[Callable[[], np.ndarray]], ahead: int) -> Iterator[np.ndarray | Unreadable]:
    """What each decoder returns, in order, on all processors; up to `ahead` more than the one that is asked for.

    An `Unreadable` is handed over in its image's place, for the caller to decide on.
    """
    pool = concurrent.futures.ThreadPoolExecutor()  # PIL lets go of the interpreter while it decodes and resizes
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    try:
        for decoder in decoders:
            waiting.append(pool.submit(_decoded_or_error, decoder))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also where the caller stops early
        pool.shutdown(wait=False, cancel_futures=True)


def _decoded_or_error(decoder: Callable[[], np.ndarray]) -> np.ndarray | Unreadable:
    try:
        return decoder()
    except Unreadable as error:
        return error


@contextlib.contextmanager
def _opened(file: str | pathlib.Path) -> Iterator[PIL.Image.Image]:
    """The opened file; whatever goes wrong while it is read is an `Unreadable`."""
    try:
        with PIL.Image.open(file, formats=_FORMATS) as image:
            yield image
    except PIL.UnidentifiedImageError as error:
        raise Unreadable(f"{file} (no {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]})") from error
    except Exception as error:  # a decoder may raise anything at what is in a broken file
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise Unreadable(f"{file} ({reason})") from error


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Decoded, turned as its EXIF says, in RGB."""
    return _rgb(PIL.ImageOps.exif_transpose(image))


def _rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode == "F":
        raise ValueError("its values are floating point, of which the white is not known: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if np.min(values) < 0 or np.max(values) >= 2**16:
            raise ValueError("its values have 32 bits, of which the white is not known: save it with 8 or 16 bits")
        image = PIL.Image.fromarray(((values + _SIXTEEN // 2) // _SIXTEEN).astype(np.uint8))
    if image.has_transparency_data:
        white = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
