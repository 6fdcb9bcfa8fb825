"""Residual networks (He et al. 2016, as torchvision lays them out), NHWC, with stems for large and small images."""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from grafit_jax.models.layers import batch_norm, conv, conv3x3, fold_patches, global_average, residual, stage_of


class Block(nn.Module):
    """Two 3x3 convolutions (ResNet-18 and -34), or 1x1, 3x3 and 1x1 (a bottleneck: ResNet-50), and a shortcut.

    The stride of a bottleneck is at the 3x3, as in torchvision.
    """

    width: int
    stride: int
    bottleneck: bool
    norm: Callable[..., nn.Module]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.bottleneck:
            y = nn.relu(self.norm()(conv(self.width, (1, 1), dtype=self.dtype)(x)))
            y = nn.relu(self.norm()(conv3x3(self.width, self.stride, self.dtype)(y)))
            y = conv(4 * self.width, (1, 1), dtype=self.dtype)(y)
        else:
            y = nn.relu(self.norm()(conv3x3(self.width, self.stride, self.dtype)(x)))
            y = conv3x3(self.width, 1, self.dtype)(y)
        y = self.norm(scale_init=nn.initializers.zeros)(y)
        if x.shape != y.shape:
            x = self.norm()(conv(y.shape[-1], (1, 1), strides=self.stride, dtype=self.dtype)(x))
        return nn.relu(y + x)


class ResNet(nn.Module):
    """float [B, H, W, C] -> float32 [B, features], the average over the last feature map.

    Attributes:
      stage_sizes: blocks a stage.
      bottleneck: of which kind the blocks are.
      width: channels of the first stage; they double from stage to stage.
      stem: "imagenet" (7x7 stride 2, max-pool), "cifar" (3x3 stride 1: for images of about 32 px) or "patch2" (2x2
        pixels folded into channels, then 3x3 stride 1: four times less work, for CPUs).
      dtype: of the computation; parameters and batch statistics are float32 always.
      axis_name: a mapped device axis over which batch statistics are shared, or None for each device's own.
      remat: whether activations inside of blocks are made again in the backward pass instead of kept.
    """

    stage_sizes: Sequence[int]
    bottleneck: bool = False
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
        block, kind = residual(Block, self.remat), "Bottleneck" if self.bottleneck else "Basic"
        for number in range(sum(self.stage_sizes)):
            stage, place = stage_of(number, self.stage_sizes)
            stride = 2 if stage > 1 and place == 0 else 1
            width, name = self.width * 2 ** (stage - 1), f"{kind}Block_{number}"
            x = block(width, stride, self.bottleneck, norm, self.dtype, name=name)(x)
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
        if int(number) == (3 if self.bottleneck else 2):
            name = {"Conv": "downsample.0", "BatchNorm": "downsample.1"}[kind]
        else:
            name = {"Conv": "conv", "BatchNorm": "bn"}[kind] + str(int(number) + 1)
        return f"layer{stage}.{place}.{name}"


# Names are torchvision's; the small one, for CPUs, is [ours].
TRUNKS = {
    "resnet18": functools.partial(ResNet, (2, 2, 2, 2)),
    "resnet34": functools.partial(ResNet, (3, 4, 6, 3)),
    "resnet50": functools.partial(ResNet, (3, 4, 6, 3), bottleneck=True),
    "resnet8": functools.partial(ResNet, (1, 1, 1), width=16),
}
