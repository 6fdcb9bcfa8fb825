"""Whether arrays are what they were: a digest that no device count, host or order of addition changes."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# Odd numbers, so that a change of a single bit changes the digest.
_FACTORS = (0x9E3779B1, 0x85EBCA77)


def digests(tree: Any) -> dict[str, str]:
    """Path of a leaf -> 16 hexadecimal digits of its bits and their places.

    Rows of zeros at its end make no difference. All processes that hold a part of an array have to call it.
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    found = _digests([leaf for _, leaf in leaves])
    return {
        name_of(path): "".join(f"{int(half):08x}" for half in np.asarray(digest.addressable_data(0)))
        for (path, _), digest in zip(leaves, found, strict=True)
    }


def name_of(path: Sequence[Any]) -> str:
    """A leaf's place in a tree, the same whether its nodes are dictionaries or, as Orbax gives them back, were once."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


@jax.jit
def _digests(leaves: list[Array]) -> list[Array]:
    return [_digest(leaf) for leaf in leaves]


def _digest(x: Array) -> Array:
    """uint32 [2]: sums, modulo 2^32, of each element's bits times an odd number that follows from its place."""
    width = x.dtype.itemsize * 8
    if x.dtype == jnp.bool_:
        bits = x.astype(jnp.uint32)
    else:
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{width}")).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, length in enumerate(x.shape):  # row-major
        place = place * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    # Mixed over its own bits first, so that a flip of the uppermost one is not the same wherever it is.
    mixed = (bits ^ (bits >> 15)) * jnp.uint32(0x2C1B3C6D)
    sums = [jnp.sum((mixed ^ (mixed >> 12)) * (2 * (place * jnp.uint32(f) ^ (place >> 7)) + 1)) for f in _FACTORS]
    return jnp.stack(sums).astype(jnp.uint32)
