"""A trunk with a linear classifier: the networks that torchvision gives by name."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from grafit_jax.models.resnet import build_trunk


class Classifier(nn.Module):
    """float [B, H, W, C] -> logits float32 [B, num_classes]; parameters are those of `trunk` and `classifier`."""

    trunk: nn.Module
    num_classes: int

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False) -> Array:
        return nn.Dense(self.num_classes, name="classifier")(self.trunk(images, train=train))


def build(name: str, *, num_classes: int = 1000, stem: str = "imagenet", dtype: DTypeLike = jnp.float32) -> Classifier:
    """The network that torchvision calls `name`, as a Flax module: `apply(variables, images, train=False)`, NHWC.

    Args:
      name: a key of `TRUNKS`; resnet18, resnet34 and resnet50 are torchvision's.
      num_classes: of the linear head.
      stem: "imagenet" is torchvision's; see `ResNet`.
      dtype: of the trunk's computation.

    Raises:
      UserError: a name that there is not.
    """
    return Classifier(trunk=build_trunk(name, stem=stem, dtype=dtype), num_classes=num_classes)
