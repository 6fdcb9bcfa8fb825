"""Operations on one image, float32 [H, W, C] in [0, 1] with C = 1 or 3; `jax.vmap` batches them.

They follow PIL and torchvision, but do not round to 256 levels, except where an operation is defined on levels.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as in PIL and torchvision


def resize(image: Array, shape: tuple[int, int]) -> Array:
    """Resizes the image to `shape`, (height, width) in pixels."""
    if image.shape[:2] == shape:
        return image
    return jax.image.resize(image, (*shape, image.shape[2]), "linear", antialias=True)


def crop(image: Array, box: tuple[Array, ...], size: int) -> Array:
    """Resizes a box (top, left, height, width; fractional pixels) to size x size, bilinear and antialiased.

    At the box's border the filter also uses the pixels just outside.
    """
    top, left, height, width = box
    shape, scale = (size, size, image.shape[2]), jnp.stack([size / height, size / width])
    translation = -jnp.stack([top, left]) * scale
    return jax.image.scale_and_translate(image, shape, (0, 1), scale, translation, "linear")


def grey(image: Array) -> Array:
    """Returns the luma in every channel; returns one-channel images unchanged."""
    if image.shape[2] == 1:
        return image
    red, green, blue = jnp.split(image, 3, axis=2)  # a dot product with 3 numbers is 40 times slower on CPU
    return jnp.broadcast_to(_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue, image.shape)


def blend(other: Array, image: Array, factor: Array) -> Array:
    """Returns other + factor * (image - other), clipped to [0, 1]."""
    return jnp.clip(other + factor * (image - other), 0, 1)


def brightness(image: Array, factor: Array) -> Array:
    """Blends with black."""
    return blend(jnp.float32(0), image, factor)


def mean_grey(image: Array) -> Array:
    """Returns the mean of the grey image."""
    return jnp.mean(grey(jnp.mean(image, (0, 1), keepdims=True)))  # the luma is linear, so average first


def contrast(image: Array, factor: Array) -> Array:
    """Blends with the mean of the grey image."""
    return blend(mean_grey(image), image, factor)


def saturation(image: Array, factor: Array) -> Array:
    """Blends with the grey image; returns one-channel images unchanged."""
    return blend(grey(image), image, factor)


def hue(image: Array, turns: Array) -> Array:
    """Shifts the hue of HSV by `turns` full circles; returns one-channel images unchanged."""
    if image.shape[2] == 1:
        return image
    red, green, blue = jnp.moveaxis(image, 2, 0)
    value = jnp.maximum(jnp.maximum(red, green), blue)
    spread = value - jnp.minimum(jnp.minimum(red, green), blue)
    saturation = jnp.where(value > 0, spread / jnp.where(value > 0, value, 1.0), 0.0)
    norm = 1.0 / (6.0 * jnp.where(spread > 0, spread, 1.0))
    angle = jnp.where(value == green, norm * (blue - red) + 2 / 6, norm * (red - green) + 4 / 6)
    angle = jnp.where(value == red, norm * (green - blue), angle)
    angle = jnp.where(spread > 0, angle, 0.0) + (angle < 0.0)

    sixths = (angle + turns) % 1.0 * 6.0
    shares = jnp.abs(sixths - 3.0) - 1.0, 2.0 - jnp.abs(sixths - 2.0), 2.0 - jnp.abs(sixths - 4.0)
    return jnp.stack([value * ((1.0 - saturation) + saturation * jnp.clip(share, 0.0, 1.0)) for share in shares], 2)


def warp(image: Array, matrix: Array, fill: float = 0.0) -> Array:
    """Samples each pixel with centre (x, y) from the pixel at matrix [2, 3] @ (x, y, 1); `fill` outside."""
    height, width, channels = image.shape
    y, x = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    column, row = (jnp.floor(m[0] * x + m[1] * y + m[2]).astype(jnp.int32) for m in matrix)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    pixels = image.reshape(-1, channels)[jnp.where(inside, row * width + column, 0)]
    return jnp.where(inside[..., None], pixels, fill)


def shear_y(image: Array, amount: Array, fill: float) -> Array:
    """Samples each pixel with centre (x, y) from (x, y + amount x), bicubic as in PIL's `transform`; `fill` outside."""
    height, width, _ = image.shape
    y, x = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    y = y + amount * x
    top = jnp.floor(y - 0.5)
    d = y - 0.5 - top
    # PIL's transform uses the cubic kernel with a = -1 instead of the usual -0.5, and repeats the border pixels.
    weights = (-d * (1 - d) ** 2, 1 - 2 * d**2 + d**3, d + d**2 - d**3, -(d**2) * (1 - d))
    rows = (jnp.clip(top + i, 0, height - 1).astype(jnp.int32) for i in (-1, 0, 1, 2))
    taps = (w[..., None] * jnp.take_along_axis(image, row[..., None], 0) for w, row in zip(weights, rows, strict=True))
    return jnp.where(((y >= 0) & (y < height))[..., None], jnp.clip(sum(taps), 0, 1), fill)


