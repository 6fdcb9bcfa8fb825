"""Residual networks (He et al. 2016) in torchvision's variant, NHWC, with stems for large and small images."""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from grafit_jax.models.layers import Trunk, conv, conv3x3, drop_path, fold_patches, global_average, residual, stage_of


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1, and a shortcut.

    The 3x3 convolution of a bottleneck has the stride, as in torchvision.
    """

    width: int
    stride: int
    bottleneck: bool
    norm: Callable[..., nn.Module]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, keep: Array | None) -> Array:
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
        return nn.relu(drop_path(y, keep) + x)


class ResNet(Trunk):
    """A residual network, whose features are the average over the last feature map.

    Attributes:
      stage_sizes: number of blocks in each stage.
      bottleneck: whether the blocks are bottlenecks.
      width: channels of the first stage, doubled by every further stage.
      stem: "imagenet" (7x7 stride 2, max-pool), "cifar" (3x3 stride 1, for images of about 32 px) or "patch2" (2x2
        pixels folded into channels, then 3x3 stride 1, which takes a quarter of the work, for CPUs).
    """

    stage_sizes: Sequence[int]
    bottleneck: bool = False
    width: int = 64

    @property
    def num_blocks(self) -> int:
        return sum(self.stage_sizes)

    @nn.compact
    def __call__(self, x: Array, *, train: bool, draws: Array | None = None) -> Array:
        x, norm = jnp.asarray(x, self.dtype), self.norm(0, train)
        if self.stem == "imagenet":
            x = conv(self.width, (7, 7), strides=2, padding=3, dtype=self.dtype)(x)
            x = nn.max_pool(nn.relu(norm()(x)), (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        else:
            x = fold_patches(x, 2) if self.stem == "patch2" else x
            x = nn.relu(norm()(conv3x3(self.width, 1, self.dtype)(x)))
        block, kind = residual(Block, self.remat), "Bottleneck" if self.bottleneck else "Basic"
        for i in range(self.num_blocks):
            stage, place = stage_of(i, self.stage_sizes)
            stride = 2 if stage > 1 and place == 0 else 1
            width, name = self.width * 2 ** (stage - 1), f"{kind}Block_{i}"
            apply = block(width, stride, self.bottleneck, self.norm(i, train), self.dtype, name=name)
            x = apply(x, self.keep(i, draws))
        return global_average(x)

    @nn.nowrap
    def torch_name(self, path: Sequence[str]) -> str:
        """Returns torchvision's name of a layer: ("BasicBlock_2", "Conv_1") -> "layer2.0.conv2"."""
        *inside, layer = path
        kind, _, number = layer.rpartition("_")
        if not inside:
            return {"Conv": "conv1", "BatchNorm": "bn1"}[kind]
        stage, place = stage_of(int(inside[0].rpartition("_")[2]), self.stage_sizes)
        # The shortcut's convolution follows the block's own ones.
        if int(number) == (3 if self.bottleneck else 2):
            name = {"Conv": "downsample.0", "BatchNorm": "downsample.1"}[kind]
        else:
            name = {"Conv": "conv", "BatchNorm": "bn"}[kind] + str(int(number) + 1)
        return f"layer{stage}.{place}.{name}"


# torchvision's names; resnet8, for CPUs, is [ours].
TRUNKS = {
    "resnet18": functools.partial(ResNet, (2, 2, 2, 2)),
    "resnet34": functools.partial(ResNet, (3, 4, 6, 3)),
    "resnet50": functools.partial(ResNet, (3, 4, 6, 3), bottleneck=True),
    "resnet8": functools.partial(ResNet, (1, 1, 1), width=16),
}
