"""Cosine similarity: unit-length vectors and matrix products in full float32."""

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

# Vectors with a smaller norm are divided by this instead, so that a zero vector stays zero, not NaN.
_SMALLEST_NORM = 1e-6


def unit(x: ArrayLike) -> Array:
    """Scales `x` [..., D] of any float dtype to unit length over the last axis; returns float32."""
    x = jnp.asarray(x, jnp.float32)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(square, _SMALLEST_NORM**2))


def matmul(a: Array, b: Array) -> Array:
    """Returns `a @ b` in full float32; TPUs default to bfloat16, whose 8 bits would reorder neighbours."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
