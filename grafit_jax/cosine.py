"""All similarities of the paper are cosines: the one place where vectors are brought to unit length."""

import jax.numpy as jnp
from jax import Array

# A zero vector has no direction; below this norm it stays near zero instead of turning into NaN.
_SMALLEST_NORM = 1e-6


def unit(x: Array) -> Array:
    """`x` [..., D] of any float type, scaled to unit length over the last axis, as float32."""
    x = jnp.asarray(x, jnp.float32)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(square, _SMALLEST_NORM**2))
