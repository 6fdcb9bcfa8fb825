"""The trunks f_theta by name, without a head or with torchvision's linear classifier."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from grafit_jax.errors import choose
from grafit_jax.models import regnet, resnet
from grafit_jax.models.regnet import RegNet
from grafit_jax.models.resnet import ResNet

Trunk = ResNet | RegNet

TRUNKS = resnet.TRUNKS | regnet.TRUNKS
# Trunks with weights in torchvision.
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
    """Returns the trunk `name`, a key of `TRUNKS`; for the options see `ResNet`. UserError for other names."""
    return TRUNKS[choose(name, "trunk", TRUNKS)](stem=stem, dtype=dtype, axis_name=axis_name, remat=remat)


class Classifier(nn.Module):
    """float [B, H, W, C] -> logits float32 [B, num_classes], from the parameters of `trunk` and `classifier`."""

    trunk: Trunk
    num_classes: int

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False) -> Array:
        # The initialisation of torchvision's RegNets; its ResNets' uniform distribution has a similar width.
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01), name="classifier")
        return head(self.trunk(images, train=train))


def build(name: str, *, num_classes: int = 1000, **options: Any) -> Classifier:
    """Returns torchvision's network `name` as a Flax module: `apply(variables, images, train=False)`, NHWC.

    Args:
      name: a key of `TRUNKS`.
      num_classes: outputs of the classifier.
      **options: see `build_trunk`.

    Raises:
      UserError: an unknown name.
    """
    return Classifier(trunk=build_trunk(name, **options), num_classes=num_classes)