def perspective(image: Array, corners: Array) -> Array:
    """Moves the image's corner pixels to `corners`, bilinear; black outside. Matches torchvision's `perspective`.

    Args:
      image: float32 [H, W, C], both sides at least 2 pixels.
      corners: the target pixels (x, y) of the top left, top right, bottom right and bottom left, float [4, 2].
    """
    height, width, channels = image.shape
    last = np.array([width - 1, height - 1], np.float32)
    # The homography from the unit square to the corners, in shares of the sides (Heckbert 1989), multiplied by its
    # denominator to avoid dividing by 0.
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = corners / last
    sx, sy = x0 - x1 + x2 - x3, y0 - y1 + y2 - y3
    scale = (x1 - x2) * (y3 - y2) - (x3 - x2) * (y1 - y2)
    g, h = sx * (y3 - y2) - (x3 - x2) * sy, (x1 - x2) * sy - sx * (y1 - y2)
    a, b, c = (x1 - x0) * scale + g * x1, (x3 - x0) * scale + h * x3, x0 * scale
    d, e, f = (y1 - y0) * scale + g * y1, (y3 - y0) * scale + h * y3, y0 * scale

    # Its inverse, the adjugate, maps output to input pixels. As in torchvision and PIL, it is evaluated at the pixel
    # centres (+ 0.5), and the result is shifted back (- 0.5).
    y, x = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    x, y = x / last[0], y / last[1]
    depth = (d * h - e * g) * x + (b * g - a * h) * y + (a * e - b * d)
    column = ((e * scale - f * h) * x + (c * h - b * scale) * y + (b * f - c * e)) / depth * last[0]
    row = ((f * g - d * scale) * x + (a * scale - c * g) * y + (c * d - a * f)) / depth * last[1]
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)  # False for a division by 0
    column, row = jnp.where(inside, column, 0.5) - 0.5, jnp.where(inside, row, 0.5) - 0.5

    left, top = jnp.floor(column), jnp.floor(row)
    pixels = image.reshape(-1, channels)

    def pixel(row, column):  # border pixels extend by half a pixel
        row, column = jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)
        return pixels[(row * width + column).astype(jnp.int32)]

    right, down = (column - left)[..., None], (row - top)[..., None]
    upper = pixel(top, left) * (1 - right) + pixel(top, left + 1) * right
    lower = pixel(top + 1, left) * (1 - right) + pixel(top + 1, left + 1) * right
    return jnp.where(inside[..., None], upper * (1 - down) + lower * down, 0.0)


def gaussian_blur(image: Array, radius: Array, half_width: int) -> Array:
    """Blurs with a Gaussian of standard deviation `radius` pixels, truncated at `half_width` pixels.

    The border pixels are repeated beyond the border, as in PIL.
    """
    for axis in (0, 1):
        size = image.shape[axis]
        sides = [(half_width, half_width) if a == axis else (0, 0) for a in range(3)]
        padded = jnp.pad(image, sides, mode="edge")
        # A matrix product, whose cost does not depend on the radius: [i, j] is the weight of pixel j in pixel i.
        distance = np.arange(size + 2 * half_width) - half_width - np.arange(size)[:, None]
        weights = jnp.exp(-0.5 * (distance / jnp.maximum(radius, 1e-3)) ** 2)  # the identity at radius 0
        weights = jnp.where(np.abs(distance) <= half_width, weights, 0.0)
        weights = weights / jnp.sum(weights, 1, keepdims=True)
        product = jnp.tensordot(weights, padded, (1, axis), precision="highest")  # GPUs default to TF32's 10 bits
        image = jnp.moveaxis(product, 0, axis)
    return image


def smooth(image: Array) -> Array:
    """Averages 3 x 3 pixels with weight 5 for the centre, except at the border (PIL's SMOOTH)."""
    height, width, _ = image.shape
    if min(height, width) < 3:
        return image
    box = sum(image[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3))
    inner = jnp.pad((box + 4 * image[1:-1, 1:-1]) / 13, ((1, 1), (1, 1), (0, 0)))
    is_inner = np.pad(np.ones((height - 2, width - 2, 1), bool), ((1, 1), (1, 1), (0, 0)))
    return jnp.where(is_inner, inner, image)  # .at[].set is a scatter, 10 times slower


def posterize(image: Array, bits: int | Array) -> Array:
    """Keeps the `bits` highest bits of the image's 256 levels."""
    step = 1 << (8 - bits)
    return jnp.floor(jnp.round(image * 255) / step) * step / 255


def solarize(image: Array, threshold: float | Array) -> Array:
    """Inverts the values at or above the threshold (0 to 255)."""
    return jnp.where(jnp.round(image * 255) >= threshold, 1 - image, image)


def autocontrast(image: Array) -> Array:
    """Stretches each channel to [0, 1]; constant channels are unchanged."""
    low, high = jnp.min(image, (0, 1)), jnp.max(image, (0, 1))
    return jnp.where(high > low, (image - low) / jnp.where(high > low, high - low, 1), image)


def equalize(image: Array) -> Array:
    """Equalizes the histogram of each channel's 256 levels with PIL's arithmetic.

    A channel with fewer than 255 pixels below its brightest level is unchanged.
    """
    channels = image.shape[2]
    level = jnp.round(image * 255).astype(jnp.int32).reshape(-1, channels)
    histogram = jnp.zeros((256, channels), jnp.int32).at[level, jnp.arange(channels)].add(1)
    below = jnp.cumsum(histogram, 0) - histogram
    step = jnp.max(jnp.where(histogram > 0, below, 0), 0) // 255
    # Integer floor division, done in float32 because that is 4 times faster; the 0.5 keeps it exact.
    table = jnp.floor((below + step // 2 + 0.5) / jnp.maximum(step, 1))
    equal = jnp.take_along_axis(jnp.minimum(table, 255), level, 0).reshape(image.shape) / 255
    return jnp.where(step > 0, equal, image)
