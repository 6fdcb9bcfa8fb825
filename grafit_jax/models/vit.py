"""Vision transformers (Dosovitskiy et al. 2021, arXiv 2010.11929) in timm's variant, NHWC.

The supervised ones have patches of 16 px. Those of DINOv2 (Oquab et al. 2023, arXiv 2304.07193) have patches of 14 px,
layer scale, positions for 518 px, and as "reg4" four registers (Darcet et al. 2023, arXiv 2309.16588).

| name | parameters | multiply-adds at 224 px | features |
|---|---|---|---|
| vit_small_patch16_224 | 22,050,664 | 4.60 G | 384 |
| vit_base_patch16_224 | 86,567,656 | 17.56 G | 768 |
| vit_small_patch14_dinov2 | 22,441,192 | 6.14 G | 384 |
| vit_base_patch14_dinov2 | 87,348,712 | 23.19 G | 768 |
| vit_small_patch14_reg4_dinov2 | 22,442,344 | 6.24 G | 384 |
| vit_base_patch14_reg4_dinov2 | 87,351,016 | 23.56 G | 768 |

Both counts include a 1000-way classifier, and the multiply-adds of DINOv2's the interpolation of positions. The numbers
of parameters equal timm's.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from grafit_jax.errors import UserError
from grafit_jax.models.layers import Trunk, conv, drop_path, residual, uniform

# timm's initialisation. It truncates at ±2, 100 standard deviations, which has no effect.
_normal = nn.initializers.normal(0.02)
_tiny = nn.initializers.normal(1e-6)
_dense = functools.partial(nn.Dense, kernel_init=_normal)
# Computed in float32 for each dtype; the variance as the mean of squares would lose digits.
_layer_norm = functools.partial(nn.LayerNorm, epsilon=1e-6, use_fast_variance=False)


class Attention(nn.Module):
    """Multi-head self-attention, whose softmax is computed in float32."""

    heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        qkv = _dense(3 * x.shape[-1], dtype=self.dtype, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, self.heads, -1), 2, 0)
        return _dense(x.shape[-1], dtype=self.dtype, name="proj")(
            jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
        )


class MLP(nn.Module):
    """Linear, GELU, linear, with four times the width inside."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = _dense(4 * x.shape[-1], dtype=self.dtype, name="fc1")(x)
        return _dense(x.shape[-1], dtype=self.dtype, name="fc2")(nn.gelu(y, approximate=False))


