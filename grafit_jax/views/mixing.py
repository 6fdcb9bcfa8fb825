"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) on the device."""

import jax
import jax.numpy as jnp
from jax import Array, lax

# The probability of CutMix for an image if both are enabled, as in timm.
_CUTMIX_PROB = 0.5


def mix(
    images: Array, labels: Array, ids: Array, key: Array, *, mixup: float, cutmix: float, axis_name: str | None = None
) -> tuple[Array, ...]:
    """Mixes each image of a batch with the image at the mirrored position of the batch.

    Args:
      images: float [B, S, S, C].
      labels: int [B].
      ids: the images' positions in the split, int [B]; they key the random draws.
      key: a PRNG key, already folded with seed and step.
      mixup: the alpha of Beta(alpha, alpha), the distribution of an image's own share; 0 disables mixup.
      cutmix: the same for the share of the area outside the pasted square; 0 disables CutMix. If both are enabled, one
        is drawn for each image.
      axis_name: the mapped device axis. The batch is the concatenation over devices, so results do not depend on their
        number.

    Returns:
      The mixed images, float [B, S, S, C]; the labels of the other images, int [B]; and each image's own share, float32
      [B]. The loss is share * loss(label) + (1 - share) * loss(other label).
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
        cutmix_prob = {(False, True): 1.0, (True, False): 0.0}.get((mixup > 0, cutmix > 0), _CUTMIX_PROB)
        mask = jnp.where(jax.random.uniform(which) < cutmix_prob, mask, blend)
        # The square may be clipped at the border, so the share is measured on the mask.
        return mask[..., None] * image + (1 - mask[..., None]) * other, mask.mean()

    mixed, share = jax.vmap(one)(keys, images, other)
    return mixed, other_labels, share


def _outside(share: Array, key: Array, size: int) -> Array:
    """Returns a mask, float32 [S, S]: 0 in a square of area 1 - `share` with a uniform random centre, 1 elsewhere."""
    y, x = jax.random.uniform(key, (2,)) * size
    half = size * jnp.sqrt(1 - share) / 2
    place = jnp.arange(size) + 0.5
    inside = (jnp.abs(place - y) < half)[:, None] & (jnp.abs(place - x) < half)[None, :]
    return 1.0 - inside.astype(jnp.float32)
