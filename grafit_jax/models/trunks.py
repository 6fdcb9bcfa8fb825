"""The trunks f_theta by name."""

import jax.numpy as jnp
from jax.typing import DTypeLike

from grafit_jax.errors import UserError
from grafit_jax.models import regnet, resnet
from grafit_jax.models.regnet import RegNet
from grafit_jax.models.resnet import ResNet

Trunk = ResNet | RegNet

TRUNKS = resnet.TRUNKS | regnet.TRUNKS
# Those of which torchvision has weights.
TORCHVISION = tuple(name for name in TRUNKS if name not in ("resnet8", "regnet_y_200mf"))
STEMS = ("imagenet", "cifar", "patch2")


def build_trunk(
    name: str,
    *,
    stem: str = "imagenet",
    dtype: DTypeLike = jnp.float32,
    axis_name: str | None = None,
    remat: bool = False,
) -> Trunk:
    """The trunk of that name (a key of `TRUNKS`); see `ResNet` for the arguments."""
    if name not in TRUNKS:
        raise UserError(f"unknown trunk {name!r}: want one of {', '.join(TRUNKS)}.")
    return TRUNKS[name](stem=stem, dtype=dtype, axis_name=axis_name, remat=remat)
