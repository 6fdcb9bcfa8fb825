"""The layers that both families of trunks are made of, with torchvision's constants."""

import functools
import itertools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

# On CPU: bytes of the images that are convolved in one go, which a core's caches can hold.
PART = 2**22


def conv_general_dilated(images: Array, kernel: Array, *args, **options) -> Array:
    """`lax.conv_general_dilated` over the batch axis 0; what `nn.Conv` calls.

    On CPU a large batch is convolved part by part, and so are its gradients: XLA's convolutions of more than the caches
    hold wait for memory (`experiments/benchmark.py --suite=train --entries=convolution` has the ratio).
    """
    parts = min(len(images), math.ceil(images.size * images.dtype.itemsize / PART))
    if jax.default_backend() != "cpu" or parts <= 1:
        return lax.conv_general_dilated(images, kernel, *args, **options)
    return jnp.concatenate(
        [lax.conv_general_dilated(part, kernel, *args, **options) for part in jnp.array_split(images, parts)]
    )


# PyTorch's momentum 0.1 in Flax's convention, and torchvision's epsilon.
batch_norm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)
# torchvision's initialisation: He normal over the fan-out, which groups do not divide.
conv = functools.partial(
    nn.Conv,
    use_bias=False,
    kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    conv_general_dilated=conv_general_dilated,
)


def conv3x3(width: int, stride: int, dtype: DTypeLike, *, groups: int = 1) -> nn.Conv:
    # Explicit padding: "SAME" would pad a strided convolution on one side only, other than torchvision.
    return conv(width, (3, 3), strides=stride, padding=1, feature_group_count=groups, dtype=dtype)


def fold_patches(x: Array, size: int) -> Array:
    """[B, H, W, C] -> [B, H/size, W/size, size*size*C] (space to depth)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w // size, size, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // size, w // size, size * size * c)


def global_average(x: Array) -> Array:
    """[B, H, W, C] -> float32 [B, C], the average over the feature map."""
    if x.dtype == jnp.bfloat16 and jax.default_backend() == "cpu":
        # jaxlib 0.11 and 0.12 fuse a ResNet's last block with this sum on CPU, and the result is NaN.
        x = lax.optimization_barrier(x)
    return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


def residual(block: type[nn.Module], remat: bool) -> type[nn.Module]:
    """The block, or the same whose activations are made again in the backward pass instead of kept.

    Give its modules names: Flax derives others from what this returns, and variables have to be the same either way.
    On CPU XLA merges much of it again with what was made before, so that it saves memory on accelerators alone.
    """
    return nn.remat(block) if remat else block


def stage_of(block: int, sizes: Sequence[int]) -> tuple[int, int]:
    """The stage, from 1, of the trunk's block of that number, and its number within the stage."""
    before = sum(first <= block for first in itertools.accumulate(sizes))
    return before + 1, block - sum(sizes[:before])
