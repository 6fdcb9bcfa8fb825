"""The views of an image, made on the device from uint8.

In this order: crop, flip, RandAugment, jitter, grey, normalise, erase. The parameter laws are torchvision's.
What differs from it: the crop box is not rounded to whole pixels (it is resampled anyway), and jitter applies
its operations in one fixed order. An option of probability or strength 0 is not in the traced graph.

The operations take one image, float32 [H, W, C] in [0, 1] with C = 1 or 3, and `jax.vmap` batches them.
"""

import dataclasses
import math
from collections.abc import Sequence

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from grafit_jax.errors import UserError

# Where an image's uniform draws lie in its one vector of draws. The places are fixed, so that switching one
# option on leaves the draws of the others as they are. RandAugment's, 2 per operation, follow at the end.
_ATTEMPTS = 10  # at a box that fits, as in torchvision
_BOX = 2 * _ATTEMPTS + 2  # (area, ratio) per attempt, then the place (y, x)
_CROP = slice(0, _BOX)
_ERASE = slice(_BOX, 2 * _BOX)
_FLIPPED, _JITTERED, _GREYED, _ERASED = range(2 * _BOX, 2 * _BOX + 4)
_FACTORS = slice(2 * _BOX + 4, 2 * _BOX + 8)  # brightness, contrast, saturation, hue
_RANDAUGMENT = 2 * _BOX + 8

_ERASE_SCALE, _ERASE_RATIO = (0.02, 0.33), (1 / 3.3, 1 / 0.3)  # torchvision's range is of height / width
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL and torchvision have it
_MAX_MAGNITUDE = 30  # of torchvision's RandAugment at 31 bins

