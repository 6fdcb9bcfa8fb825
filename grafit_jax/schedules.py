"""What changes over a run, as pure functions of the step."""

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


def ema_tau(step: ArrayLike, *, base: float, total_steps: int, final: float = 1.0) -> Array:
    """The target network's moving-average rate tau: from `base` to `final` along a cosine (BYOL, section 3.2)."""
    progress = jnp.clip(jnp.asarray(step, jnp.float32) / max(total_steps, 1), 0.0, 1.0)
    return final - (final - base) * (jnp.cos(jnp.pi * progress) + 1.0) / 2.0
