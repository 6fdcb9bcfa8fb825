"""Images for the tests of image operations, and conversions to and from PIL."""

import jax.numpy as jnp
import numpy as np
from PIL import Image

_RNG = np.random.default_rng(0)
# A smooth colour ramp plus noise, so that histograms have gaps and channels differ.
_RAMP = np.linspace(20, 200, 32)[:, None, None] * np.array([1.0, 0.7, 0.4])
RGB = np.clip(_RAMP + _RNG.normal(0, 25, (32, 32, 3)), 0, 255).astype(np.uint8)
LEVEL = 1 / 255 + 1e-6  # tolerance of one level: PIL works with 256 levels, the library in float32


def unit(image):
    return jnp.asarray(image, jnp.float32) / 255


def pil(image):
    return Image.fromarray(image if image.shape[2] == 3 else image[..., 0])


def from_pil(image):
    return np.atleast_3d(np.asarray(image)) / 255


def random_images(seed, number, size=None):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*(size or rng.integers(20, 50, 2)), 3), np.uint8) for _ in range(number)]


def pil_resized(image, size):
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)).astype(int)