# torchvision's RandAugment: its operations in its order. An operation is known by its place here.
_GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
_ENHANCE = ("brightness", "color", "contrast", "sharpness")
OPS = ("identity", *_GEOMETRIC, *_ENHANCE, "posterize", "solarize", "autocontrast", "equalize")

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Views:
    """How views are made; static and hashable.

    Attributes:
      size: side S of the square view, pixels.
      mean, std: one value per channel, for pixel values in [0, 1].
      crop_scale: range of the crop's share of the image's area; (1, 1) is no crop.
      crop_ratio: range of the crop's width / height, log-uniform.
      flip: probability of a horizontal flip.
      jitter: strengths s of brightness, contrast, saturation (factor uniform in [max(0, 1 - s), 1 + s]) and
        hue (shift uniform in [-s, s] turns, s at most 0.5).
      jitter_prob: probability that a view is jittered.
      grey: probability that a view loses its colour.
      randaugment_ops: RandAugment operations per view, drawn with replacement.
      randaugment_magnitude: their strength, 0 to 30.
      erase: probability that a rectangle of the view is set to 0 after normalisation.

    Raises:
      UserError: a value out of its range.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_scale: Range = (0.2, 1.0)
    crop_ratio: Range = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_prob: float = 0.8
    grey: float = 0.0
    randaugment_ops: int = 0
    randaugment_magnitude: int = 9
    erase: float = 0.0

    def __post_init__(self):
        for name in ("mean", "std", "crop_scale", "crop_ratio", "jitter"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # a list would not hash

        def want(right: bool, name: str, what: str) -> None:
            if not right:
                raise UserError(f"views.{name} = {getattr(self, name)}, want {what}: correct it.")

        want(self.size >= 1, "size", "at least 1 pixel")
        stds_fit = len(self.std) == len(self.mean) and all(s > 0 for s in self.std)
        want(stds_fit, "std", "as many values as mean has, all above 0")
        want(_is_range(self.crop_scale) and self.crop_scale[1] <= 1, "crop_scale", "0 < low <= high <= 1")
        want(_is_range(self.crop_ratio), "crop_ratio", "0 < low <= high")
        jitter_fits = len(self.jitter) == 4 and all(s >= 0 for s in self.jitter) and self.jitter[3] <= 0.5
        want(jitter_fits, "jitter", "4 strengths, 0 or more, the last at most 0.5")
        want(self.randaugment_ops >= 0, "randaugment_ops", "0 or more")
        want(0 <= self.randaugment_magnitude <= _MAX_MAGNITUDE, "randaugment_magnitude", "0 to 30")
        for name in ("flip", "jitter_prob", "grey", "erase"):
            want(0 <= getattr(self, name) <= 1, name, "a probability")


def random_views(images: Array, ids: Array, key: Array, *, views: Views, num_views: int) -> Array:
    """T random views of each image.

    View t of image b depends on its pixels, `key`, ids[b] and t alone: not on its batch, its place there,
    or the device.

    Args:
      images: uint8 [B, H, W, C], C = 1 or 3.
      ids: int [B], the images' positions in the split.
      key: a PRNG key, already folded with seed and step.
      views: what to do.
      num_views: T.

    Returns:
      float32 [T, B, S, S, C], normalised.

    Raises:
      UserError: the number of channels is not that of `views.mean`, or neither 1 nor 3.
    """
    check_channels(images.shape[-1], views.mean, views.std)
    draws = _RANDAUGMENT + 2 * views.randaugment_ops

    def view(image, id_, t):
        u = jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, id_), t), (draws,))
        return _view(image, u, views)

    view = jax.vmap(jax.vmap(view, in_axes=(0, 0, None)), in_axes=(None, None, 0))
    return view(images.astype(jnp.float32) / 255, ids, jnp.arange(num_views))


def plain_view(images: Array, *, views: Views) -> Array:
    """The view for evaluation: the whole image, resized (bilinear, antialiased) if need be, and normalised.

    Args:
      images: uint8 [B, H, W, C].
      views: `size`, `mean` and `std` are used.

    Returns:
      float32 [B, S, S, C].

    Raises:
      UserError: as for `random_views`.
    """
    check_channels(images.shape[-1], views.mean, views.std)
    x = jax.vmap(lambda image: resize(image, views.size))(images.astype(jnp.float32) / 255)
    return normalise(x, views)


def _view(image: Array, u: Array, views: Views) -> Array:
    """One view [S, S, C] of one image [H, W, C] in [0, 1], from its uniform draws."""
    height, width, channels = image.shape
    if views.crop_scale == (1, 1):
        x = resize(image, views.size)
    else:
        x = crop(image, crop_box(u[_CROP], height, width, views.crop_scale, views.crop_ratio), views.size)
    if views.flip:
        x = jnp.where(u[_FLIPPED] < views.flip, x[:, ::-1], x)
    for i in range(views.randaugment_ops):
        op, sign = u[_RANDAUGMENT + 2 * i], u[_RANDAUGMENT + 2 * i + 1]
        x = randaugment_op(x, (op * len(OPS)).astype(jnp.int32), sign < 0.5, views.randaugment_magnitude)
    if any(views.jitter) and views.jitter_prob:
        x = jnp.where(u[_JITTERED] < views.jitter_prob, _jitter(x, u[_FACTORS], views.jitter), x)
    if views.grey and channels == 3:
        x = jnp.where(u[_GREYED] < views.grey, grey(x), x)
    x = normalise(x, views)
    if views.erase:
        x = jnp.where((u[_ERASED] < views.erase) & erase_mask(u[_ERASE], views.size), 0.0, x)
    return x


def _is_range(values: tuple) -> bool:
    return len(values) == 2 and 0 < values[0] <= values[1]


def check_channels(channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raises UserError unless images of so many channels can be normalised."""
    if channels not in (1, 3) or channels != len(mean) or channels != len(std):
        raise UserError(
            f"images of {channels} channels and views.mean of {len(mean)} values, want 1 or 3 of both: "
            "set views.mean and views.std to fit the data."
        )


def normalise(x: Array, views: Views) -> Array:
    """(x - mean) / std for float32 [..., C] in [0, 1]."""
    return (x - np.asarray(views.mean, np.float32)) / np.asarray(views.std, np.float32)


def resize(image: Array, size: int) -> Array:
    """The image at size x size; untouched if it has that size."""
    if image.shape[:2] == (size, size):
        return image
    return jax.image.resize(image, (size, size, image.shape[2]), "linear", antialias=True)


def crop(image: Array, box: tuple[Array, ...], size: int) -> Array:
    """The box (top, left, height, width; pixels, fractions allowed) at size x size, bilinear and antialiased.

    Two small matrix products. At the box's border the filter also sees the pixels just outside of it.
    """
    top, left, height, width = box
    shape, scale = (size, size, image.shape[2]), jnp.stack([size / height, size / width])
    translation = -jnp.stack([top, left]) * scale
    return jax.image.scale_and_translate(image, shape, (0, 1), scale, translation, "linear")


def _first_fit(u: Array, area: float, scale: Range, ratio: Range, limits: Range) -> tuple[Array, ...]:
    """(height, width, whether it fits) of the first of ten boxes that keeps to the limits (height, width)."""
    area_draws, ratio_draws = u[: 2 * _ATTEMPTS].reshape(_ATTEMPTS, 2).T
    areas = area * (scale[0] + area_draws * (scale[1] - scale[0]))
    roots = jnp.exp((math.log(ratio[0]) + ratio_draws * math.log(ratio[1] / ratio[0])) / 2)
    heights, widths = jnp.sqrt(areas) / roots, jnp.sqrt(areas) * roots
    fits = (heights <= limits[0]) & (widths <= limits[1])
    first = jnp.argmax(fits)
    return heights[first], widths[first], fits[first]


