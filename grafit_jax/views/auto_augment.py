"""RandAugment and AutoAugment for CIFAR-10 as in torchvision, and AutoAugment as in MaskCon's code.

The operation of an image is a traced number, so every kind of operation is computed and one result is selected. The
five geometric operations share one warp (nearest pixel, black outside, as in torchvision), the four enhancements one
blend.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from grafit_jax.views import image_ops

MAX_MAGNITUDE = 30  # of torchvision's RandAugment at 31 bins
AUTOAUGMENT_DRAWS = 5  # the sub-policy, whether each of its two operations is applied, and their signs

# The operations of torchvision's RandAugment in its order; an operation's number is its index here.
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
_ENHANCE = ("brightness", "color", "contrast", "sharpness")
OPS = ("identity", *GEOMETRIC, *_ENHANCE, "posterize", "solarize", "autocontrast", "equalize")

# AutoAugment's sub-policies for CIFAR-10 (table 7 of its paper, as in torchvision): two operations in sequence, each
# with its probability and magnitude (0 to 9, or None).
CIFAR10 = (
    (("invert", 0.1, None), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.5, None), ("equalize", 0.9, None)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, None), ("equalize", 0.5, None)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, None), ("autocontrast", 0.4, None)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, None)),
    (("equalize", 0.2, None), ("autocontrast", 0.6, None)),
    (("equalize", 0.2, None), ("equalize", 0.6, None)),
    (("color", 0.9, 9), ("equalize", 0.6, None)),
    (("autocontrast", 0.8, None), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, None)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, None), ("solarize", 0.8, 3)),
    (("equalize", 0.8, None), ("invert", 0.1, None)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, None)),
)
# The table in MaskCon's code: one probability is 0.8 instead of 0.6.
CIFAR10_MASKCON = (*CIFAR10[:16], (("equalize", 0.2, None), ("equalize", 0.8, None)), *CIFAR10[17:])
_GREY = 128 / 255  # the fill value of MaskCon's code


def inverse_affine(op: str, level: float, height: int, width: int, *, whole: bool = True) -> np.ndarray:
    """Returns the affine matrix, float32 [2, 3], from output to input points; the identity unless `op` is geometric.

    `level` is the signed share of the largest magnitude, -1 to 1; `whole` truncates translations to whole pixels.
    """
    pixels = int if whole else float
    matrix = np.eye(2, 3)
    if op == "shear_x":
        matrix[0, 1] = 0.3 * level
    elif op == "shear_y":
        matrix[1, 0] = 0.3 * level
    elif op == "translate_x":
        matrix[0, 2] = -pixels(150 / 331 * width * level)
    elif op == "translate_y":
        matrix[1, 2] = -pixels(150 / 331 * height * level)
    elif op == "rotate":
        sin, cos = math.sin(math.radians(30 * level)), math.cos(math.radians(30 * level))
        matrix[:, :2] = [[cos, -sin], [sin, cos]]
        matrix[:, 2] = (np.eye(2) - matrix[:, :2]) @ [width / 2, height / 2]  # about the centre
    return matrix.astype(np.float32)


def _bits(level: float) -> int:
    return 8 - round(4 * level)


def _apply(
    image: Array, op: Array, matrix: Array, factor: Array, bits: int | Array, threshold: float | Array, fill: float = 0
) -> Array:
    """Applies the operation with index `op` in OPS; `matrix` must be the identity unless `op` is geometric."""

    def is_op(*names):
        return jnp.any(op == jnp.array([OPS.index(name) for name in names]))

    other = jnp.where(is_op("brightness"), 0.0, image_ops.mean_grey(image))
    other = jnp.where(is_op("color"), image_ops.grey(image), other)
    other = jnp.where(is_op("sharpness"), image_ops.smooth(image), other)
    x = jnp.where(is_op(*_ENHANCE), image_ops.blend(other, image, factor), image_ops.warp(image, matrix, fill))
    x = jnp.where(is_op("posterize"), image_ops.posterize(image, bits), x)
    x = jnp.where(is_op("solarize"), image_ops.solarize(image, threshold), x)
    x = jnp.where(is_op("autocontrast"), image_ops.autocontrast(image), x)
    return jnp.where(is_op("equalize"), image_ops.equalize(image), x)


def randaugment_op(image: Array, op: Array, sign: Array, magnitude: int) -> Array:
    """Applies one operation of RandAugment.

    Args:
      image: float32 [H, W, C] in [0, 1].
      op: the operation's index in OPS, int.
      sign: whether to negate the magnitude (left, darker, ...) of an operation with a direction, bool.
      magnitude: 0 to 30.
    """
    height, width, _ = image.shape
    level = magnitude / MAX_MAGNITUDE
    matrices = np.array([[inverse_affine(name, s * level, height, width) for name in OPS] for s in (1, -1)])
    matrix = jnp.asarray(matrices)[sign.astype(jnp.int32), op]
    factor = 1 + jnp.where(sign, -0.9, 0.9) * level
    return _apply(image, op, matrix, factor, _bits(level), 255 * (1 - level))


def autoaugment(image: Array, u: Array, *, maskcon: bool = False) -> Array:
    """Applies a random sub-policy of AutoAugment for CIFAR-10, as in torchvision or in MaskCon's code.

    MaskCon's policy (`CIFAR10Policy` in its utils.py) differs in one probability, fills with grey instead of black,
    rotates counter-clockwise only, shears bicubically, does not truncate translations to whole pixels, and takes 256
    instead of 255 as the largest threshold of solarize [code].

    Args:
      image: float32 [H, W, C] in [0, 1].
      u: uniform draws [5]. The sub-policy's index in its table is floor(25 u[0]). Its operation i is applied if
        u[1 + i] is below its probability, with a negative magnitude (left, darker, ...) if u[3 + i] < 0.5.
      maskcon: whether to use MaskCon's policy.
    """
    height, width, _ = image.shape
    table = CIFAR10_MASKCON if maskcon else CIFAR10
    # One row for each operation of the table, in order, and the identity last.
    rows = [(name, (magnitude or 0) / 9) for pair in table for name, _, magnitude in pair] + [("identity", 0.0)]

    def matrix(name: str, level: float, sign: int) -> np.ndarray:
        if maskcon and name == "shear_y":
            return np.eye(2, 3, dtype=np.float32)  # image_ops.shear_y replaces the warp below
        sign = 1 if maskcon and name == "rotate" else sign
        return inverse_affine(name, sign * level, height, width, whole=not maskcon)

    matrices = jnp.array([[matrix(name, level, s) for s in (1, -1)] for name, level in rows])
    factors = jnp.array([[1 + s * 0.9 * level for s in (1, -1)] for _, level in rows], jnp.float32)
    bits = jnp.array([_bits(level) for _, level in rows])
    brightest = 256 if maskcon else 255
    thresholds = jnp.array([0 if name == "invert" else brightest * (1 - level) for name, level in rows], jnp.float32)
    # Invert is solarize with threshold 0.
    ops = jnp.array([OPS.index("solarize" if name == "invert" else name) for name, _ in rows])
    probabilities = jnp.array([probability for pair in table for _, probability, _ in pair], jnp.float32)
    # The table has no shear along x.
    amounts = jnp.array([[s * 0.3 * level if name == "shear_y" else 0.0 for s in (1, -1)] for name, level in rows])

    first = 2 * (u[0] * len(table)).astype(jnp.int32)
    for i in range(2):
        row = jnp.where(u[1 + i] < probabilities[first + i], first + i, len(rows) - 1)
        sign = (u[3 + i] < 0.5).astype(jnp.int32)
        parameters = matrices[row, sign], factors[row, sign], bits[row], thresholds[row]
        if not maskcon:
            image = _apply(image, ops[row], *parameters)
            continue
        sheared = image_ops.shear_y(image, amounts[row, sign], _GREY)
        image = jnp.where(amounts[row, sign] != 0, sheared, _apply(image, ops[row], *parameters, _GREY))
    return image