class LayerScale(nn.Module):
    """A factor for each channel, which starts small (Touvron et al. 2021, arXiv 2103.17239)."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        gamma = self.param("gamma", nn.initializers.constant(1e-5), x.shape[-1:])
        return x * gamma.astype(x.dtype)


class TransformerBlock(nn.Module):
    """Two residual branches, attention and MLP, each after a layer norm.

    Drop path has one draw per block and example: it leaves out both branches or none, while timm draws for each.
    """

    heads: int
    layer_scale: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, keep: Array | None) -> Array:
        branches = Attention(self.heads, self.dtype, name="attn"), MLP(self.dtype, name="mlp")
        for i, branch in enumerate(branches, 1):
            y = branch(_layer_norm(dtype=self.dtype, name=f"norm{i}")(x))
            y = LayerScale(name=f"ls{i}")(y) if self.layer_scale else y
            x = x + drop_path(y, keep)
        return x


class VisionTransformer(Trunk):
    """A vision transformer, whose features are the class token after the last layer norm.

    Images may have any size that patches divide: the positions are interpolated to their grid of patches.

    Attributes:
      patch: side of a patch in pixels.
      width: channels of a token.
      heads: number of attention heads.
      depth: number of blocks.
      image_size: side of the images for whose patches there are positions.
      layer_scale: whether blocks have layer scale.
      registers: number of additional tokens; with them, neither they nor the class token have positions.
      stem: "imagenet", the patches.
    """

    patch: int
    width: int
    heads: int
    depth: int = 12
    image_size: int = 224
    layer_scale: bool = False
    registers: int = 0

    torch_head = "head"
    stems: ClassVar[Sequence[str]] = ("imagenet",)

    @property
    def num_blocks(self) -> int:
        return self.depth

    @property
    def multiple(self) -> int:
        return self.patch

    @nn.compact
    def __call__(self, x: Array, *, train: bool, draws: Array | None = None) -> Array:
        batch, height, width, channels = x.shape
        if height % self.patch or width % self.patch:
            raise UserError(
                f"found images of {height} x {width} pixels; expected multiples of the patch, {self.patch}."
            )
        init = uniform(1 / (self.patch * math.sqrt(channels)))  # PyTorch's default, which timm keeps
        embed = conv(
            self.width, (self.patch, self.patch), strides=self.patch, padding="VALID", use_bias=True,
            kernel_init=init, bias_init=init, dtype=self.dtype, name="patch_embed",
        )  # fmt: skip
        patches = embed(jnp.asarray(x, self.dtype))
        tokens = self.param("cls_token", _tiny, (1, 1, self.width))
        if self.registers:
            tokens = jnp.concatenate([tokens, self.param("reg_token", _tiny, (1, self.registers, self.width))], axis=1)
        positions = self.param("pos_embed", _normal, (1, self._own + self._side**2, self.width))
        positions = resize_positions(positions, (height // self.patch, width // self.patch))
        if self._own:
            tokens, positions = tokens + positions[:, :1], positions[:, 1:]
        patches = patches.reshape(batch, -1, self.width) + positions
        tokens = jnp.broadcast_to(tokens, (batch, *tokens.shape[1:]))
        x = jnp.concatenate([tokens, patches], axis=1).astype(self.dtype)

        block = residual(TransformerBlock, self.remat)
        for i in range(self.depth):
            apply = block(self.heads, self.layer_scale, self.dtype, name=f"TransformerBlock_{i}")
            x = apply(x, self.keep(i, draws))
        return _layer_norm(dtype=jnp.float32, name="last_norm")(x[:, 0])

    @property
    def _side(self) -> int:
        """The side of the grid of patches that have positions."""
        return self.image_size // self.patch

    @property
    def _own(self) -> int:
        """The number of positions of the class token."""
        return 0 if self.registers else 1

    @nn.nowrap
    def torch_name(self, path: Sequence[str]) -> str:
        """Returns timm's name of a layer: ("TransformerBlock_1", "attn", "qkv") -> "blocks.1.attn.qkv"."""
        if not path:
            return ""
        first, *inside = path
        name = {"patch_embed": "patch_embed.proj", "last_norm": "norm"}.get(first)
        return ".".join([name or f"blocks.{first.rpartition('_')[2]}", *inside])

    @nn.nowrap
    def adapt(self, tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Interpolates the positions of another square grid, as timm does when it loads them."""
        positions = np.asarray(tensors.get("pos_embed", 0))
        number = positions.shape[1] - self._own if positions.ndim == 3 else 0
        side = math.isqrt(max(number, 0))
        if number < 1 or number != side**2 or side == self._side:
            return tensors
        resized = resize_positions(jnp.asarray(positions, jnp.float32), (self._side, self._side))
        return {**tensors, "pos_embed": np.asarray(resized)}


def resize_positions(positions: Array, grid: tuple[int, int]) -> Array:
    """Interpolates the positions of a square grid of patches to another grid, bicubic and antialiased as timm's.

    Args:
      positions: float32 [1, s * s, D], or [1, 1 + s * s, D] with the class token's first, which is kept.
      grid: its height and width.

    Returns:
      float32 [1, height * width, D] or [1, 1 + height * width, D].
    """
    _, number, width = positions.shape
    side = math.isqrt(number)
    if grid == (side, side):
        return positions
    own = number - side**2
    square = positions[:, own:].reshape(1, side, side, width)
    resized = jax.image.resize(square, (1, *grid, width), "cubic").reshape(1, -1, width)
    return jnp.concatenate([positions[:, :own], resized], axis=1)


# Positions, layer scale and registers of timm's architectures, by name without the size.
_dinov2 = functools.partial(VisionTransformer, patch=14, image_size=518, layer_scale=True)
_KINDS = {
    "patch16_224": functools.partial(VisionTransformer, patch=16),
    "patch14_dinov2": _dinov2,
    "patch14_reg4_dinov2": functools.partial(_dinov2, registers=4),
}
TRUNKS = {
    f"vit_{size}_{kind}": functools.partial(trunk, width=width, heads=heads)
    for kind, trunk in _KINDS.items()
    for size, width, heads in (("small", 384, 6), ("base", 768, 12))
}
