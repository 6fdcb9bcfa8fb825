"""The views of an image, made on the device from uint8: crop, flip, RandAugment, jitter, grey, normalise, erase.

The parameter laws are torchvision's. What differs from it: the crop box is not rounded to whole pixels (it is resampled
anyway), and jitter applies its four operations in one fixed order. An option of probability or strength 0 is not in the
traced graph at all. Operations take one image, float32 [H, W, C] in [0, 1], and are batched by `jax.vmap`.
"""

import dataclasses
import math

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from grafit_jax.errors import UserError

# Where an image's uniform draws lie in its one vector of draws. The places are fixed, so that switching one option on
# leaves the other options' draws as they are. RandAugment's draws, 2 per operation, follow at the end.
_ATTEMPTS = 10  # at a box that fits, as in torchvision
_BOX = 2 * _ATTEMPTS + 2  # (area, ratio) per attempt, then the place (y, x)
_CROP = slice(0, _BOX)
_ERASE = slice(_BOX, 2 * _BOX)
_FLIP, _JITTER, _GREY, _ERASES = range(2 * _BOX, 2 * _BOX + 4)
_FACTORS = slice(2 * _BOX + 4, 2 * _BOX + 8)  # brightness, contrast, saturation, hue
_RANDAUGMENT = 2 * _BOX + 8

_ERASE_SCALE, _ERASE_RATIO = (0.02, 0.33), (0.3, 3.3)  # Zhong et al. 2017, torchvision's RandomErasing
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL and torchvision

# torchvision's RandAugment: its operations in its order; an operation is known by its place here.
OPS = (
    "identity shear_x shear_y translate_x translate_y rotate brightness color contrast sharpness posterize solarize "
    "autocontrast equalize"
).split()
_BINS = 31


@dataclasses.dataclass(frozen=True)
class Views:
    """How views are made; static and hashable.

    Attributes:
      size: side S of the square view, pixels.
      mean, std: one value per channel, for pixel values in [0, 1].
      crop_scale: range of the crop's share of the image's area; (1, 1) is no crop.
      crop_ratio: range of the crop's width / height, log-uniform.
      flip: probability of a horizontal flip.
      jitter: strengths of brightness, contrast, saturation and hue; a factor is uniform in [max(0, 1 - s), 1 + s], the
        hue shift in [-s, s] turns.
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
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_prob: float = 0.8
    grey: float = 0.0
    randaugment_ops: int = 0
    randaugment_magnitude: int = 9
    erase: float = 0.0

    def __post_init__(self):
        for name in ("mean", "std", "crop_scale", "crop_ratio", "jitter"):  # lists, as JSON gives them, do not hash
            object.__setattr__(self, name, tuple(getattr(self, name)))
        probability = "a probability, 0 to 1"
        wanted = (
            ("size", self.size >= 1, "at least 1 pixel"),
            ("std", len(self.std) == len(self.mean) and min(self.std, default=0) > 0, "as many as mean, all above 0"),
            ("crop_scale", _is_range(self.crop_scale) and self.crop_scale[1] <= 1, "(low, high), 0 < low <= high <= 1"),
            ("crop_ratio", _is_range(self.crop_ratio), "(low, high), 0 < low <= high"),
            ("jitter", len(self.jitter) == 4 and min(self.jitter) >= 0 and self.jitter[3] <= 0.5, "4 strengths from 0, "
             "the last (hue) at most 0.5"),
            ("randaugment_ops", self.randaugment_ops >= 0, "0 or more"),
            ("randaugment_magnitude", 0 <= self.randaugment_magnitude < _BINS, "0 to 30"),
            *((n, 0 <= getattr(self, n) <= 1, probability) for n in ("flip", "jitter_prob", "grey", "erase")),
        )
        for name, right, want in wanted:
            if not right:
                raise UserError(f"views.{name} = {getattr(self, name)}, want {want}: correct it.")


def random_views(images: Array, ids: Array, key: Array, *, views: Views, num_views: int) -> Array:
    """T random views of each image.

    View t of image b depends on its pixels, `key`, ids[b] and t alone: not on its batch, its place there, or the device.

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
    _check_channels(images, views)
    draws = _RANDAUGMENT + 2 * views.randaugment_ops

    def view(image, id_, t):
        u = jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, id_), t), (draws,))
        return _view(image, u, views)

    per_image = jax.vmap(view, in_axes=(0, 0, None))
    return jax.vmap(per_image, in_axes=(None, None, 0))(_unit_range(images), ids, jnp.arange(num_views))


