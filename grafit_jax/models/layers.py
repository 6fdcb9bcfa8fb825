"""Layers shared by ResNets and RegNets, with torchvision's constants."""

import functools
import itertools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

# On CPU: largest input of one convolution in bytes, so that it fits in a core's caches.
PART = 2**22


def conv_general_dilated(images: Array, kernel: Array, *args, **options) -> Array:
    """Wraps `lax.conv_general_dilated`, for `nn.Conv`, and splits large batches on CPU.

    On CPU the convolution and its gradients run part by part, because XLA's convolutions of inputs that exceed the
    caches are bound by memory (see `experiments/benchmark.py --suite=train --entries=convolution`).
    """
    parts = min(len(images), math.ceil(images.size * images.dtype.itemsize / PART))
    if jax.default_backend() != "cpu" or parts <= 1:
        return lax.conv_general_dilated(images, kernel, *args, **options)
    return jnp.concatenate(
        [lax.conv_general_dilated(part, kernel, *args, **options) for part in jnp.array_split(images, parts)]
    )


# PyTorch's momentum 0.1 in Flax's convention, and torchvision's epsilon.
batch_norm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)
# torchvision's initialisation: He normal over the fan-out of all groups together.
conv = functools.partial(
    nn.Conv,
    use_bias=False,
    kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    conv_general_dilated=conv_general_dilated,
)


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