def crop_box(u: Array, height: int, width: int, scale: Range, ratio: Range) -> tuple[Array, ...]:
    """(top, left, height, width), float pixels: a crop by the law of torchvision's RandomResizedCrop.

    Ten attempts at a box inside the height x width image, from uniform draws [22]; if none fits, the largest
    central box of an allowed ratio.
    """
    h, w, found = _first_fit(u, height * width, scale, ratio, (height, width))
    h = jnp.where(found, h, min(height, width / ratio[0]))
    w = jnp.where(found, w, min(width, height * ratio[1]))
    y, x = jnp.where(found, u[2 * _ATTEMPTS :], 0.5)
    return y * (height - h), x * (width - w), h, w


def erase_mask(u: Array, size: int) -> Array:
    """bool [size, size, 1]: a rectangle by the law of torchvision's RandomErasing, from uniform draws [22].

    All False in the rare case that none of ten attempts fits.
    """
    # Rounded to whole pixels, less than the side.
    h, w, found = _first_fit(u, size * size, _ERASE_SCALE, _ERASE_RATIO, (size - 0.5, size - 0.5))
    h, w = jnp.round(h), jnp.round(w)
    y, x = u[2 * _ATTEMPTS :]
    top, left = jnp.floor(y * (size - h + 1)), jnp.floor(x * (size - w + 1))
    pixel = jnp.arange(size)
    rows, columns = (pixel >= top) & (pixel < top + h), (pixel >= left) & (pixel < left + w)
    return (found & rows[:, None] & columns)[..., None]


# Colour. Of dm_pix only adjust_hue has torchvision's meaning: its brightness adds, its contrast takes a mean
# per channel, its saturation scales that of HSV; torchvision blends with black, mean grey and the grey image.


def grey(image: Array) -> Array:
    """The luma in every channel; a one-channel image as it is."""
    if image.shape[2] == 1:
        return image
    red, green, blue = jnp.split(image, 3, axis=2)  # a dot product with 3 numbers is 40 times slower on CPU
    return jnp.broadcast_to(_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue, image.shape)


def blend(other: Array, image: Array, factor: Array) -> Array:
    """`other` at factor 0, the image at 1, beyond it above 1; kept in [0, 1]."""
    return jnp.clip(other + factor * (image - other), 0, 1)


def brightness(image: Array, factor: Array) -> Array:
    """Blends with black."""
    return blend(jnp.float32(0), image, factor)


def _mean_grey(image: Array) -> Array:
    return jnp.mean(grey(jnp.mean(image, (0, 1), keepdims=True)))  # the luma is linear: it can wait


def contrast(image: Array, factor: Array) -> Array:
    """Blends with the mean of the grey image."""
    return blend(_mean_grey(image), image, factor)


def saturation(image: Array, factor: Array) -> Array:
    """Blends with the grey image; a one-channel image stays."""
    return blend(grey(image), image, factor)


def hue(image: Array, turns: Array) -> Array:
    """Turns the hue, 1 being the full circle; a one-channel image stays."""
    return image if image.shape[2] == 1 else dm_pix.adjust_hue(image, turns)


def _jitter(image: Array, u: Array, strengths: tuple) -> Array:
    """Brightness, contrast, saturation, hue in this order (torchvision shuffles), from uniform draws [4]."""
    for draw, strength, op in zip(u, strengths, (brightness, contrast, saturation, hue), strict=True):
        if strength and op is hue:
            image = hue(image, (2 * draw - 1) * strength)
        elif strength:
            low = max(0.0, 1 - strength)
            image = op(image, low + draw * (1 + strength - low))
    return image


def inverse_affine(op: str, sign: int, magnitude: int, height: int, width: int) -> np.ndarray:
    """float32 [2, 3] from an output point to where a geometric operation finds it; else the identity."""
    level = sign * magnitude / _MAX_MAGNITUDE
    matrix = np.eye(2, 3)
    if op == "shear_x":
        matrix[0, 1] = 0.3 * level
    elif op == "shear_y":
        matrix[1, 0] = 0.3 * level
    elif op == "translate_x":
        matrix[0, 2] = -int(150 / 331 * width * level)  # whole pixels
    elif op == "translate_y":
        matrix[1, 2] = -int(150 / 331 * height * level)
    elif op == "rotate":
        sin, cos = math.sin(math.radians(30 * level)), math.cos(math.radians(30 * level))
        matrix[:, :2] = [[cos, -sin], [sin, cos]]
        matrix[:, 2] = (np.eye(2) - matrix[:, :2]) @ [width / 2, height / 2]  # about the centre
    return matrix.astype(np.float32)


