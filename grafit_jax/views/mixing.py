"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): two images and their labels in one, made on the device."""

import jax
import jax.numpy as jnp
from jax import Array, lax

# With both, half of the images are cut, as in timm.
_CUT = 0.5


def mix(
    images: Array, labels: Array, ids: Array, key: Array, *, mixup: float, cutmix: float, axis_name: str | None = None
) -> tuple[Array, ...]:
    """Each image of a batch with the one at the mirrored place, by a share of its own.

    Args:
      images: float [B, S, S, C].
      labels: int [B].
      ids: int [B], the images' positions in the split, which the draws are keyed by.
      key: a PRNG key, already folded with seed and step.
      mixup: alpha of Beta(alpha, alpha), of which the share of a mixture is drawn; 0 is no mixup.
      cutmix: alpha of the share of the image that a pasted rectangle leaves; 0 is no CutMix. With both, one of the two
        is drawn for each image.
      axis_name: the mapped device axis: the batch is that of all devices, in their order, so that their number makes
        no difference.

    Returns:
      images float [B, S, S, C], the labels of what was mixed in, int [B], and the images' own shares, float32 [B]: the
      loss is share * loss(label) + (1 - share) * loss(the other label).
    """
    other, other_labels = images[::-1], labels[::-1]
    if axis_name is not None:
        last = lax.axis_size(axis_name) - 1
        mirrored = [(device, last - device) for device in range(last + 1)]
        other, other_labels = lax.ppermute((other, other_labels), axis_name, mirrored)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)

    def one(key, image, other):
        which, mixed, cut, place = jax.random.split(key, 4)
        blend = jax.random.beta(mixed, mixup or 1.0, mixup or 1.0)
        mask = _outside(jax.random.beta(cut, cutmix or 1.0, cutmix or 1.0), place, image.shape[0])
        chance = {(False, True): 1.0, (True, False): 0.0}.get((mixup > 0, cutmix > 0), _CUT)
        mask = jnp.where(jax.random.uniform(which) < chance, mask, blend)
        # A square may reach over the border, so what counts is what is left.
        return mask[..., None] * image + (1 - mask[..., None]) * other, mask.mean()

    mixed, share = jax.vmap(one)(keys, images, other)
    return mixed, other_labels, share


def _outside(share: Array, key: Array, size: int) -> Array:
    """float32 [S, S]: 0 in a square with 1 - `share` of the area around a place drawn evenly, 1 elsewhere."""
    y, x = jax.random.uniform(key, (2,)) * size
    half = size * jnp.sqrt(1 - share) / 2
    place = jnp.arange(size) + 0.5
    inside = (jnp.abs(place - y) < half)[:, None] & (jnp.abs(place - x) < half)[None, :]
    return 1.0 - inside.astype(jnp.float32)