def plain_view(images: Array, *, views: Views) -> Array:
    """The view for evaluation: the whole image, resized (bilinear, antialiased) if its size differs, and normalised.

    Args:
      images: uint8 [B, H, W, C].
      views: `size`, `mean` and `std` are used.

    Returns:
      float32 [B, S, S, C].

    Raises:
      UserError: the number of channels is not that of `views.mean`, or neither 1 nor 3.
    """
    _check_channels(images, views)
    return normalise(jax.vmap(lambda x: resize(x, views.size))(_unit_range(images)), views)


def _view(image: Array, u: Array, views: Views) -> Array:
    """One view [S, S, C] of one image [H, W, C] in [0, 1], from its uniform draws."""
    height, width, channels = image.shape
    if views.crop_scale == (1, 1):
        x = resize(image, views.size)
    else:
        x = crop(image, *crop_box(u[_CROP], height, width, views.crop_scale, views.crop_ratio), views.size)
    if views.flip:
        x = jnp.where(u[_FLIP] < views.flip, x[:, ::-1], x)
    for i in range(views.randaugment_ops):
        op, sign = u[_RANDAUGMENT + 2 * i], u[_RANDAUGMENT + 2 * i + 1]
        x = randaugment_op(x, (op * len(OPS)).astype(jnp.int32), sign < 0.5, views.randaugment_magnitude)
    if any(views.jitter) and views.jitter_prob:
        x = jnp.where(u[_JITTER] < views.jitter_prob, _jitter(x, u[_FACTORS], views.jitter), x)
    if views.grey and channels == 3:
        x = jnp.where(u[_GREY] < views.grey, grey(x), x)
    x = normalise(x, views)
    if views.erase:
        x = jnp.where((u[_ERASES] < views.erase) & erase_mask(u[_ERASE], views.size), 0.0, x)
    return x


def _unit_range(images: Array) -> Array:
    return images.astype(jnp.float32) / 255


def normalise(x: Array, views: Views) -> Array:
    """float32 [..., C] in [0, 1] -> (x - mean) / std."""
    return (x - np.asarray(views.mean, np.float32)) / np.asarray(views.std, np.float32)


# Geometry


def resize(image: Array, size: int) -> Array:
    """The image at size x size; untouched if it has that size."""
    if image.shape[:2] == (size, size):
        return image
    return jax.image.resize(image, (size, size, image.shape[2]), "linear", antialias=True)


def crop(image: Array, top: Array, left: Array, height: Array, width: Array, size: int) -> Array:
    """The box (pixels, fractions allowed) of the image at size x size, bilinear and antialiased.

    Two small matrix products. At its border the filter also sees the image's pixels just outside of the box.
    """
    scale = jnp.stack([size / height, size / width])
    translation = -jnp.stack([top, left]) * scale
    shape = (size, size, image.shape[2])
    return jax.image.scale_and_translate(image, shape, (0, 1), scale, translation, "linear", antialias=True)


def _first_fit(u: Array, area: float, scale, ratio, fits) -> tuple[Array, Array, Array]:
    """(height, width, whether any fits) of the first of the boxes that fits: area uniform, width/height log-uniform."""
    areas = area * (scale[0] + u[: 2 * _ATTEMPTS : 2] * (scale[1] - scale[0]))
    log_ratio = math.log(ratio[0]) + u[1 : 2 * _ATTEMPTS : 2] * (math.log(ratio[1]) - math.log(ratio[0]))
    root = jnp.exp(log_ratio / 2)
    heights, widths = jnp.sqrt(areas) / root, jnp.sqrt(areas) * root
    fitting = fits(heights, widths)
    first = jnp.argmax(fitting)
    return heights[first], widths[first], fitting[first]


