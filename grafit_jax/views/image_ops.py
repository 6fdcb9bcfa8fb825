"""Operations on one image, float32 [H, W, C] in [0, 1] with C = 1 or 3; `jax.vmap` batches them.

They mean what PIL and torchvision mean by them, but round nothing to 256 levels where that is not their purpose.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL and torchvision have it


def resize(image: Array, shape: tuple[int, int]) -> Array:
    """The image at (height, width) pixels; untouched if it has these."""
    if image.shape[:2] == shape:
        return image
    return jax.image.resize(image, (*shape, image.shape[2]), "linear", antialias=True)


def crop(image: Array, box: tuple[Array, ...], size: int) -> Array:
    """The box (top, left, height, width; pixels, fractions allowed) at size x size, bilinear and antialiased.

    Two small matrix products. At the box's border the filter also sees the pixels just outside of it.
    """
    top, left, height, width = box
    shape, scale = (size, size, image.shape[2]), jnp.stack([size / height, size / width])
    translation = -jnp.stack([top, left]) * scale
    return jax.image.scale_and_translate(image, shape, (0, 1), scale, translation, "linear")


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


def mean_grey(image: Array) -> Array:
    """The mean of the grey image."""
    return jnp.mean(grey(jnp.mean(image, (0, 1), keepdims=True)))  # the luma is linear: it can wait


def contrast(image: Array, factor: Array) -> Array:
    """Blends with the mean of the grey image."""
    return blend(mean_grey(image), image, factor)


def saturation(image: Array, factor: Array) -> Array:
    """Blends with the grey image; a one-channel image stays."""
    return blend(grey(image), image, factor)


def hue(image: Array, turns: Array) -> Array:
    """Turns the hue of HSV, 1 being the full circle; a one-channel image stays."""
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
    """Takes each pixel, centre (x, y), from the pixel that holds matrix [2, 3] @ (x, y, 1); `fill` outside."""
    height, width, channels = image.shape
    y, x = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    column, row = (jnp.floor(m[0] * x + m[1] * y + m[2]).astype(jnp.int32) for m in matrix)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    pixels = image.reshape(-1, channels)[jnp.where(inside, row * width + column, 0)]
    return jnp.where(inside[..., None], pixels, fill)


def shear_y(image: Array, amount: Array, fill: float) -> Array:
    """Takes each pixel, centre (x, y), from (x, y + amount x), bicubic as in PIL's `transform`; `fill` outside."""
    height, width, _ = image.shape
    y, x = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    y = y + amount * x
    top = jnp.floor(y - 0.5)
    d = y - 0.5 - top
    # PIL's transform uses the cubic kernel with a = -1, not the usual -0.5, and repeats pixels beyond the border.
    weights = (-d * (1 - d) ** 2, 1 - 2 * d**2 + d**3, d + d**2 - d**3, -(d**2) * (1 - d))
    rows = (jnp.clip(top + i, 0, height - 1).astype(jnp.int32) for i in (-1, 0, 1, 2))
    taps = (w[..., None] * jnp.take_along_axis(image, row[..., None], 0) for w, row in zip(weights, rows, strict=True))
    return jnp.where(((y >= 0) & (y < height))[..., None], jnp.clip(sum(taps), 0, 1), fill)


