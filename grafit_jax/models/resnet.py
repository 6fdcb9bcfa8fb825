"""Residual networks (He et al. 2016, as torchvision lays them out), NHWC, with stems for large and small images."""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from grafit_jax.models.layers import batch_norm, conv, conv3x3, fold_patches, global_average, residual, stage_of


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet-18 and -34)."""

    width: int
    stride: int
    norm: Callable[..., nn.Module]
    dtype: DTypeLike
    convolutions = 2

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = conv3x3(self.width, self.stride, self.dtype)(x)
        y = nn.relu(self.norm()(y))
        y = conv3x3(self.width, 1, self.dtype)(y)
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
        y = nn.relu(self.norm()(conv(self.width, (1, 1), dtype=self.dtype)(x)))
        y = nn.relu(self.norm()(conv3x3(self.width, self.stride, self.dtype)(y)))
        y = conv(self.width * self.expansion, (1, 1), dtype=self.dtype)(y)
        y = self.norm(scale_init=nn.initializers.zeros)(y)
        return nn.relu(y + _shortcut(x, y, self.stride, self.norm, self.dtype))


def _shortcut(x, y, stride, norm, dtype):
    if x.shape == y.shape:
        return x
    return norm()(conv(y.shape[-1], (1, 1), strides=stride, dtype=dtype)(x))


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
      remat: whether activations inside of blocks are made again in the backward pass instead of kept.
    """

    stage_sizes: Sequence[int]
    block: type[BasicBlock] | type[BottleneckBlock]
    width: int = 64
    stem: str = "imagenet"
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        norm = functools.partial(batch_norm, use_running_average=not train, dtype=self.dtype, axis_name=self.axis_name)
        x = jnp.asarray(x, self.dtype)
        if self.stem == "imagenet":
            x = conv(self.width, (7, 7), strides=2, padding=3, dtype=self.dtype)(x)
            x = nn.max_pool(nn.relu(norm()(x)), (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        else:
            x = fold_patches(x, 2) if self.stem == "patch2" else x
            x = nn.relu(norm()(conv3x3(self.width, 1, self.dtype)(x)))
        block = residual(self.block, self.remat)
        for number in range(sum(self.stage_sizes)):
            stage, place = stage_of(number, self.stage_sizes)
            stride = 2 if stage > 1 and place == 0 else 1
            name = f"{self.block.__name__}_{number}"
            x = block(self.width * 2 ** (stage - 1), stride, norm, self.dtype, name=name)(x)
        return global_average(x)

    @nn.nowrap
    def torch_name(self, path: Sequence[str]) -> str:
        """("BasicBlock_2", "Conv_1") -> "layer2.0.conv2": what torchvision calls a layer of this trunk."""
        *inside, layer = path
        kind, _, number = layer.rpartition("_")
        if not inside:
            return {"Conv": "conv1", "BatchNorm": "bn1"}[kind]
        stage, place = stage_of(int(inside[0].rpartition("_")[2]), self.stage_sizes)
        # Behind a block's own convolutions stands that of its shortcut.
        if int(number) == self.block.convolutions:
            name = {"Conv": "downsample.0", "BatchNorm": "downsample.1"}[kind]
        else:
            name = {"Conv": "conv", "BatchNorm": "bn"}[kind] + str(int(number) + 1)
        return f"layer{stage}.{place}.{name}"


# Names are torchvision's; the small one, for CPUs, is [ours].
TRUNKS = {
    "resnet18": functools.partial(ResNet, (2, 2, 2, 2), BasicBlock),
    "resnet34": functools.partial(ResNet, (3, 4, 6, 3), BasicBlock),
    "resnet50": functools.partial(ResNet, (3, 4, 6, 3), BottleneckBlock),
    "resnet8": functools.partial(ResNet, (1, 1, 1), BasicBlock, width=16),
}