def warp(image: Array, matrix: Array) -> Array:
    """Takes each pixel, centre (x, y), from the pixel that holds matrix [2, 3] @ (x, y, 1); black outside."""
    height, width, channels = image.shape
    y, x = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    column, row = (jnp.floor(m[0] * x + m[1] * y + m[2]).astype(jnp.int32) for m in matrix)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    pixels = image.reshape(-1, channels)[jnp.where(inside, row * width + column, 0)]
    return jnp.where(inside[..., None], pixels, 0.0)


def smooth(image: Array) -> Array:
    """Mean over 3 x 3 pixels in which the centre counts 5 times; border pixels as they are (PIL's SMOOTH)."""
    height, width, _ = image.shape
    if min(height, width) < 3:
        return image
    box = sum(image[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3))
    inner = jnp.pad((box + 4 * image[1:-1, 1:-1]) / 13, ((1, 1), (1, 1), (0, 0)))
    is_inner = np.pad(np.ones((height - 2, width - 2, 1), bool), ((1, 1), (1, 1), (0, 0)))
    return jnp.where(is_inner, inner, image)  # .at[].set would be a scatter, 10 times slower


def posterize(image: Array, bits: int) -> Array:
    """Keeps the highest bits of the image's 256 levels."""
    step = 2 ** (8 - bits)
    return jnp.floor(jnp.round(image * 255) / step) * step / 255


def solarize(image: Array, threshold: float) -> Array:
    """Inverts the values from the threshold (0 to 255) on."""
    return jnp.where(jnp.round(image * 255) >= threshold, 1 - image, image)


def autocontrast(image: Array) -> Array:
    """Stretches each channel to [0, 1]; a constant channel stays."""
    low, high = jnp.min(image, (0, 1)), jnp.max(image, (0, 1))
    return jnp.where(high > low, (image - low) / jnp.where(high > low, high - low, 1), image)


def equalize(image: Array) -> Array:
    """Flattens the histogram of each channel's 256 levels by PIL's arithmetic.

    A channel with fewer than 255 pixels below its brightest level stays as it is.
    """
    channels = image.shape[2]
    level = jnp.round(image * 255).astype(jnp.int32).reshape(-1, channels)
    histogram = jnp.zeros((256, channels), jnp.int32).at[level, jnp.arange(channels)].add(1)
    below = jnp.cumsum(histogram, 0) - histogram
    step = jnp.max(jnp.where(histogram > 0, below, 0), 0) // 255
    # A floor division of integers; in float32 it is 4 times faster, and the 0.5 keeps it exact.
    table = jnp.floor((below + step // 2 + 0.5) / jnp.maximum(step, 1))
    equal = jnp.take_along_axis(jnp.minimum(table, 255), level, 0).reshape(image.shape) / 255
    return jnp.where(step > 0, equal, image)


def randaugment_op(image: Array, op: Array, sign: Array, magnitude: int) -> Array:
    """One operation of RandAugment, with the ranges of torchvision.

    Args:
      image: float32 [H, W, C] in [0, 1].
      op: int, the operation's place in OPS.
      sign: bool, True for the other direction (left, darker, ...) of an operation that has one.
      magnitude: 0 to 30.

    All are computed and one is chosen; the five geometric ones are a single warp (nearest pixel, as in
    torchvision), the four enhancements a single blend.
    """

    def is_op(*names):
        return jnp.any(op == jnp.array([OPS.index(name) for name in names]))

    height, width, _ = image.shape
    matrices = np.array([[inverse_affine(o, s, magnitude, height, width) for o in OPS] for s in (1, -1)])
    warped = warp(image, jnp.asarray(matrices)[sign.astype(jnp.int32), op])

    level = magnitude / _MAX_MAGNITUDE
    other = jnp.where(is_op("brightness"), 0.0, _mean_grey(image))
    other = jnp.where(is_op("color"), grey(image), other)
    other = jnp.where(is_op("sharpness"), smooth(image), other)
    blended = blend(other, image, 1 + jnp.where(sign, -0.9, 0.9) * level)

    x = jnp.where(is_op(*_ENHANCE), blended, warped)
    x = jnp.where(is_op("posterize"), posterize(image, 8 - round(4 * level)), x)
    x = jnp.where(is_op("solarize"), solarize(image, 255 * (1 - level)), x)
    x = jnp.where(is_op("autocontrast"), autocontrast(image), x)
    return jnp.where(is_op("equalize"), equalize(image), x)
