"""Which part of an image is seen: boxes (top, left, height, width) in pixels, fractions allowed.

Random ones by the law of torchvision's RandomResizedCrop, on the device (JAX) or on the host (NumPy), where T crops are
cut from one decoded photo.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

Range = tuple[float, float]
# From an image's height and width to its boxes, float32 [n, 4].
Boxes = Callable[[int, int], np.ndarray]

_ATTEMPTS = 10  # at a box that fits, as in torchvision
# Uniform draws that a box takes: (area, ratio) per attempt, then its place (y, x).
DRAWS = 2 * _ATTEMPTS + 2


def first_fit(u, area, scale: Range, ratio: Range, limits: tuple[float, float], xp: Any = jnp) -> tuple[Any, Any, Any]:
    """(height, width, whether it fits), [...] each, of the first of ten boxes that keeps to the limits.

    Args:
      u: uniform draws [..., DRAWS].
      area: what `scale` is a share of.
      scale: range of the box's area.
      ratio: range of its width / height, log-uniform.
      limits: of its height and width.
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
    """(top, left, height, width), [...] each: a crop of a height x width image, from uniform draws [..., DRAWS].

    Ten attempts at a box inside the image; if none fits, the largest central box of an allowed ratio. `xp` is jax.numpy
    or numpy.
    """
    h, w, found = first_fit(u, height * width, scale, ratio, (height, width), xp)
    h = xp.where(found, h, min(height, width / ratio[0]))
    w = xp.where(found, w, min(width, height * ratio[1]))
    y, x = (xp.where(found, u[..., 2 * _ATTEMPTS + i], 0.5) for i in range(2))
    return y * (height - h), x * (width - w), h, w


@dataclasses.dataclass(frozen=True)
class Crops:
    """Random crops of an image that are made on the host, as many as the step makes views.

    Attributes:
      size: side S of each, pixels.
      laws: (how many, crop_scale, crop_ratio) of those of one law, one law after the other; see `augment.Views`.
    """

    size: int
    laws: tuple[tuple[int, Range, Range], ...]

    def boxes(self, seed: int, id_: int, height: int, width: int) -> np.ndarray:
        """float32 [T, 4] for an image, which its id, its size and `seed`, of the epoch, alone decide."""
        # RandomState's stream is frozen (NEP 19), so the crops stay the same with every version of NumPy.
        draws = np.random.RandomState([seed, id_]).random_sample((sum(count for count, *_ in self.laws), DRAWS))
        boxes, first = [], 0
        for count, scale, ratio in self.laws:
            of_law = draws[first : first + count]
            first += count
            cropped = random_box(of_law, height, width, scale, ratio, np)
            boxes.append(np.stack(cropped, axis=-1) if scale != (1, 1) else whole(height, width).repeat(count, axis=0))
        return np.concatenate(boxes).astype(np.float32)


def whole(height: int, width: int) -> np.ndarray:
    """float32 [1, 4]: all of the image, whose proportions are lost in a square."""
    return np.array([[0, 0, height, width]], np.float32)


def centre(height: int, width: int) -> np.ndarray:
    """float32 [1, 4]: the largest square in the middle."""
    side = min(height, width)
    return np.array([[(height - side) / 2, (width - side) / 2, side, side]], np.float32)


# data.resize_mode: how an image becomes a square.
RESIZE_MODES: dict[str, Boxes] = {"squash": whole, "centre": centre}
