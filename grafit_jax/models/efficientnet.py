"""EfficientNet-Lite in timm's variant, NHWC: EfficientNet (Tan and Le 2019, arXiv 1905.11946) for small devices.

It has ReLU6 and no squeeze-and-excitation. `tf_efficientnet_lite0` has 4,652,008 parameters with a 1000-way classifier,
as timm's, and 1280 features. It takes 0.39 G multiply-adds at 224 px.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from grafit_jax.models.layers import Trunk, conv, drop_path, fold_patches, global_average, residual, stage_of


class Stage(NamedTuple):
    """A stage of equal blocks, of which the first has the stride.

    Attributes:
      blocks: number of blocks.
      kernel: side of the depthwise convolution.
      stride: of the first block.
      expansion: inner width of a block, as a multiple of its input's; 1 for blocks without an expanding convolution.
      width: output channels.
    """

    blocks: int
    kernel: int
    stride: int
    expansion: int
    width: int


LITE0 = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class MBBlock(nn.Module):
    """1x1 expanding (unless the expansion is 1), depthwise and 1x1 convolution; a shortcut where shapes are equal."""

    stage: Stage
    stride: int
    norm: Callable[..., nn.Module]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, keep: Array | None) -> Array:
        y, inner = x, self.stage.expansion * x.shape[-1]
        if self.stage.expansion > 1:
            y = nn.relu6(self.norm()(conv(inner, (1, 1), dtype=self.dtype)(y)))
        # "SAME" as in TensorFlow, where the weights come from.
        size, stride = (self.stage.kernel, self.stage.kernel), self.stride
        y = conv(inner, size, strides=stride, padding="SAME", feature_group_count=inner, dtype=self.dtype)(y)
        y = nn.relu6(self.norm()(y))
        y = self.norm()(conv(self.stage.width, (1, 1), dtype=self.dtype)(y))
        return x + drop_path(y, keep) if x.shape == y.shape else y


class EfficientNetLite(Trunk):
    """An EfficientNet-Lite, whose features are the average over the last feature map.

    Attributes:
      stages: its stages.
      features: channels of the last convolution.
      stem: as for `ResNet`, but "imagenet" is 3x3 stride 2.
    """

    stages: Sequence[Stage]
    features: int = 1280

    torch_head = "classifier"

    @property
    def num_blocks(self) -> int:
        return sum(self._sizes)

    @property
    def _sizes(self) -> list[int]:
        return [stage.blocks for stage in self.stages]

    @nn.compact
    def __call__(self, x: Array, *, train: bool, draws: Array | None = None) -> Array:
        def norm(block: int) -> Callable[..., nn.Module]:
            return self.norm(block, train, epsilon=1e-3)  # TensorFlow's

        x = jnp.asarray(x, self.dtype)
        x = fold_patches(x, 2) if self.stem == "patch2" else x
        stride = 2 if self.stem == "imagenet" else 1
        x = conv(32, (3, 3), strides=stride, padding="SAME", dtype=self.dtype)(x)
        x = nn.relu6(norm(0)()(x))
        block = residual(MBBlock, self.remat)
        for i in range(self.num_blocks):
            number, place = stage_of(i, self._sizes)
            stage = self.stages[number - 1]
            stride = stage.stride if place == 0 else 1
            apply = block(stage, stride, norm(i), self.dtype, name=f"MBBlock_{i}")
            x = apply(x, self.keep(i, draws))
        x = conv(self.features, (1, 1), dtype=self.dtype, name="last_conv")(x)
        return global_average(nn.relu6(norm(self.num_blocks)(name="last_norm")(x)))

    @nn.nowrap
    def torch_name(self, path: Sequence[str]) -> str:
        """Returns timm's name of a layer: ("MBBlock_1", "Conv_1") -> "blocks.1.0.conv_dw"."""
        *inside, layer = path
        if not inside:
            return {"Conv_0": "conv_stem", "BatchNorm_0": "bn1", "last_conv": "conv_head", "last_norm": "bn2"}[layer]
        number, place = stage_of(int(inside[0].rpartition("_")[2]), self._sizes)
        kind, _, index = layer.rpartition("_")
        expands = self.stages[number - 1].expansion > 1
        convolutions = ("conv_pw", "conv_dw", "conv_pwl") if expands else ("conv_dw", "conv_pw")
        name = convolutions[int(index)] if kind == "Conv" else f"bn{int(index) + 1}"
        return f"blocks.{number - 1}.{place}.{name}"


# timm's name.
TRUNKS = {"tf_efficientnet_lite0": functools.partial(EfficientNetLite, LITE0)}
