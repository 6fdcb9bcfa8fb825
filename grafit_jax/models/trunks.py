"""The trunks f_theta by name, alone and with torchvision's linear classifier."""

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
    return TRUNKS[choose(name, "trunk", TRUNKS)](stem=stem, dtype=dtype, axis_name=axis_name, remat=remat)


class Classifier(nn.Module):
    """float [B, H, W, C] -> logits float32 [B, num_classes]; parameters are those of `trunk` and `classifier`."""

    trunk: Trunk
    num_classes: int

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False) -> Array:
        # As torchvision's RegNets start; its ResNets' uniform law is about as wide.
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01), name="classifier")
        return head(self.trunk(images, train=train))


def build(name: str, *, num_classes: int = 1000, **options) -> Classifier:
    """The network that torchvision calls `name`, as a Flax module: `apply(variables, images, train=False)`, NHWC.

    `options` are those of `build_trunk`, which raises UserError for a name that there is not.
    """
    return Classifier(trunk=build_trunk(name, **options), num_classes=num_classes)
