"""Crop boxes (top, left, height, width), in pixels with fractions.

Random boxes follow torchvision's RandomResizedCrop, on the device (JAX) or on the host (NumPy), where T crops come from
one decoded image.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

Range = tuple[float, float]
# Maps an image's height and width to its boxes, float32 [n, 4].
Boxes = Callable[[int, int], np.ndarray]

_ATTEMPTS = 10  # as in torchvision
# The number of uniform draws of a box: (area, ratio) per attempt, then its position (y, x).
DRAWS = 2 * _ATTEMPTS + 2


def first_fit(u, area, scale: Range, ratio: Range, limits: tuple[float, float], xp: Any = jnp) -> tuple[Any, Any, Any]:
    """Returns (height, width, whether it fits), [...] each, of the first of ten random boxes within the limits.

    Args:
      u: uniform draws [..., DRAWS].
      area: the image's area, pixels.
      scale: the range of the box's share of `area`.
      ratio: the range of its width / height, log-uniform.
      limits: its maximum height and width.
      xp: jax.numpy or numpy.
    """
    draws = u[..., : 2 * _ATTEMPTS].reshape(*u.shape[:-1], _ATTEMPTS, 2)
    areas = area * (scale[0] + draws[..., 0] * (scale[1] - scale[0]))
    roots = xp.exp((math.log(ratio[0]) + draws[..., 1] * math.log(ratio[1] / ratio[0])) / 2)
    heights, widths = xp.sqrt(areas) / roots, xp.sqrt(areas) * roots
    fits = (heights <= limits[0]) & (widths <= limits[1])
    first = xp.argmax(fits, axis=-1)[..., None]
    return tuple(xp.take_along_axis(x, first, axis=-1)[..., 0] for x in (heights, widths, fits))


def random_box(u, height: int, width: int, scale: Range, ratio: Range, xp: Any = jnp) -> tuple[Any, Any, Any, Any]:
    """Returns a random box (top, left, height, width), [...] each, of an image, from uniform draws [..., DRAWS].

    If none of ten attempts lies inside the image, returns the largest central box of an allowed ratio. `xp` is
    jax.numpy or numpy.
    """
    h, w, found = first_fit(u, height * width, scale, ratio, (height, width), xp)
    h = xp.where(found, h, min(height, width / ratio[0]))
    w = xp.where(found, w, min(width, height * ratio[1]))
    y, x = (xp.where(found, u[..., 2 * _ATTEMPTS + i], 0.5) for i in range(2))
    return y * (height - h), x * (width - w), h, w


@dataclasses.dataclass(frozen=True)
class Crops:
    """Random crops made on the host, one for each view of the step.

    Attributes:
      size: the side S of each crop, pixels.
      distributions: (number of crops, crop_scale, crop_ratio) of each distribution in turn; see `augment.Views`.
    """

    size: int
    distributions: tuple[tuple[int, Range, Range], ...]

    def boxes(self, seed: int, id_: int, height: int, width: int) -> np.ndarray:
        """Returns the boxes of an image, float32 [T, 4], which depend only on the epoch's seed, the id and the size."""
        # RandomState's stream is frozen (NEP 19), so every version of NumPy draws the same crops.
        draws = np.random.RandomState([seed, id_]).random_sample((sum(n for n, *_ in self.distributions), DRAWS))
        boxes, first = [], 0
        for count, scale, ratio in self.distributions:
            cropped = random_box(draws[first : first + count], height, width, scale, ratio, np)
            first += count
            boxes.append(np.stack(cropped, axis=-1) if scale != (1, 1) else whole(height, width).repeat(count, axis=0))
        return np.concatenate(boxes).astype(np.float32)


def whole(height: int, width: int) -> np.ndarray:
    """Returns the box of the whole image, float32 [1, 4]; resizing it to a square changes the aspect ratio."""
    return np.array([[0, 0, height, width]], np.float32)


def centre(height: int, width: int) -> np.ndarray:
    """Returns the largest central square, float32 [1, 4]."""
    side = min(height, width)
    return np.array([[(height - side) / 2, (width - side) / 2, side, side]], np.float32)


# The values of data.resize_mode: how to make an image square.
RESIZE_MODES: dict[str, Boxes] = {"squash": whole, "centre": centre}
