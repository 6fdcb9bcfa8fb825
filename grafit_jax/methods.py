"""The methods of docs/paper.md sections 2 and 3, with their heads and losses."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import ml_collections

from grafit_jax.errors import choose
from grafit_jax.models import Network, build_trunk
from grafit_jax.models.heads import MLP, Cosine, Identity, Linear


@dataclasses.dataclass(frozen=True)
class Method:
    """The parts in which methods differ.

    Attributes:
      name: the name in docs/paper.md.
      supervised: the supervised loss: "cross_entropy", "knn" (Eq. 2-3), "supcon", "maskcon", "spread" or None.
      instance: the loss between views of an image: "predict" (Eq. 1, with a predictor and T views), "info_nce",
        "angular" or "own_class" (with a key view, augmented by `key_views`) or None.
      projector: P_theta: "mlp", "linear", "identity" (the losses use the trunk's features) or None.
      uses_clusters: whether the labels are clusters of another run's features instead of the coarse classes.
      cosine: whether a cosine classifier of the projection adds its cross-entropy to the k-NN loss [ours].
      classify: what a classifier takes: "projection", the "relu" of it, or the trunk's "features"; without a projector,
        the features.
      protocol: "paper" (section 2) or "maskcon" (section 3). A table that compares results of both must say so.
      recipe: config keys that belong to the method, with the values that config files give them.
    """

    name: str
    supervised: str | None
    instance: str | None
    projector: str | None = "mlp"
    uses_clusters: bool = False
    cosine: bool = False
    classify: str = "projection"
    protocol: str = "paper"
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    @property
    def layer(self) -> str:
        """The layer of the method's own metrics: the one that its recipe has first, or that its losses use."""
        own = "trunk" if self.projector in (None, "identity") else "projector"
        return self.recipe.get("eval.layers", (own,))[0]

    @property
    def trains(self) -> bool:
        """Whether the method has a loss; otherwise its runs evaluate the initial weights."""
        return bool(self.supervised or self.instance)

    @property
    def uses_memory(self) -> bool:
        """Whether the method has a memory with a slot for every training image."""
        return self.supervised == "knn"

    @property
    def uses_queue(self) -> bool:
        """Whether the method has a queue of keys."""
        return self.instance not in (None, "predict") or self.supervised in ("supcon", "maskcon", "spread")

    @property
    def uses_target(self) -> bool:
        """Whether the method has a target network, which embeds the other views or the keys."""
        return self.instance == "predict" or self.uses_queue

    @property
    def classifies(self) -> bool:
        """Whether the method has a classifier."""
        return self.supervised == "cross_entropy" or self.cosine

    def views_per_image(self, num_views: int) -> int:
        """Returns the number of views per image in a step, given T = `num_views` of the config."""
        if self.uses_queue:
            return 2  # query and key
        return num_views if self.instance == "predict" else 1

    def weights(self, *, instance_weight: float, weight: float) -> tuple[float, float]:
        """Returns the weights of the supervised and the instance loss.

        They are 1 and lambda in protocol "paper" (Eq. 4) and for ANCOR, and w and 1 - w in protocol "maskcon".
        """
        if self.protocol == "paper" or self.instance == "angular":
            return 1.0, instance_weight
        return (weight, 1.0 - weight) if self.supervised and self.instance else (1.0, 1.0)


_PLUS = {"loss.instance_weight": 4.0, "eval.layers": ("concat", "trunk", "projector")}

METHODS = {
    m.name: m
    for m in (
        Method("baseline", "cross_entropy", None, projector=None),
        Method("baseline_mlp", "cross_entropy", None),
        # ClusterFit+ with Grafit's projector, in analogy to SNCA+ [ours].
        Method("clusterfit", "cross_entropy", None, projector=None, uses_clusters=True),
        Method("clusterfit_plus", "cross_entropy", None, uses_clusters=True),
        Method("snca", "knn", None, projector="linear"),
        Method("snca_plus", "knn", None),
        Method("byol", None, "predict"),
        # The classifier's input is the projection [ours], so that Grafit FC differs from Grafit in the loss only.
        Method("grafit_fc", "cross_entropy", "predict"),
        Method("grafit", "knn", "predict"),
        # Ablation of the projector [ours]; model.embed_dim must be the trunk's width.
        Method("grafit_no_projector", "knn", "predict", projector="identity"),
        # Grafit's losses with a recipe that was chosen on held-out images [ours]: docs/results.md, table recipe.
        Method("grafit_plus", "knn", "predict", recipe=_PLUS),
        # Grafit with one part more or another one [ours], see table recipe.
        Method("grafit_cosine", "knn", "predict", cosine=True),
        Method("grafit_own_class", "knn", "own_class"),
        Method("selfcon", None, "info_nce", protocol="maskcon"),
        Method("supcon", "supcon", None, protocol="maskcon"),
        Method("supce", "cross_entropy", None, projector=None, classify="features", protocol="maskcon"),
        # The method that the MaskCon paper calls Grafit, which differs from grafit above.
        Method("grafit_maskcon", "supcon", "info_nce", protocol="maskcon"),
        Method("coins", "cross_entropy", "info_nce", classify="features", protocol="maskcon"),
        Method("maskcon", "maskcon", None, protocol="maskcon"),
        # Later methods, on the step of protocol "maskcon".
        Method("spread", "spread", None, protocol="maskcon"),
        Method("ancor", "cross_entropy", "angular", classify="relu", protocol="maskcon"),
        # The control for pretrained trunks: the initial weights, with nothing trained [ours].
        Method("frozen", None, None, projector=None),
    )
}


def get(name: str) -> Method:
    """Returns the method of a name; raises UserError with the nearest known name if there is none."""
    return METHODS[choose(name, "method", METHODS)]


def build_network(
    method: Method, config: ml_collections.ConfigDict, *, num_classes: int, axis_name: str | None = None
) -> Network:
    """Returns the network of a method.

    Args:
      method: the method.
      config: the group `model` of the config.
      num_classes: number of training labels, for the classifier.
      axis_name: the mapped device axis, or None.
    """
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
        trunk=build_trunk(
            config.trunk,
            stem=config.stem,
            dtype=dtype,
            axis_name=axis_name,
            remat=config.remat,
            drop_path=config.drop_path,
            frozen_blocks=_frozen_blocks(config),
            freeze_batch_norm=config.freeze_batch_norm,
        ),
        projector=projectors[method.projector],
        predictor=mlp() if method.instance == "predict" else None,
        classifier=Cosine(num_classes) if method.cosine else nn.Dense(num_classes) if method.classifies else None,
        classify=method.classify,
    )


def _frozen_blocks(config: ml_collections.ConfigDict) -> int:
    """Returns the `Trunk.frozen_blocks` of `model.freeze`."""
    if config.freeze == "trunk":
        return build_trunk(config.trunk).num_blocks + 1  # the layers above the blocks, too
    return int(config.freeze or 0)
