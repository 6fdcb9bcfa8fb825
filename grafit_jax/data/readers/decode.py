"""Decoding of image files to upright RGB pixels, on all CPU cores."""

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

# An image file, or an image in memory.
Source = str | pathlib.Path | PIL.Image.Image | np.ndarray
# The formats to decode, whatever the suffix; none that runs another program (EPS).
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")
)
# Scales 16-bit values to 8 bits: 65535 / 255.
_SCALE_16_TO_8 = 257


class Unreadable(Exception):
    """A file cannot be decoded; the message is one line with its path and the reason."""


def decode(file: Source) -> np.ndarray:
    """Decodes the first frame of an image to RGB.

    Applies the EXIF orientation, composites transparency on white and scales 16-bit values to 8 bits.

    Args:
      file: a JPEG, PNG, GIF, BMP, TIFF, WebP or PPM file, a PIL image, or uint8 [H, W], [H, W, 1], [H, W, 3] or
        [H, W, 4].

    Returns:
      uint8 [H, W, 3].

    Raises:
      Unreadable: the file is missing, not permitted, no image, truncated, larger than PIL's limit of 179 million
        pixels, or has values without a known white level (32 bits).
    """
    with _opened(file) as image:
        return np.asarray(_upright(image))


def decode_boxes(file: Source, size: int, boxes: Boxes) -> np.ndarray:
    """Decodes an image once and returns T boxes of it, resized to S x S (bilinear, antialiased).

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if the smallest box keeps a side of at least 2 S, as in
    `PIL.Image.thumbnail`, which saves most of the time.

    Args:
      file: as for `decode`.
      size: S, pixels.
      boxes: maps (height, width) to the boxes (top, left, height, width) in pixels, [T, 4]; see `crops`.

    Returns:
      uint8 [T, S, S, 3].

    Raises:
      Unreadable: as for `decode`.
    """
    with _opened(file) as image:
        sides = image.size
        if min(sides) >= 4 * size:  # below that, not even a box of the whole image allows 1/2
            # The EXIF orientation is applied later: take the smaller box of both orientations.
            smallest = min(float(boxes(*shape)[:, 2:].min()) for shape in (sides, sides[::-1]))
            image.draft(None, (math.ceil(sides[0] * 2 * size / smallest), math.ceil(sides[1] * 2 * size / smallest)))
        upright = _upright(image)
        top, left, height, width = boxes(upright.height, upright.width).T
        # Rounding may put a box slightly outside the image.
        corners = np.stack([left, top, left + width, top + height], axis=1).clip(0, np.tile(upright.size, 2))
        crops = np.empty((len(corners), size, size, 3), np.uint8)
        for crop, box in zip(crops, corners.tolist(), strict=True):
            crop[:] = np.asarray(upright.resize((size, size), PIL.Image.Resampling.BILINEAR, box=tuple(box)))
        return crops


def decode_to(file: Source, shape: tuple[int, int, int], boxes: Boxes) -> np.ndarray:
    """Decodes an image and resizes it to uint8 [H, W, C], as `decode_boxes` does.

    Args:
      file: as for `decode`.
      shape: (H, W, C), with C 3 for RGB or 1 for greyscale.
      boxes: maps (height, width) to one box; not used unless H = W.

    Raises:
      Unreadable: as for `decode`.
    """
    height, width, channels = shape
    if height == width:
        image = decode_boxes(file, height, boxes)[0]
    else:
        with _opened(file) as opened:
            image = np.asarray(_upright(opened).resize((width, height), PIL.Image.Resampling.BILINEAR))
    return image if channels == 3 else np.asarray(PIL.Image.fromarray(image).convert("L"))[..., None]


def name_of(file: Source) -> str:
    """Returns the path of an image, or a description of one in memory."""
    return f"an array {list(file.shape)}" if isinstance(file, np.ndarray) else str(file)


def decode_all(decoders: Iterable[Callable[[], np.ndarray]], ahead: int) -> Iterator[np.ndarray | Unreadable]:
    """Calls decoders on all CPU cores and yields their results in order, prefetching up to `ahead` of them.

    An `Unreadable` error is yielded in place of its image.
    """
    pool = concurrent.futures.ThreadPoolExecutor()  # PIL releases the GIL while it decodes and resizes
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    try:
        for decoder in decoders:
            waiting.append(pool.submit(attempt, decoder))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also runs if the caller stops early
        pool.shutdown(wait=False, cancel_futures=True)


def attempt(decoder: Callable[[], np.ndarray]) -> np.ndarray | Unreadable:
    """Returns what a decoder returns, or the `Unreadable` that it raises."""
    try:
        return decoder()
    except Unreadable as error:
        return error


@contextlib.contextmanager
def _opened(file: Source) -> Iterator[PIL.Image.Image]:
    """Opens an image; raises any error in reading it as `Unreadable`."""
    try:
        if isinstance(file, np.ndarray):
            yield PIL.Image.fromarray(file[..., 0] if file.shape[2:] == (1,) else file)
            return
        if isinstance(file, PIL.Image.Image):
            yield file.copy()  # the caller's image stays as it is
            return
        with PIL.Image.open(file, formats=_FORMATS) as image:
            yield image
    except PIL.UnidentifiedImageError as error:
        raise Unreadable(f"{name_of(file)} (no {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]})") from error
    except Exception as error:  # decoders raise arbitrary exceptions on damaged files
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise Unreadable(f"{name_of(file)} ({reason})") from error


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Returns the image in RGB with its EXIF orientation applied, which may change `image`."""
    PIL.ImageOps.exif_transpose(image, in_place=True)
    return _rgb(image)


def _rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode == "F":
        raise ValueError("found floating-point values, whose white level is unknown; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if np.min(values) < 0 or np.max(values) >= 2**16:
            raise ValueError("found 32-bit values, whose white level is unknown; save it with 8 or 16 bits")
        image = PIL.Image.fromarray(((values + _SCALE_16_TO_8 // 2) // _SCALE_16_TO_8).astype(np.uint8))
    if image.has_transparency_data:
        white = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")  # without the copy that `convert` makes
