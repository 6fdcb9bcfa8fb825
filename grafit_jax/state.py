"""All that a run needs to go on."""

from typing import Any

import flax.struct
import optax
from jax import Array

from grafit_jax.memory import Queue


@flax.struct.dataclass
class TrainState:
    """The same on every device; the memory, whose rows are spread over them, is kept beside it.

    Attributes:
      step: int32, steps done.
      params: theta, by part of the network: trunk, projector, predictor, classifier.
      target_params: xi, trunk and projector, the moving average of params; empty where a method has no target.
      batch_stats: the online network's running means and variances, for evaluation. The target has none: see
        train_step.
      opt_state: optax's.
      rng: uint32 [2], the seed's key. It never changes: every draw is keyed by (seed, step, image id, view).
      queue: the newest keys; None where a method has none.
    """

    step: Array
    params: Any
    target_params: Any
    batch_stats: Any
    opt_state: optax.OptState
    rng: Array
    queue: Queue | None = None

    @property
    def variables(self) -> dict[str, Any]:
        """What evaluation applies: the online network, never the target."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def target_part(tree: dict) -> dict:
    """The part of params or batch statistics that belongs to g = P o f."""
    return {name: tree[name] for name in ("trunk", "projector") if name in tree}
