"""RegNetY (Radosavovic et al. 2020, arXiv 2003.13678) in torchvision's variant, NHWC.

| name | parameters | multiply-adds at 224 px | features |
|---|---|---|---|
| regnet_y_200mf | 3,162,996 | 0.20 G | 368 |
| regnet_y_400mf | 4,344,144 | 0.40 G | 440 |
| regnet_y_800mf | 6,432,512 | 0.83 G | 784 |
| regnet_y_1_6gf | 11,202,430 | 1.61 G | 888 |
| regnet_y_3_2gf | 19,436,338 | 3.18 G | 1512 |
| regnet_y_8gf | 39,381,472 | 8.47 G | 2016 |
| regnet_y_16gf | 83,590,140 | 15.91 G | 3024 |

Both counts include a 1000-way classifier and equal torchvision's, which has no 200MF. At 800MF and 8GF torchvision
rounds widths up where the paper rounds them down, so its 8GF takes 8.5 G.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from grafit_jax.models.layers import (
    Trunk,
    conv,
    conv3x3,
    drop_path,
    fold_patches,
    global_average,
    residual,
    stage_of,
    uniform,
)  # fmt: skip


class SqueezeExcitation(nn.Module):
    """Scales each channel by a factor in (0, 1), computed from all channel means by two layers."""

    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = jnp.mean(x, axis=(1, 2), keepdims=True)
        for width, activation in ((self.width, nn.relu), (x.shape[-1], nn.sigmoid)):
            bias = uniform(1 / math.sqrt(scale.shape[-1]))  # PyTorch's, which torchvision keeps
            scale = activation(conv(width, (1, 1), use_bias=True, bias_init=bias, dtype=self.dtype)(scale))
        return x * scale


class YBlock(nn.Module):
    """1x1, grouped 3x3 (with the stride), squeeze-and-excitation and 1x1 convolution, and a shortcut."""

    width: int
    stride: int
    group_width: int
    norm: Callable[..., nn.Module]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, keep: Array | None) -> Array:
        y = nn.relu(self.norm()(conv(self.width, (1, 1), dtype=self.dtype)(x)))
        y = conv3x3(self.width, self.stride, self.dtype, groups=self.width // self.group_width)(y)
        y = nn.relu(self.norm()(y))
        # A quarter of the block's input channels, not of its inner channels.
        y = SqueezeExcitation(x.shape[-1] // 4, self.dtype)(y)
        y = self.norm()(conv(self.width, (1, 1), dtype=self.dtype)(y))
        if x.shape != y.shape:
            x = self.norm()(conv(self.width, (1, 1), strides=self.stride, dtype=self.dtype)(x))
        return nn.relu(x + drop_path(y, keep))


class RegNet(Trunk):
    """A RegNetY, whose features are the average over the last feature map.

    Every stage halves the resolution, including the first.

    Attributes:
      depth: total number of blocks.
      w_0: width of the first block.
      w_a: increase of the width per block, before widths are rounded to `w_0` times a power of `w_m`.
      w_m: ratio of the widths of consecutive stages.
      group_width: channels per group of the 3x3 convolutions, at most the width of the first stage.
      stem: as for `ResNet`, but "imagenet" is 3x3 stride 2.
    """

    depth: int
    w_0: int
    w_a: float
    w_m: float
    group_width: int

    @property
    def num_blocks(self) -> int:
        return self.depth

    @nn.compact
    def __call__(self, x: Array, *, train: bool, draws: Array | None = None) -> Array:
        x = jnp.asarray(x, self.dtype)
        x = fold_patches(x, 2) if self.stem == "patch2" else x
        x = conv3x3(32, 2 if self.stem == "imagenet" else 1, self.dtype)(x)
        x = nn.relu(self.norm(0, train)()(x))
        block = residual(YBlock, self.remat)
        sizes, widths = self.stages()
        for i in range(self.depth):
            stage, place = stage_of(i, sizes)
            stride = 2 if place == 0 else 1
            norm, name = self.norm(i, train), f"YBlock_{i}"
            apply = block(widths[stage - 1], stride, self.group_width, norm, self.dtype, name=name)
            x = apply(x, self.keep(i, draws))
        return global_average(x)

    @nn.nowrap
    def stages(self) -> tuple[list[int], list[int]]:
        """Returns the number of blocks and the width of each stage (RegNet, section 3.3; torchvision's rounding)."""
        # u_j = w_0 + w_a j, to the nearest w_0 w_m^s with a whole s, to the nearest multiple of 8.
        u = self.w_0 + self.w_a * np.arange(self.depth)
        s = np.round(np.log(u / self.w_0) / math.log(self.w_m))
        w = 8 * np.round(self.w_0 * self.w_m**s / 8).astype(int)
        widths, sizes = np.unique(w, return_counts=True)  # w never falls
        return sizes.tolist(), [_whole_groups(width, self.group_width) for width in widths.tolist()]

    @nn.nowrap
    def torch_name(self, path: Sequence[str]) -> str:
        """Returns torchvision's name of a layer: ("YBlock_1", "Conv_0") -> "trunk_output.block2.block2-0.f.a.0"."""
        *inside, layer = path
        kind, _, number = layer.rpartition("_")
        part = {"Conv": "0", "BatchNorm": "1"}[kind]
        if not inside:
            return f"stem.{part}"
        stage, place = stage_of(int(inside[0].rpartition("_")[2]), self.stages()[0])
        if len(inside) == 2:
            name = f"f.se.fc{int(number) + 1}"
        else:
            name = f"{('f.a', 'f.b', 'f.c', 'proj')[int(number)]}.{part}"
        return f"trunk_output.block{stage}.block{stage}-{place}.{name}"

    @nn.nowrap
    def adapt(self, tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Renames the tensors of timm's RegNet: "s2.b1.conv2.bn.bias" -> "trunk_output.block2.block2-0.f.b.1.bias"."""
        if "stem.conv.weight" not in tensors:
            return tensors
        renamed = {}
        for key, tensor in tensors.items():
            key = re.sub(r"^s(\d)\.b(\d+)", lambda m: f"trunk_output.block{m[1]}.block{m[1]}-{int(m[2]) - 1}", key)
            for theirs, ours in _TIMM_PARTS.items():
                key = key.replace(theirs, ours)
            renamed[key] = tensor
        return renamed


# Part of a tensor's name in timm -> in torchvision, applied in this order.
_TIMM_PARTS = {
    "conv1.": "f.a.", "conv2.": "f.b.", "conv3.": "f.c.", "se.": "f.se.", "downsample.": "proj.", "head.fc.": "fc.",
    ".conv.": ".0.", ".bn.": ".1.",
}  # fmt: skip


def _whole_groups(width: int, group_width: int) -> int:
    """Rounds to the nearest multiple of the group width (halves up), or up if that removes over a tenth of `width`."""
    near = (2 * width + group_width) // (2 * group_width) * group_width
    return near + group_width if near < 0.9 * width else near


# torchvision's names and parameters; those of the 200MF are the paper's.
TRUNKS = {
    "regnet_y_200mf": functools.partial(RegNet, 13, 24, 36.44, 2.49, 8),
    "regnet_y_400mf": functools.partial(RegNet, 16, 48, 27.89, 2.09, 8),
    "regnet_y_800mf": functools.partial(RegNet, 14, 56, 38.84, 2.4, 16),
    "regnet_y_1_6gf": functools.partial(RegNet, 27, 48, 20.71, 2.65, 24),
    "regnet_y_3_2gf": functools.partial(RegNet, 21, 80, 42.63, 2.66, 24),
    "regnet_y_8gf": functools.partial(RegNet, 17, 192, 76.82, 2.19, 56),
    "regnet_y_16gf": functools.partial(RegNet, 18, 200, 106.23, 2.48, 112),
}
# timm's names of the same networks.
TIMM = {
    "regnety_002": "regnet_y_200mf",
    "regnety_004": "regnet_y_400mf",
    "regnety_008_tv": "regnet_y_800mf",
    "regnety_016": "regnet_y_1_6gf",
    "regnety_032": "regnet_y_3_2gf",
    "regnety_080_tv": "regnet_y_8gf",
    "regnety_160": "regnet_y_16gf",
}
