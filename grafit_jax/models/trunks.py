"""The trunks f_theta by name, without a head or with the linear classifier of torchvision and timm."""

from typing import Any

import flax.linen as nn
from jax import Array

from grafit_jax.errors import choose
from grafit_jax.models import efficientnet, regnet, resnet, vit
from grafit_jax.models.layers import Trunk

TRUNKS = resnet.TRUNKS | regnet.TRUNKS | efficientnet.TRUNKS | vit.TRUNKS
# Trunks with weights of torchvision or timm.
PRETRAINED = tuple(name for name in TRUNKS if name != "resnet8")


def build_trunk(name: str, **options: Any) -> Trunk:
    """Returns the trunk `name`, a key of `TRUNKS`; for the options see `layers.Trunk`.

    Raises:
      UserError: an unknown name, or a stem that the trunk cannot have.
    """
    trunk = TRUNKS[choose(name, "trunk", TRUNKS)](**options)
    choose(trunk.stem, f"stem of {name}", trunk.stems)
    return trunk


class Classifier(nn.Module):
    """float [B, H, W, C] -> logits float32 [B, num_classes], from the parameters of `trunk` and `classifier`."""

    trunk: Trunk
    num_classes: int

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False) -> Array:
        features = self.trunk(images, train=train)
        if not self.num_classes:
            return features
        # The initialisation of torchvision's RegNets; its ResNets' uniform distribution has a similar width.
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01), name="classifier")(features)


def build(name: str, *, num_classes: int = 1000, **options: Any) -> Classifier:
    """Returns torchvision's or timm's network `name` as a Flax module: `apply(variables, images, train=False)`, NHWC.

    Args:
      name: a key of `TRUNKS`.
      num_classes: outputs of the classifier; 0 for a network that returns its features.
      **options: see `layers.Trunk`.

    Raises:
      UserError: see `build_trunk`.
    """
    return Classifier(trunk=build_trunk(name, **options), num_classes=num_classes)
