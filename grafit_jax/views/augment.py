"""Random and plain views of uint8 images, computed on the device.

The operations run in this order: crop, flip, perspective, AutoAugment, RandAugment, jitter, greyscale, blur, normalise,
erase. Their parameters have torchvision's distributions, with three differences: crop boxes are not rounded to whole
pixels, jitter applies its operations in a fixed order, and the blur radius is PIL's. An option of probability or
strength 0 is not traced.

`image_ops` has the operations on one image, `auto_augment` the policies.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from grafit_jax.errors import UserError
from grafit_jax.views import auto_augment, crops, image_ops
from grafit_jax.views.crops import Range

# The layout of an image's vector of uniform draws. It is fixed, so that enabling one option does not change the draws
# of the others. RandAugment's draws, 2 per operation, come last.
_CROP = slice(0, crops.DRAWS)
_ERASE = slice(crops.DRAWS, 2 * crops.DRAWS)
_FLIPPED, _JITTERED, _GREYED, _ERASED = range(_ERASE.stop, _ERASE.stop + 4)
_FACTORS = slice(_ERASED + 1, _ERASED + 5)  # brightness, contrast, saturation, hue
_AUTOAUGMENT = slice(_FACTORS.stop, _FACTORS.stop + auto_augment.AUTOAUGMENT_DRAWS)
_CORNERS = slice(_AUTOAUGMENT.stop, _AUTOAUGMENT.stop + 8)  # (x, y) per corner
_DISTORTED, _BLURRED, _RADIUS = range(_CORNERS.stop, _CORNERS.stop + 3)
_RANDAUGMENT = _RADIUS + 1

_ERASE_SCALE, _ERASE_RATIO = (0.02, 0.33), (1 / 3.3, 1 / 0.3)  # width / height; torchvision's is height / width
_BLUR_REACH = 3  # standard deviations; 0.3 % of a Gaussian lies beyond

AUTOAUGMENT = (False, True, "maskcon")  # `Views.autoaugment`


def resize_for(size: int) -> int:
    """Returns the usual shorter side, in pixels, to resize to before a centre crop of `size`: 256 for 224."""
    return round(8 / 7 * size)


@dataclasses.dataclass(frozen=True)
class Views:
    """The augmentation parameters; static and hashable.

    Attributes:
      size: the side S of the square view, pixels.
      mean, std: one value per channel, for pixel values in [0, 1].
      crop_scale: the range of the crop's share of the image's area; (1, 1) disables cropping.
      crop_ratio: the range of the crop's width / height, log-uniform.
      flip_prob: the probability of a horizontal flip.
      perspective: the maximum inward shift of a corner, as a share of half a side, 0 to 1.
      perspective_prob: the probability of a perspective distortion.
      autoaugment: AutoAugment's policy for CIFAR-10: True as in torchvision, "maskcon" as in MaskCon's code; or False.
      jitter: the strengths s of brightness, contrast, saturation (factor uniform in [max(0, 1 - s), 1 + s]) and
        hue (shift uniform in [-s, s] turns, s at most 0.5).
      jitter_prob: the probability of colour jitter.
      grayscale_prob: the probability of conversion to greyscale.
      blur: the range of the Gaussian's standard deviation in pixels, uniform; (0, 0) disables blurring.
      blur_prob: the probability of blurring.
      randaugment_ops: the number of RandAugment operations per view, drawn with replacement.
      randaugment_magnitude: their magnitude, 0 to 30.
      erase_prob: the probability of setting a rectangle to 0 after normalisation.
      resize: for the plain view only: 0 uses the whole image; above 0, the shorter side is resized to `resize` pixels
        and the centre is cropped.

    Raises:
      UserError: a value is out of range.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_scale: Range = (0.2, 1.0)
    crop_ratio: Range = (3 / 4, 4 / 3)
    flip_prob: float = 0.5
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_prob: float = 0.8
    grayscale_prob: float = 0.0
    randaugment_ops: int = 0
    randaugment_magnitude: int = 9
    erase_prob: float = 0.0
    autoaugment: bool | str = False
    perspective: float = 0.0
    perspective_prob: float = 0.5
    blur: Range = (0.0, 0.0)
    blur_prob: float = 0.5
    resize: int = 0

    def __post_init__(self):
        for name in ("mean", "std", "crop_scale", "crop_ratio", "jitter", "blur"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # a list is not hashable

        def check(valid: bool, name: str, expected: str) -> None:
            if not valid:
                raise UserError(f"found views.{name} = {getattr(self, name)}; expected {expected}.")

        check(self.size >= 1, "size", "at least 1 pixel")
        stds_fit = len(self.std) == len(self.mean) and all(s > 0 for s in self.std)
        check(stds_fit, "std", "as many values as in mean, all above 0")
        check(_is_range(self.crop_scale) and self.crop_scale[1] <= 1, "crop_scale", "0 < low <= high <= 1")
        check(_is_range(self.crop_ratio), "crop_ratio", "0 < low <= high")
        jitter_fits = len(self.jitter) == 4 and all(s >= 0 for s in self.jitter) and self.jitter[3] <= 0.5
        check(jitter_fits, "jitter", "4 strengths, 0 or more, the last at most 0.5")
        check(self.resize == 0 or self.resize >= self.size, "resize", f"0 or at least views.size, {self.size}")
        check(self.randaugment_ops >= 0, "randaugment_ops", "0 or more")
        check(0 <= self.randaugment_magnitude <= auto_augment.MAX_MAGNITUDE, "randaugment_magnitude", "0 to 30")
        check(0 <= self.perspective <= 1, "perspective", "a share of half a side, 0 to 1")
        check(self.autoaugment in AUTOAUGMENT, "autoaugment", 'True, False or "maskcon"')
        check(len(self.blur) == 2 and 0 <= self.blur[0] <= self.blur[1], "blur", "0 <= low <= high")
        for name in ("flip_prob", "jitter_prob", "grayscale_prob", "perspective_prob", "blur_prob", "erase_prob"):
            check(0 <= getattr(self, name) <= 1, name, "a probability")


def random_views(images: Array, ids: Array, key: Array, *, views: Views, num_views: int) -> Array:
    """Returns T random views of each image.

    View t of image b depends only on its pixels, `key`, ids[b] and t, and not on the rest of the batch or the device.

    Args:
      images: uint8 [B, H, W, C], C = 1 or 3; or [B, T, H, W, C], with one input for each view.
      ids: the images' positions in the split, int [B].
      key: a PRNG key, already folded with seed and step.
      views: the augmentation parameters.
      num_views: T.

    Returns:
      The normalised views, float32 [T, B, S, S, C].

    Raises:
      UserError: the number of channels is not 1 or 3, or not that of `views.mean`.
    """
    check_channels(images.shape[-1], views.mean, views.std)
    draws = _RANDAUGMENT + 2 * views.randaugment_ops

    def view(image, id_, t):
        u = jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, id_), t), (draws,))
        return _view(image, u, views)

    view = jax.vmap(jax.vmap(view, in_axes=(0, 0, None)), in_axes=(1 if images.ndim == 5 else None, None, 0))
    return view(images.astype(jnp.float32) / 255, ids, jnp.arange(num_views))


