"""The heads, and the network of trunk and heads: g_theta = P_theta o f_theta, predictor q_theta, classifier."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax import traverse_util
from jax import Array
from jax.typing import DTypeLike

from grafit_jax.errors import UserError
from grafit_jax.models.layers import batch_norm
from grafit_jax.similarity import matmul, unit

# Initialisations of the heads' linear layers: Flax's default, or PyTorch's.
INITS = ("lecun", "pytorch")


class MLP(nn.Module):
    """Linear, batch norm, ReLU, linear: BYOL's projector and predictor; [ours] for Grafit, whose heads are unpublished.

    Attributes:
      hidden: width of the hidden layer.
      dim: width of the output.
      dtype: of the computation; the output is float32.
      axis_name: the mapped device axis over which batch statistics are shared, or None.
      batch_norm: whether the hidden layer has a batch norm; MoCo's and MaskCon's projectors have none.
      final_norm: whether the output has a batch norm without scale and bias, which centres the embeddings (SimSiam).
    """

    hidden: int
    dim: int
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    batch_norm: bool = True
    final_norm: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        norm = functools.partial(batch_norm, use_running_average=not train, dtype=self.dtype, axis_name=self.axis_name)
        # A bias before a batch norm would have no effect.
        x = nn.Dense(self.hidden, use_bias=not self.batch_norm, dtype=self.dtype)(x)
        if self.batch_norm:
            x = norm()(x)
        x = nn.Dense(self.dim, use_bias=not self.final_norm, dtype=self.dtype)(nn.relu(x))
        if self.final_norm:
            x = norm(dtype=jnp.float32, use_scale=False, use_bias=False)(x)
        return x.astype(jnp.float32)


class Linear(nn.Module):
    """A single linear layer: SNCA's projector. As for `MLP`, the losses normalise the output."""

    dim: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        return nn.Dense(self.dim, dtype=self.dtype)(x).astype(jnp.float32)


class Cosine(nn.Module):
    """A classifier by the cosine similarity to the weight vector of each class, without bias; logits in [-1, 1]."""

    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.num_classes))
        return matmul(unit(x), unit(kernel.T).T)


class Identity(nn.Module):
    """No projector: the embedding is the trunk's feature vector, of size `dim`."""

    dim: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        if x.shape[-1] != self.dim:
            raise UserError(
                f"found model.embed_dim = {self.dim} with a trunk of {x.shape[-1]} features; expected equal numbers "
                f"without a projector; use model.embed_dim = {x.shape[-1]}."
            )
        return x


@flax.struct.dataclass
class Outputs:
    """Outputs of a network for B images; None for a head that it lacks.

    Attributes:
      features: float32 [B, F], the trunk's f_theta(x).
      projection: float32 [B, D], g_theta(x).
      prediction: float32 [B, D], q_theta(g_theta(x)).
      logits: float32 [B, K] over coarse classes or clusters.
    """

    features: Array
    projection: Array | None = None
    prediction: Array | None = None
    logits: Array | None = None


class Network(nn.Module):
    """A trunk with the heads of a method; None for a head that it lacks.

    The classifier's input is by `classify` the "projection", the "relu" of it, or the "features"; without a projector,
    the features stand for the projection.
    """

    trunk: nn.Module
    projector: nn.Module | None = None
    predictor: nn.Module | None = None
    classifier: nn.Module | None = None
    classify: str = "projection"

    def __call__(self, images: Array, *, train: bool, draws: Array | None = None) -> Outputs:
        """Applies all parts to images [B, H, W, C]; draws are uniform numbers [B, blocks] for the trunk's drop path."""
        return self.heads(self.trunk(images, train=train, draws=draws), train=train)

    def embed(self, images: Array, *, train: bool) -> Outputs:
        """Applies trunk and projector, the part that the target network has too."""
        return self.project(self.trunk(images, train=train), train=train)

    def features(self, images: Array) -> Array:
        """Applies the trunk in evaluation mode."""
        return self.trunk(images, train=False)

    def heads(self, features: Array, *, train: bool) -> Outputs:
        """Applies the heads to the trunk's features [B, F]."""
        out = self.project(features, train=train)
        top = out.features if out.projection is None else out.projection
        prediction = None if self.predictor is None else self.predictor(top, train=train)
        classified = out.features if self.classify == "features" else top
        classified = nn.relu(classified) if self.classify == "relu" else classified
        logits = None if self.classifier is None else self.classifier(classified)
        return dataclasses.replace(out, prediction=prediction, logits=logits)

    def project(self, features: Array, *, train: bool) -> Outputs:
        """Applies the projector to the trunk's features [B, F]."""
        projection = None if self.projector is None else self.projector(features, train=train)
        return Outputs(features=features, projection=projection)

    @nn.nowrap
    def trained(self, params: dict[str, Any]) -> dict[str, Any]:
        """Returns params, or a tree of the same names, without the trunk's frozen layers."""
        return _without(params, self.trunk.is_frozen)

    @nn.nowrap
    def adapted(self, batch_stats: dict[str, Any]) -> dict[str, Any]:
        """Returns batch statistics without those that training keeps as they are."""
        return _without(batch_stats, lambda layer: self.trunk.freeze_batch_norm or self.trunk.is_frozen(layer))


def _without(tree: dict[str, Any], is_fixed: Callable[[str], bool]) -> dict[str, Any]:
    """Returns params or batch statistics without the fixed layers of the trunk; omits the trunk if all are fixed."""
    trunk = {layer: arrays for layer, arrays in tree.get("trunk", {}).items() if not is_fixed(layer)}
    return {name: part for name, part in {**tree, "trunk": trunk}.items() if part}


def as_pytorch(heads: dict[str, Any], key: Array) -> dict[str, Any]:
    """Redraws the linear layers of heads as torch.nn.Linear does: kernels and biases uniform in ±1 / sqrt(fan in)."""
    flat = traverse_util.flatten_dict(heads)
    drawn = {}
    for i, path in enumerate(sorted(flat)):
        kernel = flat.get((*path[:-1], "kernel"))
        if kernel is None:  # a batch norm
            drawn[path] = flat[path]
            continue
        bound = kernel.shape[0] ** -0.5
        drawn[path] = jax.random.uniform(jax.random.fold_in(key, i), flat[path].shape, minval=-bound, maxval=bound)
    return traverse_util.unflatten_dict(drawn)