def perspective(image: Array, corners: Array) -> Array:
    """The image whose corner pixels lie at the corners, bilinear; black outside. torchvision's `perspective`.

    Args:
      image: float32 [H, W, C], both sides 2 pixels or more.
      corners: float [4, 2], where the pixels (x, y) top left, top right, bottom right and bottom left go.
    """
    height, width, channels = image.shape
    last = np.array([width - 1, height - 1], np.float32)
    # The homography from the unit square to the corners, in shares of the sides (Heckbert 1989), scaled by its
    # denominator so that no corners divide by 0.
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = corners / last
    sx, sy = x0 - x1 + x2 - x3, y0 - y1 + y2 - y3
    scale = (x1 - x2) * (y3 - y2) - (x3 - x2) * (y1 - y2)
    g, h = sx * (y3 - y2) - (x3 - x2) * sy, (x1 - x2) * sy - sx * (y1 - y2)
    a, b, c = (x1 - x0) * scale + g * x1, (x3 - x0) * scale + h * x3, x0 * scale
    d, e, f = (y1 - y0) * scale + g * y1, (y3 - y0) * scale + h * y3, y0 * scale

    # Its inverse, the adjugate, says where an output pixel comes from. It is defined between the pixels' places and
    # taken at their centres, half a pixel on, which the source gives back: so torchvision and PIL do it.
    y, x = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    x, y = x / last[0], y / last[1]
    depth = (d * h - e * g) * x + (b * g - a * h) * y + (a * e - b * d)
    column = ((e * scale - f * h) * x + (c * h - b * scale) * y + (b * f - c * e)) / depth * last[0]
    row = ((f * g - d * scale) * x + (a * scale - c * g) * y + (c * d - a * f)) / depth * last[1]
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)  # never for a division by 0
    column, row = jnp.where(inside, column, 0.5) - 0.5, jnp.where(inside, row, 0.5) - 0.5

    left, top = jnp.floor(column), jnp.floor(row)
    pixels = image.reshape(-1, channels)

    def pixel(row, column):  # the border pixels reach half a pixel further
        row, column = jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)
        return pixels[(row * width + column).astype(jnp.int32)]

    right, down = (column - left)[..., None], (row - top)[..., None]
    upper = pixel(top, left) * (1 - right) + pixel(top, left + 1) * right
    lower = pixel(top + 1, left) * (1 - right) + pixel(top + 1, left + 1) * right
    return jnp.where(inside[..., None], upper * (1 - down) + lower * down, 0.0)


def gaussian_blur(image: Array, radius: Array, half_width: int) -> Array:
    """Blurs with a Gaussian of standard deviation `radius`, pixels, that sees `half_width` pixels to each side.

    The image goes on beyond its border with its border pixels, as in PIL.
    """
    for axis in (0, 1):
        size = image.shape[axis]
        sides = [(half_width, half_width) if a == axis else (0, 0) for a in range(3)]
        padded = jnp.pad(image, sides, mode="edge")
        # A small matrix product, whose cost does not grow with the radius: [i, j] weighs pixel j in pixel i.
        distance = np.arange(size + 2 * half_width) - half_width - np.arange(size)[:, None]
        weights = jnp.exp(-0.5 * (distance / jnp.maximum(radius, 1e-3)) ** 2)  # at radius 0 the image itself
        weights = jnp.where(np.abs(distance) <= half_width, weights, 0.0)
        weights = weights / jnp.sum(weights, 1, keepdims=True)
        product = jnp.tensordot(weights, padded, (1, axis), precision="highest")  # else a GPU rounds to 10 bits
        image = jnp.moveaxis(product, 0, axis)
    return image


def smooth(image: Array) -> Array:
    """Mean over 3 x 3 pixels in which the centre counts 5 times; border pixels as they are (PIL's SMOOTH)."""
    height, width, _ = image.shape
    if min(height, width) < 3:
        return image
    box = sum(image[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3))
    inner = jnp.pad((box + 4 * image[1:-1, 1:-1]) / 13, ((1, 1), (1, 1), (0, 0)))
    is_inner = np.pad(np.ones((height - 2, width - 2, 1), bool), ((1, 1), (1, 1), (0, 0)))
    return jnp.where(is_inner, inner, image)  # .at[].set would be a scatter, 10 times slower


def posterize(image: Array, bits: int | Array) -> Array:
    """Keeps the highest bits of the image's 256 levels."""
    step = 1 << (8 - bits)
    return jnp.floor(jnp.round(image * 255) / step) * step / 255


def solarize(image: Array, threshold: float | Array) -> Array:
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