def plain_view(images: Array, *, views: Views) -> Array:
    """Returns the evaluation view: resized (bilinear, antialiased) to S x S and normalised.

    With `views.resize`, crops the centre as torchvision's Resize and CenterCrop do.

    Args:
      images: uint8 [B, H, W, C].
      views: the parameters `size`, `resize`, `mean` and `std` are used.

    Returns:
      The normalised views, float32 [B, S, S, C].

    Raises:
      UserError: as for `random_views`.
    """
    check_channels(images.shape[-1], views.mean, views.std)
    height, width = images.shape[1:3]
    shape = (views.size, views.size)
    if views.resize:  # the longer side is rounded down, as in torchvision
        shorter = min(height, width)
        shape = (views.resize * height // shorter, views.resize * width // shorter)
    x = jax.vmap(lambda image: image_ops.resize(image, shape))(images.astype(jnp.float32) / 255)
    top, left = (round((side - views.size) / 2) for side in shape)
    return normalise(x[:, top : top + views.size, left : left + views.size], views)


def _view(image: Array, u: Array, views: Views) -> Array:
    """Returns one view [S, S, C] of one image [H, W, C] in [0, 1], given its uniform draws."""
    height, width, channels = image.shape
    if views.crop_scale == (1, 1):
        x = image_ops.resize(image, (views.size, views.size))
    else:
        box = crops.random_box(u[_CROP], height, width, views.crop_scale, views.crop_ratio)
        x = image_ops.crop(image, box, views.size)
    if views.flip_prob:
        x = jnp.where(u[_FLIPPED] < views.flip_prob, x[:, ::-1], x)
    # If no corner can move by a whole pixel, every draw is the identity.
    if views.perspective_prob and int(views.perspective * (views.size // 2)):
        corners = moved_corners(u[_CORNERS], views.size, views.size, views.perspective)
        x = jnp.where(u[_DISTORTED] < views.perspective_prob, image_ops.perspective(x, corners), x)
    if views.autoaugment:
        x = auto_augment.autoaugment(x, u[_AUTOAUGMENT], maskcon=views.autoaugment == "maskcon")
    for i in range(views.randaugment_ops):
        op, sign = u[_RANDAUGMENT + 2 * i], u[_RANDAUGMENT + 2 * i + 1]
        op = (op * len(auto_augment.OPS)).astype(jnp.int32)
        x = auto_augment.randaugment_op(x, op, sign < 0.5, views.randaugment_magnitude)
    if any(views.jitter) and views.jitter_prob:
        x = jnp.where(u[_JITTERED] < views.jitter_prob, _jitter(x, u[_FACTORS], views.jitter), x)
    if views.grayscale_prob and channels == 3:
        x = jnp.where(u[_GREYED] < views.grayscale_prob, image_ops.grey(x), x)
    if views.blur[1] and views.blur_prob:
        radius = views.blur[0] + u[_RADIUS] * (views.blur[1] - views.blur[0])
        blurred = image_ops.gaussian_blur(x, radius, math.ceil(_BLUR_REACH * views.blur[1]))
        x = jnp.where(u[_BLURRED] < views.blur_prob, blurred, x)
    x = normalise(x, views)
    if views.erase_prob:
        x = jnp.where((u[_ERASED] < views.erase_prob) & erase_mask(u[_ERASE], views.size), 0.0, x)
    return x


def _is_range(values: tuple) -> bool:
    return len(values) == 2 and 0 < values[0] <= values[1]


def check_channels(channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raises a UserError unless there are 1 or 3 channels and as many values in `mean` and `std`."""
    if channels not in (1, 3) or channels != len(mean) or channels != len(std):
        raise UserError(
            f"found images of {channels} channels and views.mean of {len(mean)} values; expected 1 or 3 of both; set "
            "views.mean and views.std to fit the data."
        )


def normalise(x: Array, views: Views) -> Array:
    """Returns (x - mean) / std for float32 [..., C] in [0, 1]."""
    return (x - np.asarray(views.mean, np.float32)) / np.asarray(views.std, np.float32)


def erase_mask(u: Array, size: int) -> Array:
    """Returns a random rectangle, bool [size, size, 1], as in torchvision's RandomErasing, from uniform draws [22].

    All False in the rare case that none of ten attempts fits.
    """
    # The limits keep the rounded sides below `size`.
    h, w, found = crops.first_fit(u, size * size, _ERASE_SCALE, _ERASE_RATIO, (size - 0.5, size - 0.5))
    h, w = jnp.round(h), jnp.round(w)
    y, x = u[-2:]
    top, left = jnp.floor(y * (size - h + 1)), jnp.floor(x * (size - w + 1))
    pixel = jnp.arange(size)
    rows, columns = (pixel >= top) & (pixel < top + h), (pixel >= left) & (pixel < left + w)
    return (found & rows[:, None] & columns)[..., None]


def moved_corners(u: Array, height: int, width: int, distortion: float) -> Array:
    """Returns the moved corner pixels (x, y), float [4, 2], as in torchvision's RandomPerspective.

    Each moves inwards by whole pixels, up to `distortion` of half a side. The order of the corners and of their uniform
    draws [8] is top left, top right, bottom right, bottom left.
    """
    most = np.array([int(distortion * (width // 2)), int(distortion * (height // 2))])
    moves = jnp.floor(u.reshape(4, 2) * (most + 1))
    at_end = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    return at_end * np.array([width - 1, height - 1]) + (1 - 2 * at_end) * moves


def _jitter(image: Array, u: Array, strengths: tuple) -> Array:
    """Jitters brightness, contrast, saturation and hue in this order (torchvision shuffles), from uniform draws [4]."""
    operations = (image_ops.brightness, image_ops.contrast, image_ops.saturation, image_ops.hue)
    for draw, strength, op in zip(u, strengths, operations, strict=True):
        if strength and op is image_ops.hue:
            image = op(image, (2 * draw - 1) * strength)
        elif strength:
            low = max(0.0, 1 - strength)
            image = op(image, low + draw * (1 + strength - low))
    return image
