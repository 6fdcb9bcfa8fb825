"""The optimizer and the schedules of a run."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import Array
from jax.typing import ArrayLike

from grafit_jax.models.layers import ABOVE, block_of


class Schedules(NamedTuple):
    """Schedules, as functions of the step.

    Attributes:
      learning_rate: linear warm-up from 0, then half a cosine to 0, or steps; proportional to the batch size.
      memory_momentum: share of the old embedding in an updated memory slot.
      tau: momentum of the target network's moving average, along a cosine (BYOL, section 3.2).
    """

    learning_rate: optax.Schedule
    memory_momentum: optax.Schedule
    tau: optax.Schedule


def make_schedules(config: ml_collections.ConfigDict, *, steps_per_epoch: int) -> Schedules:
    """Returns the schedules of a config."""
    o, m, ema = config.optimizer, config.memory, config.ema
    total_steps = config.train.epochs * steps_per_epoch
    peak = o.learning_rate * config.train.batch_size / 256
    warmup_steps = round(o.warmup_epochs * steps_per_epoch)
    if o.schedule == "step":
        rates = [peak * o.step_factor**i for i in range(len(o.boundary_epochs) + 1)]
        stepped = _piecewise(rates, [epoch * steps_per_epoch for epoch in o.boundary_epochs])

        def learning_rate(step):
            return stepped(step) * (jnp.minimum(step / warmup_steps, 1.0) if warmup_steps else 1.0)
    else:
        cosine = functools.partial(_cosine, steps=max(total_steps - warmup_steps, 1))
        share = optax.join_schedules([lambda step: step / max(warmup_steps, 1), cosine], [warmup_steps])

        def learning_rate(step):
            return peak * share(step)

    return Schedules(
        learning_rate=learning_rate,
        memory_momentum=_piecewise((m.momentum, *m.step_momentum), [e * steps_per_epoch for e in m.step_epochs]),
        tau=lambda step: ema.final - (ema.final - ema.base) * _cosine(step, steps=total_steps),
    )


def _piecewise(values: Sequence[float], boundaries: Sequence[int]) -> optax.Schedule:
    """Returns values[0] before the first boundary and values[i] from boundaries[i - 1] on, as float32."""
    return optax.join_schedules([optax.constant_schedule(jnp.float32(value)) for value in values], boundaries)


def _cosine(step: ArrayLike, *, steps: int) -> Array:
    """Half a cosine from 1 to 0. `optax.cosine_decay_schedule` differs in the last bit, which changes every run."""
    return 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(step / steps, 0.0, 1.0)))


def make_optimizer(config: ml_collections.ConfigDict, learning_rate: optax.Schedule) -> optax.GradientTransformation:
    """Returns SGD with momentum, or AdamW, with weight decay; `config` is the group `optimizer` of the config."""

    def decayed(params):
        return jax.tree.map_with_path(lambda path, _: config.decay_all or path[-1].key == "kernel", params)

    if config.name == "adamw":
        adam = optax.adamw(
            learning_rate, b1=config.momentum, b2=config.beta2, weight_decay=config.weight_decay, mask=decayed
        )
        parts = [adam]
    else:
        sgd = optax.sgd(learning_rate, momentum=config.momentum, nesterov=config.nesterov)
        parts = [optax.add_decayed_weights(config.weight_decay, mask=decayed), sgd]
    if config.layer_decay < 1:
        parts.append(optax.stateless(lambda updates, _: _layer_rates(updates, config.layer_decay)))
    return optax.chain(*parts)


def _layer_rates(updates: dict[str, Any], decay: float) -> dict[str, Any]:
    """Scales the updates of the trunk's last block by `decay`, of the one before it by its square, and so on.

    The stem counts as the block before the first one; layers above the blocks count as part of the last, as in timm.
    """
    if "trunk" not in updates:  # it is frozen
        return updates
    blocks = sorted({block_of(name) for name in updates["trunk"]} - {ABOVE}, reverse=True)
    power = {ABOVE: 1} | {block: power for power, block in enumerate(blocks, 1)}
    trunk = {name: optax.tree.scale(decay ** power[block_of(name)], layer) for name, layer in updates["trunk"].items()}
    return {**updates, "trunk": trunk}


def skipped(after: optax.OptState, before: optax.OptState) -> optax.OptState:
    """Returns the state `before` a step with the learning rate's step count of the state `after` it."""

    def is_schedule(path, _):
        return path[-1].tuple_name == "ScaleByScheduleState"

    count = optax.tree.get(after, "count", filtering=is_schedule)
    return optax.tree.set(before, is_schedule, count=count)
