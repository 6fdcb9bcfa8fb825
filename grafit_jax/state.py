"""The training state."""

from typing import Any

import flax.struct
import optax
from jax import Array

from grafit_jax.memory import Queue


@flax.struct.dataclass
class TrainState:
    """State replicated over the devices. The memory is sharded, and so kept apart.

    Attributes:
      step: int32, number of steps taken.
      params: theta, by part of the network: trunk, projector, predictor, classifier.
      target_params: xi, the moving average of trunk and projector. Frozen layers are omitted: the target network uses
        those of params. Empty if the method has no target network.
      batch_stats: running means and variances of the online network, for evaluation. The target network has none; see
        train_step.
      opt_state: state of the optax optimizer of the layers that are not frozen.
      rng: uint32 [2], the seed's key. It never changes: every draw is keyed by (seed, step, image id, view).
      queue: the newest keys; None if the method has no queue.
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
        """The variables of the online network, which evaluation uses; never those of the target network."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def target_part(tree: dict) -> dict:
    """Returns the part of params or batch statistics that belongs to g = P o f: trunk and projector."""
    return {name: tree[name] for name in ("trunk", "projector") if name in tree}


def merged(part: dict, whole: dict) -> dict:
    """Returns params or batch statistics `whole` with the layers of `part` in place of its own."""
    return {name: {**layers, **part.get(name, {})} for name, layers in whole.items()}
