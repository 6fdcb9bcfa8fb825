"""A trunk with a linear classifier: the networks that torchvision gives by name."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from grafit_jax.models.trunks import Trunk, build_trunk


class Classifier(nn.Module):
    """float [B, H, W, C] -> logits float32 [B, num_classes]; parameters are those of `trunk` and `classifier`."""

    trunk: Trunk
    num_classes: int

    @nn.compact
    def __call__(self, images: Array, *, train: bool = False) -> Array:
        # As torchvision's RegNets start; its ResNets' uniform law is about as wide.
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01), name="classifier")
        return head(self.trunk(images, train=train))


def build(
    name: str, *, num_classes: int = 1000, stem: str = "imagenet", dtype: DTypeLike = jnp.float32, remat: bool = False
) -> Classifier:
    """The network that torchvision calls `name`, as a Flax module: `apply(variables, images, train=False)`, NHWC.

    Args:
      name: a key of `TRUNKS`; all but resnet8 and regnet_y_200mf are torchvision's.
      num_classes: of the linear head.
      stem: "imagenet" is torchvision's; see `ResNet`.
      dtype: of the trunk's computation.
      remat: see `ResNet`.

    Raises:
      UserError: a name that there is not.
    """
    return Classifier(trunk=build_trunk(name, stem=stem, dtype=dtype, remat=remat), num_classes=num_classes)
