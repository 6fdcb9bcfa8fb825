"""The convolution of all trunks, in the form that each kind of device runs best."""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

# On CPU: bytes of the images that are convolved in one go, which a core's caches can hold.
PART = 2**22


def conv_general_dilated(images: Array, kernel: Array, *args, **options) -> Array:
    """`lax.conv_general_dilated` over the batch axis 0; what `nn.Conv` calls.

    On CPU a large batch goes part by part, and so do its gradients: XLA's convolutions of more than the caches hold
    wait for memory (`experiments/benchmark.py --suite=train --entries=convolution` has the ratio).
    """
    parts = min(len(images), math.ceil(images.size * images.dtype.itemsize / PART))
    if jax.default_backend() != "cpu" or parts <= 1:
        return lax.conv_general_dilated(images, kernel, *args, **options)
    return jnp.concatenate(
        [lax.conv_general_dilated(part, kernel, *args, **options) for part in jnp.array_split(images, parts)]
    )
