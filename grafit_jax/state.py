"""All that a run needs to go on, and how it starts."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from grafit_jax.errors import UserError
from grafit_jax.memory import Queue
from grafit_jax.models import Network
from grafit_jax.models import heads as heads_lib


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


TARGET_PARTS = ("trunk", "projector")
# Folded into the seed's key for heads that start as PyTorch's; the trunk starts the same either way.
_HEADS_KEY = 0x68656164


def target_part(tree: dict) -> dict:
    """The part of params or batch statistics that belongs to g = P o f."""
    return {name: tree[name] for name in TARGET_PARTS if name in tree}


def create(
    network: Network,
    tx: optax.GradientTransformation,
    *,
    image_shape: tuple[int, ...],
    seed: int,
    has_target: bool,
    trunk: dict[str, Any] | None = None,
    head_init: str = "lecun",
) -> TrainState:
    """A fresh state for views of `image_shape` [H, W, C].

    `trunk` holds pretrained "params" and "batch_stats" of the trunk, or of parts of it: the rest stays fresh.
    `head_init` is one of `heads.INITS`.
    """
    rng = jax.random.PRNGKey(seed)
    trunk = trunk or {"params": {}, "batch_stats": {}}

    def initialise(rng, trunk):
        variables = network.init(rng, jnp.zeros((2, *image_shape), jnp.float32), train=False)
        params, batch_stats = variables["params"], variables["batch_stats"]
        if head_init == "pytorch":
            heads = {name: part for name, part in params.items() if name != "trunk"}
            params = params | heads_lib.as_pytorch(heads, jax.random.fold_in(rng, _HEADS_KEY))
        for own, given in ((params["trunk"], trunk["params"]), (batch_stats["trunk"], trunk["batch_stats"])):
            _check_shapes({name: own.get(name) for name in given}, given)
            own |= given
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            # A copy: params and target_params are both donated to the step, and one buffer cannot be given twice.
            target_params=jax.tree.map(jnp.copy, target_part(params)) if has_target else {},
            batch_stats=batch_stats,
            opt_state=tx.init(params),
            rng=rng,
        )

    return jax.jit(initialise)(rng, trunk)


def _check_shapes(own: dict[str, Any], given: dict[str, Any]) -> None:
    """Raises a UserError for layers that do not fit: other channels of images, other widths."""
    found = {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(given)}
    wanted = {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(own)}
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise UserError(
                f"model.pretrained gives {name} of the trunk as {found.get(name)}, want {wanted.get(name)}: take a "
                "trunk that was trained on images of the same channels."
            )