def crop_box(u: Array, height: int, width: int, scale, ratio) -> tuple[Array, Array, Array, Array]:
    """(top, left, height, width), float pixels, of a random crop by the law of torchvision's RandomResizedCrop.

    Args:
      u: uniform draws [22].
      height: of the image.
      width: of the image.
      scale: range of the crop's share of the area.
      ratio: range of its width / height.

    Ten attempts at a box inside the image; if none fits, the largest central box of an allowed ratio.
    """
    h, w, found = _first_fit(u, height * width, scale, ratio, lambda h, w: (h <= height) & (w <= width))
    h = jnp.where(found, h, min(height, width / ratio[0]))
    w = jnp.where(found, w, min(width, height * ratio[1]))
    top, left = (jnp.where(found, place, 0.5) for place in u[2 * _ATTEMPTS :])
    return top * (height - h), left * (width - w), h, w


def erase_mask(u: Array, size: int) -> Array:
    """bool [size, size, 1], a random rectangle by the law of torchvision's RandomErasing, from uniform draws [22].

    All False in the rare case that none of ten attempts fits.
    """
    # RandomErasing's ratio is height / width, hence the inverted range.
    ratio = (1 / _ERASE_RATIO[1], 1 / _ERASE_RATIO[0])
    smaller = lambda h, w: (jnp.round(h) < size) & (jnp.round(w) < size)  # noqa: E731
    h, w, found = _first_fit(u, size * size, _ERASE_SCALE, ratio, smaller)
    h, w = jnp.round(h), jnp.round(w)
    y, x = u[2 * _ATTEMPTS :]
    top, left = jnp.floor(y * (size - h + 1)), jnp.floor(x * (size - w + 1))
    pixel = jnp.arange(size)
    rows, columns = (pixel >= top) & (pixel < top + h), (pixel >= left) & (pixel < left + w)
    return (found & rows[:, None] & columns)[..., None]


# Colour. Of dm_pix only adjust_hue has torchvision's meaning: its brightness adds, its contrast takes a mean per channel
# and its saturation scales that of HSV, where torchvision blends with black, with the mean grey and with the grey image.


def grey(image: Array) -> Array:
    """The luma in every channel; a one-channel image as it is."""
    if image.shape[2] == 1:
        return image
    red, green, blue = jnp.split(image, 3, axis=2)
    return jnp.broadcast_to(_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue, image.shape)


def blend(other: Array, image: Array, factor: Array) -> Array:
    """other at factor 0, the image at 1, beyond it above; kept in [0, 1]."""
    return jnp.clip(other + factor * (image - other), 0, 1)


def brightness(image: Array, factor: Array) -> Array:
    """Blends with black."""
    return blend(jnp.float32(0), image, factor)


def _mean_grey(image: Array) -> Array:
    return jnp.mean(grey(jnp.mean(image, (0, 1), keepdims=True)))  # the luma is linear: it can wait for the mean


def contrast(image: Array, factor: Array) -> Array:
    """Blends with the mean of the grey image."""
    return blend(_mean_grey(image), image, factor)


def saturation(image: Array, factor: Array) -> Array:
    """Blends with the grey image; a one-channel image stays."""
    return blend(grey(image), image, factor)


def hue(image: Array, turns: Array) -> Array:
    """Turns the hue (1 is the full circle); a one-channel image stays."""
    return image if image.shape[2] == 1 else dm_pix.adjust_hue(image, turns)


def _jitter(image: Array, u: Array, strengths) -> Array:
    """ColorJitter in the fixed order brightness, contrast, saturation, hue, from uniform draws [4]."""
    for place, (strength, op) in enumerate(zip(strengths[:3], (brightness, contrast, saturation), strict=True)):
        if strength:
            low = max(0.0, 1 - strength)
            image = op(image, low + u[place] * (1 + strength - low))
    if strengths[3]:
        image = hue(image, (2 * u[3] - 1) * strengths[3])
    return image


# RandAugment


