"""The methods of PAPER.md section 2: which heads each has, and which losses it trains."""

import dataclasses
import difflib

import flax.linen as nn
import jax.numpy as jnp

from grafit_jax.errors import UserError
from grafit_jax.models import Network, build_trunk
from grafit_jax.models.heads import MLP


@dataclasses.dataclass(frozen=True)
class Method:
    """What a method trains; everything else is the same for all methods.

    Attributes:
      name: as in PAPER.md section 2.
      supervised: what teaches the coarse labels: "cross_entropy", "knn" (Eq. 2-3) or None.
      instance: whether the instance loss (Eq. 1) is added, with its predictor, its target network and its T views.
      projector: whether a projector P_theta stands on the trunk.
    """

    name: str
    supervised: str | None
    instance: bool
    projector: bool = True


METHODS = {
    m.name: m
    for m in (
        Method("baseline", "cross_entropy", instance=False, projector=False),
        Method("baseline_mlp", "cross_entropy", instance=False),
        Method("snca_plus", "knn", instance=False),
        Method("byol", None, instance=True),
        # The classifier stands on the projection [ours], so that Grafit FC differs from Grafit in the loss alone.
        Method("grafit_fc", "cross_entropy", instance=True),
        Method("grafit", "knn", instance=True),
    )
}


def get(name: str) -> Method:
    """The method of that name; a UserError with the nearest known name if there is none."""
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}{did_you_mean(name, METHODS)}: want one of {', '.join(METHODS)}.")
    return METHODS[name]


def did_you_mean(name: str, known) -> str:
    """' (did you mean ...?)', or nothing where no known name is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def build_network(method: Method, config, *, num_classes: int, axis_name: str | None = None) -> Network:
    """The method's network. `config` is the config's `model`; `num_classes` counts the coarse classes."""
    dtype = jnp.dtype(config.dtype)
    axis_name = axis_name if config.sync_batch_norm else None

    def mlp():
        return MLP(config.hidden, config.dim, dtype, axis_name)

    return Network(
        trunk=build_trunk(config.trunk, stem=config.stem, dtype=dtype, axis_name=axis_name),
        projector=mlp() if method.projector else None,
        predictor=mlp() if method.instance else None,
        classifier=nn.Dense(num_classes) if method.supervised == "cross_entropy" else None,
    )
