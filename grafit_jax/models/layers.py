"""What all trunks share: their options, and layers with torchvision's constants."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from grafit_jax.models.depthwise import depthwise_conv

# On CPU: largest input of one convolution in bytes, so that it fits in a core's caches.
PART = 2**22
STEMS = ("imagenet", "cifar", "patch2")
# The number that `block_of` gives a layer above the blocks.
ABOVE = 2**31


def conv_general_dilated(images: Array, kernel: Array, strides: Sequence[int], padding: Any, **options) -> Array:
    """Wraps `lax.conv_general_dilated`, for `nn.Conv`, and computes faster on CPU.

    There a convolution and its gradients run part by part, because XLA's convolutions of inputs that exceed the caches
    are bound by memory (see `experiments/benchmark.py --suite=train --entries=convolution`), and a depthwise one is a
    sum of shifted products.
    """
    if jax.default_backend() != "cpu":
        return lax.conv_general_dilated(images, kernel, strides, padding, **options)
    depthwise = options["feature_group_count"] == images.shape[-1] == kernel.shape[-1] > 1
    if depthwise and strides[0] == strides[1]:
        if isinstance(padding, str):
            padding = lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], strides, padding)
        return depthwise_conv(images, kernel, strides[0], tuple(map(tuple, padding)))
    parts = max(1, min(len(images), math.ceil(images.size * images.dtype.itemsize / PART)))
    split = jnp.array_split(images, parts) if parts > 1 else [images]
    found = [lax.conv_general_dilated(part, kernel, strides, padding, **options) for part in split]
    return jnp.concatenate(found) if parts > 1 else found[0]


# PyTorch's momentum 0.1 in Flax's convention, and torchvision's epsilon.
batch_norm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)
# torchvision's initialisation: He normal over the fan-out of all groups together.
conv = functools.partial(
    nn.Conv,
    use_bias=False,
    kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    conv_general_dilated=conv_general_dilated,
)


def uniform(bound: float) -> nn.initializers.Initializer:
    """Uniform in ±bound: PyTorch's default initialisation of a bias, with 1 / sqrt(fan in)."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def conv3x3(width: int, stride: int, dtype: DTypeLike, *, groups: int = 1) -> nn.Conv:
    # Explicit padding as in torchvision: "SAME" would pad a strided convolution on one side only.
    return conv(width, (3, 3), strides=stride, padding=1, feature_group_count=groups, dtype=dtype)


def fold_patches(x: Array, size: int) -> Array:
    """[B, H, W, C] -> [B, H/size, W/size, size*size*C] (space to depth)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w // size, size, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // size, w // size, size * size * c)


def global_average(x: Array) -> Array:
    """[B, H, W, C] -> float32 [B, C], the average over the feature map."""
    if x.dtype == jnp.bfloat16 and jax.default_backend() == "cpu":
        # On CPU, jaxlib 0.11 and 0.12 fuse a ResNet's last block with this sum and return NaN.
        x = lax.optimization_barrier(x)
    return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


def drop_path(branch: Array, keep: Array | None) -> Array:
    """Multiplies each example's branch [B, ...] of a residual block by its factor in `keep` [B]; None keeps it."""
    return branch if keep is None else branch * keep.reshape(-1, *[1] * (branch.ndim - 1)).astype(branch.dtype)


def residual(block: type[nn.Module], remat: bool) -> type[nn.Module]:
    """Returns the block, with `remat` such that the backward pass recomputes its activations.

    Name its modules explicitly: Flax's automatic names differ for `nn.remat`, and the variables must be the same. The
    memory is saved on accelerators only: on CPU XLA merges the recomputed values with the original ones.
    """
    return nn.remat(block) if remat else block


def stage_of(block: int, sizes: Sequence[int]) -> tuple[int, int]:
    """Returns the stage of a trunk's block, counted from 1, and the block's index within the stage."""
    before = sum(first <= block for first in itertools.accumulate(sizes))
    return before + 1, block - sum(sizes[:before])


def block_of(layer: str) -> int:
    """Returns the number in the name of a trunk's block, such as YBlock_3; -1 for a layer of the stem, ABOVE above."""
    kind, _, number = layer.rpartition("_")
    return ABOVE if layer.startswith("last_") else int(number) if kind.endswith("Block") else -1


class Trunk(nn.Module, kw_only=True):
    """A network without a head: float [B, H, W, C] -> float32 [B, features].

    Its blocks are named NAME_0, NAME_1, … with NAME ending in "Block". Names of layers above them start with "last_";
    all others belong to the stem.

    Attributes:
      stem: first layers; see `config.default`.
      dtype: of the computation; parameters and batch statistics are float32.
      axis_name: the mapped device axis over which batch statistics are shared, or None for per-device statistics.
      remat: whether the backward pass recomputes the activations inside blocks instead of keeping them.
      drop_path: probability to leave out the residual branch of the last block (Huang et al. 2016); that of the others
        falls linearly to 0 at the first.
      frozen_blocks: number of blocks from the first on whose batch norms, like the stem's, use the running statistics
        in training too, so that they compute a fixed function of fixed weights; `num_blocks` + 1 for all layers.
      freeze_batch_norm: whether those of all blocks do.
    """

    stem: str = "imagenet"
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    remat: bool = False
    drop_path: float = 0.0
    frozen_blocks: int = 0
    freeze_batch_norm: bool = False

    # Name of the classifier in the weights of torchvision or timm.
    torch_head = "fc"
    # The stems that the trunk can have.
    stems: ClassVar[Sequence[str]] = STEMS

    @property
    def num_blocks(self) -> int:
        raise NotImplementedError

    @property
    def multiple(self) -> int:
        """The number that must divide the sides of images."""
        return 2 if self.stem == "patch2" else 1

    def torch_name(self, path: Sequence[str]) -> str:
        """Returns the name of a layer in torchvision's or timm's weights; empty for parameters of the trunk itself."""
        raise NotImplementedError

    @property
    def frozen(self) -> bool:
        """Whether all layers are frozen, so that the trunk is a fixed function."""
        return self.frozen_blocks > self.num_blocks

    @nn.nowrap
    def is_frozen(self, layer: str) -> bool:
        """Returns whether the layer of this name is frozen."""
        return min(max(block_of(layer), 0), self.num_blocks) < self.frozen_blocks

    @nn.nowrap
    def adapt(self, tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Returns a network's tensors under the names and in the shapes that `torch_name` and the variables expect."""
        return tensors

    @nn.nowrap
    def norm(self, block: int, train: bool, **options: Any) -> Callable[..., nn.Module]:
        """Returns the batch norm of a block. The stem uses block 0, layers above the blocks `num_blocks`."""
        fixed = not train or self.freeze_batch_norm or block < self.frozen_blocks
        return functools.partial(
            batch_norm, use_running_average=fixed, dtype=self.dtype, axis_name=self.axis_name, **options
        )

    @nn.nowrap
    def keep(self, block: int, draws: Array | None) -> Array | None:
        """Returns the factor [B] of a block's residual branch, whose mean is 1, given uniform draws [B, blocks]."""
        rate = self.drop_path * block / max(self.num_blocks - 1, 1)
        if draws is None or not rate or block < self.frozen_blocks:
            return None
        return (draws[:, block] >= rate) / (1 - rate)