def inverse_affine(op: str, sign: int, magnitude: int, height: int, width: int) -> np.ndarray:
    """float32 [2, 3]: where a geometric operation finds the (x, y) of an output point; the identity for any other."""
    level = sign * magnitude / (_BINS - 1)
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
        angle = math.radians(30 * level)
        matrix[:, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        centre = np.array([width / 2, height / 2])
        matrix[:, 2] = centre - matrix[:, :2] @ centre
    return matrix.astype(np.float32)


def warp(image: Array, matrix: Array) -> Array:
    """Each output pixel from the nearest input pixel to matrix [2, 3] times its centre (x, y, 1); black outside."""
    height, width, channels = image.shape
    y, x = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    column, row = (jnp.floor(m[0] * x + m[1] * y + m[2]).astype(jnp.int32) for m in matrix)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    pixels = image.reshape(-1, channels)[jnp.where(inside, row * width + column, 0)]
    return jnp.where(inside[..., None], pixels, 0.0)


def smooth(image: Array) -> Array:
    """Mean over 3 x 3 pixels in which the centre counts 5 times; the border pixels as they are (PIL's SMOOTH)."""
    height, width, _ = image.shape
    if min(height, width) < 3:
        return image
    inner = image[1:-1, 1:-1]
    box = sum(image[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3))
    return image.at[1:-1, 1:-1].set((box + 4 * inner) / 13)


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
    spread = high > low
    return jnp.where(spread, (image - low) / jnp.where(spread, high - low, 1), image)


def equalize(image: Array) -> Array:
    """Makes the histogram of each channel's 256 levels flat, by PIL's integer arithmetic.

    A channel of too few pixels (255 or less beside its brightest level) stays.
    """
    height, width, channels = image.shape
    level = jnp.round(image * 255).astype(jnp.int32).reshape(-1, channels)
    histogram = jnp.zeros((256, channels), jnp.int32).at[level, jnp.arange(channels)].add(1)
    below = jnp.cumsum(histogram, 0) - histogram
    brightest = jnp.take_along_axis(histogram, jnp.max(level, 0)[None], 0)
    step = (height * width - brightest) // 255
    table = jnp.minimum((below + step // 2) // jnp.maximum(step, 1), 255)
    equal = jnp.take_along_axis(table, level, 0).reshape(image.shape) / 255
    return jnp.where(step > 0, equal, image)


def randaugment_op(image: Array, op: Array, sign: Array, magnitude: int) -> Array:
    """One operation of RandAugment on float32 [H, W, C] in [0, 1].

    Args:
      image: float32 [H, W, C] in [0, 1].
      op: int, the operation's place in OPS.
      sign: bool, whether it weakens or turns the other way, where it has a direction.
      magnitude: 0 to 30, in the ranges of torchvision's RandAugment.

    One program for all operations: a single warp (nearest pixel, torchvision's default), a single blend, and a choice
    between them and the operations on levels.
    """
    height, width, _ = image.shape
    strength = magnitude / (_BINS - 1)
    matrices = np.array([[inverse_affine(o, s, magnitude, height, width) for o in OPS] for s in (1, -1)])
    warped = warp(image, jnp.asarray(matrices)[sign.astype(jnp.int32), op])

    def chosen(*names):
        return sum(op == OPS.index(name) for name in names) > 0

    other = _mean_grey(image)
    other = jnp.where(chosen("brightness"), 0.0, other)
    other = jnp.where(chosen("color"), grey(image), other)
    other = jnp.where(chosen("sharpness"), smooth(image), other)
    blended = blend(other, image, 1 + jnp.where(sign, -0.9, 0.9) * strength)

    x = jnp.where(chosen("brightness", "color", "contrast", "sharpness"), blended, warped)
    x = jnp.where(chosen("posterize"), posterize(image, 8 - round(4 * strength)), x)
    x = jnp.where(chosen("solarize"), solarize(image, 255 * (1 - strength)), x)
    x = jnp.where(chosen("autocontrast"), autocontrast(image), x)
    return jnp.where(chosen("equalize"), equalize(image), x)


def _is_range(values) -> bool:
    return len(values) == 2 and 0 < values[0] <= values[1]


def _check_channels(images: Array, views: Views) -> None:
    channels = images.shape[-1]
    if channels not in (1, 3) or channels != len(views.mean):
        raise UserError(
            f"images of {channels} channels and views.mean of {len(views.mean)} values: want 1 or 3 of both; "
            "set views.mean and views.std to fit the data."
        )
