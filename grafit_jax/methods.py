"""The methods of docs/paper.md sections 2 and 3: which heads each has, and which losses it trains."""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp

from grafit_jax.errors import choose
from grafit_jax.models import Network, build_trunk
from grafit_jax.models.heads import MLP, Identity, Linear


@dataclasses.dataclass(frozen=True)
class Method:
    """What a method trains; everything else is the same for all methods.

    Attributes:
      name: as in docs/paper.md.
      supervised: what teaches the coarse labels: "cross_entropy", "knn" (Eq. 2-3), "supcon", "maskcon" or None.
      instance: what tells images apart: "predict" (Eq. 1, with a predictor and T views), "info_nce" (with a key view,
        whose own law of views is `key_views`) or None.
      projector: the P_theta that stands on the trunk: "mlp", "linear", "identity" (the losses see the trunk's features)
        or None.
      uses_clusters: whether cluster ids of another run's features are trained on in place of the coarse labels.
      protocol: "paper" (section 2) or "maskcon" (section 3); results of the two are never compared in one table
        without saying so.
    """

    name: str
    supervised: str | None
    instance: str | None
    projector: str | None = "mlp"
    uses_clusters: bool = False
    protocol: str = "paper"

    @property
    def uses_memory(self) -> bool:
        """Whether there is a slot for every training image."""
        return self.supervised == "knn"

    @property
    def uses_queue(self) -> bool:
        """Whether a queue of keys is compared with."""
        return self.instance == "info_nce" or self.supervised in ("supcon", "maskcon")

    @property
    def uses_target(self) -> bool:
        """Whether there is a target network, which embeds the other views, or the keys."""
        return self.instance == "predict" or self.uses_queue

    def views_per_image(self, num_views: int) -> int:
        """How many views of an image a step makes, where the config says T = `num_views`."""
        if self.uses_queue:
            return 2  # the query's and the key's
        return num_views if self.instance == "predict" else 1

    def weights(self, *, instance_weight: float, weight: float) -> tuple[float, float]:
        """What the supervised and the instance loss are multiplied by.

        Protocol "paper" adds lambda times the latter (Eq. 4); protocol "maskcon" mixes the two, w and 1 - w.
        """
        if self.protocol == "paper":
            return 1.0, instance_weight
        return (weight, 1.0 - weight) if self.supervised and self.instance else (1.0, 1.0)


METHODS = {
    m.name: m
    for m in (
        Method("baseline", "cross_entropy", None, projector=None),
        Method("baseline_mlp", "cross_entropy", None),
        # ClusterFit+ through Grafit's projector, as SNCA+ is [ours].
        Method("clusterfit", "cross_entropy", None, projector=None, uses_clusters=True),
        Method("clusterfit_plus", "cross_entropy", None, uses_clusters=True),
        Method("snca", "knn", None, projector="linear"),
        Method("snca_plus", "knn", None),
        Method("byol", None, "predict"),
        # The classifier stands on the projection [ours], so that Grafit FC differs from Grafit in the loss alone.
        Method("grafit_fc", "cross_entropy", "predict"),
        Method("grafit", "knn", "predict"),
        # What the projector brings [ours]; model.embed_dim is the trunk's width.
        Method("grafit_no_projector", "knn", "predict", projector="identity"),
        Method("selfcon", None, "info_nce", protocol="maskcon"),
        Method("supcon", "supcon", None, protocol="maskcon"),
        Method("supce", "cross_entropy", None, projector=None, protocol="maskcon"),
        # What the MaskCon paper calls Grafit: not the method above.
        Method("grafit_maskcon", "supcon", "info_nce", protocol="maskcon"),
        Method("coins", "cross_entropy", "info_nce", protocol="maskcon"),
        Method("maskcon", "maskcon", None, protocol="maskcon"),
    )
}


def get(name: str) -> Method:
    """The method of that name; a UserError with the nearest known name if there is none."""
    return METHODS[choose(name, "method", METHODS)]


def build_network(method: Method, config, *, num_classes: int, axis_name: str | None = None) -> Network:
    """The method's network. `config` is the config's `model`; `num_classes` counts the labels that are trained on."""
    dtype = jnp.dtype(config.dtype)
    axis_name = axis_name if config.sync_batch_norm else None

    mlp = functools.partial(
        MLP, config.head_hidden_dim, config.embed_dim, dtype, axis_name, batch_norm=config.head_batch_norm
    )
    projectors = {
        "mlp": mlp(final_norm=config.projector_norm),
        "linear": Linear(config.embed_dim, dtype),
        "identity": Identity(config.embed_dim),
        None: None,
    }

    return Network(
        trunk=build_trunk(config.trunk, stem=config.stem, dtype=dtype, axis_name=axis_name, remat=config.remat),
        projector=projectors[method.projector],
        predictor=mlp() if method.instance == "predict" else None,
        classifier=nn.Dense(num_classes) if method.supervised == "cross_entropy" else None,
        classify="projection" if method.protocol == "paper" else "features",
    )
