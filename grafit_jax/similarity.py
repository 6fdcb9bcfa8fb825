"""All similarities of the paper are cosines: unit length and products in full float32."""

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

# A zero vector has no direction; below this norm it stays near zero instead of turning into NaN.
_SMALLEST_NORM = 1e-6


def unit(x: ArrayLike) -> Array:
    """`x` [..., D] of any float type, scaled to unit length over the last axis, as float32."""
    x = jnp.asarray(x, jnp.float32)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(square, _SMALLEST_NORM**2))


def matmul(a: Array, b: Array) -> Array:
    """`a @ b` in full float32: the default of TPUs is bfloat16, three digits, which reorders neighbours."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
