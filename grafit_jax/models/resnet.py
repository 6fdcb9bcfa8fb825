"""Residual networks (He et al. 2016, as torchvision lays them out), NHWC, with stems for large and small images."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from grafit_jax.errors import UserError
from grafit_jax.models.convolution import conv_general_dilated

# PyTorch's momentum 0.1 in Flax's convention, and torchvision's epsilon.
batch_norm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5)
# torchvision's initialisation: He normal over the fan-out.
_conv = functools.partial(
    nn.Conv,
    use_bias=False,
    kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    conv_general_dilated=conv_general_dilated,
)


def _conv3x3(width: int, stride: int, dtype: DTypeLike) -> nn.Conv:
    # Explicit padding: "SAME" would pad a strided convolution on one side only, other than torchvision.
    return _conv(width, (3, 3), strides=stride, padding=1, dtype=dtype)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18 and -34)."""

    width: int
    stride: int
    norm: Callable[..., nn.Module]
    dtype: DTypeLike
    expansion = 1
    convolutions = 2

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = _conv3x3(self.width, self.stride, self.dtype)(x)
        y = nn.relu(self.norm()(y))
        y = _conv3x3(self.width, 1, self.dtype)(y)
        y = self.norm(scale_init=nn.initializers.zeros)(y)
        return nn.relu(y + _shortcut(x, y, self.stride, self.norm, self.dtype))


class BottleneckBlock(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut (ResNet-50); the stride is at the 3x3, as in torchvision."""

    width: int
    stride: int
    norm: Callable[..., nn.Module]
    dtype: DTypeLike
    expansion = 4
    convolutions = 3

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = nn.relu(self.norm()(_conv(self.width, (1, 1), dtype=self.dtype)(x)))
        y = nn.relu(self.norm()(_conv3x3(self.width, self.stride, self.dtype)(y)))
        y = _conv(self.width * self.expansion, (1, 1), dtype=self.dtype)(y)
        y = self.norm(scale_init=nn.initializers.zeros)(y)
        return nn.relu(y + _shortcut(x, y, self.stride, self.norm, self.dtype))


def _shortcut(x, y, stride, norm, dtype):
    if x.shape == y.shape:
        return x
    return norm()(_conv(y.shape[-1], (1, 1), strides=stride, dtype=dtype)(x))


class ResNet(nn.Module):
    """float [B, H, W, C] -> float32 [B, features], the average over the last feature map.

    Attributes:
      stage_sizes: blocks a stage.
      block: BasicBlock or BottleneckBlock.
      width: channels of the first stage; they double from stage to stage.
      stem: "imagenet" (7x7 stride 2, max-pool), "cifar" (3x3 stride 1: for images of about 32 px) or "patch2" (2x2
        pixels folded into channels, then 3x3 stride 1: four times less work, for CPUs).
      dtype: of the computation; parameters and batch statistics are float32 always.
      axis_name: a mapped device axis over which batch statistics are shared, or None for each device's own.
    """

    stage_sizes: Sequence[int]
    block: type[BasicBlock] | type[BottleneckBlock]
    width: int = 64
    stem: str = "imagenet"
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        norm = functools.partial(batch_norm, use_running_average=not train, dtype=self.dtype, axis_name=self.axis_name)
        x = jnp.asarray(x, self.dtype)
        if self.stem == "imagenet":
            x = _conv(self.width, (7, 7), strides=2, padding=3, dtype=self.dtype)(x)
            x = nn.max_pool(nn.relu(norm()(x)), (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        else:
            x = _fold_patches(x, 2) if self.stem == "patch2" else x
            x = nn.relu(norm()(_conv3x3(self.width, 1, self.dtype)(x)))
        for stage, size in enumerate(self.stage_sizes):
            for i in range(size):
                stride = 2 if stage > 0 and i == 0 else 1
                x = self.block(self.width * 2**stage, stride, norm, self.dtype)(x)
        return jnp.mean(x.astype(jnp.float32), axis=(1, 2))


def _fold_patches(x: Array, size: int) -> Array:
    """[B, H, W, C] -> [B, H/size, W/size, size*size*C] (space to depth)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w // size, size, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // size, w // size, size * size * c)


@dataclasses.dataclass(frozen=True)
class _Layout:
    stage_sizes: tuple[int, ...]
    block: type[BasicBlock] | type[BottleneckBlock]
    width: int = 64


# Names are torchvision's; the small ones, for CPUs, are [ours].
TRUNKS = {
    "resnet18": _Layout((2, 2, 2, 2), BasicBlock),
    "resnet34": _Layout((3, 4, 6, 3), BasicBlock),
    "resnet50": _Layout((3, 4, 6, 3), BottleneckBlock),
    "resnet8": _Layout((1, 1, 1), BasicBlock, width=16),
}
TORCHVISION = ("resnet18", "resnet34", "resnet50")
STEMS = ("imagenet", "cifar", "patch2")


def build_trunk(
    name: str, *, stem: str = "imagenet", dtype: DTypeLike = jnp.float32, axis_name: str | None = None
) -> ResNet:
    """The trunk f_theta of that name (a key of `TRUNKS`)."""
    if name not in TRUNKS:
        raise UserError(f"unknown trunk {name!r}: want one of {', '.join(TRUNKS)}.")
    layout = TRUNKS[name]
    return ResNet(layout.stage_sizes, layout.block, layout.width, stem, dtype, axis_name)
