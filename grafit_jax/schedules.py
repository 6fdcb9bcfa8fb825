"""What changes over a run, as pure functions of the step."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


def learning_rate(step: ArrayLike, *, base: float, total_steps: int, warmup_steps: int = 0) -> Array:
    """Linear from 0 to `base` over the warm-up, then half a cosine to 0 at `total_steps`."""
    step = jnp.asarray(step, jnp.float32)
    warmup = step / max(warmup_steps, 1)
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))
    return base * jnp.where(step < warmup_steps, warmup, cosine)


def step_learning_rate(
    step: ArrayLike, *, base: float, boundaries: Sequence[int], factor: float, warmup_steps: int = 0
) -> Array:
    """Linear from 0 to `base` over the warm-up, then `base`, multiplied by `factor` from each boundary (a step) on."""
    step = jnp.asarray(step)
    warmup = jnp.minimum(step / max(warmup_steps, 1), 1.0) if warmup_steps else 1.0
    return warmup * piecewise(
        step, values=[base * factor**i for i in range(len(boundaries) + 1)], boundaries=boundaries
    )


def piecewise(step: ArrayLike, *, values: Sequence[float], boundaries: Sequence[int]) -> Array:
    """values[0] before the first boundary, values[i] from boundaries[i - 1] (steps, in ascending order) on."""
    return jnp.asarray(values, jnp.float32)[jnp.sum(jnp.asarray(step) >= jnp.asarray(boundaries, jnp.int32))]


def ema_tau(step: ArrayLike, *, base: float, total_steps: int, final: float = 1.0) -> Array:
    """The target network's moving-average rate tau: from `base` to `final` along a cosine (BYOL, section 3.2)."""
    progress = jnp.clip(jnp.asarray(step, jnp.float32) / max(total_steps, 1), 0.0, 1.0)
    return final - (final - base) * (jnp.cos(jnp.pi * progress) + 1.0) / 2.0
