"""RandAugment and AutoAugment: every operation compared with PIL, full AutoAugment with torchvision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from grafit_jax.views import auto_augment
from helpers.pixels import RGB, from_pil, pil, unit

# RandAugment


randaugment_op = jax.jit(auto_augment.randaugment_op, static_argnames="magnitude")


def op(name, image, *, sign=False, magnitude=9):
    return np.asarray(randaugment_op(unit(image), auto_augment.OPS.index(name), sign, magnitude=magnitude))


def pil_op(name, image, level):
    """torchvision's _apply_op on a PIL image; `level` is signed if the operation has a direction."""
    height, width = image.shape[:2]
    image = pil(image)

    def affine(*matrix):
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)

    return {
        "identity": lambda: image,
        "shear_x": lambda: affine(1, 0.3 * level, 0, 0, 1, 0),
        "shear_y": lambda: affine(1, 0, 0, 0.3 * level, 1, 0),
        "translate_x": lambda: affine(1, 0, -int(150 / 331 * width * level), 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, -int(150 / 331 * height * level)),
        "rotate": lambda: image.rotate(30 * level, Image.Resampling.NEAREST),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(1 + 0.9 * level),
        "color": lambda: ImageEnhance.Color(image).enhance(1 + 0.9 * level),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(1 + 0.9 * level),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * level),
        "posterize": lambda: ImageOps.posterize(image, 8 - round(4 * abs(level))),
        "solarize": lambda: ImageOps.solarize(image, float(np.float32(255 * (1 - abs(level))))),  # as in torch
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "invert": lambda: ImageOps.invert(image),
    }[name]()


def maskcon_op(name, image, level):
    """The operations of MaskCon's code, which differ in part; docs/paper.md section 3."""
    height, width = image.shape[:2]
    picture, grey = pil(image), (128,) * image.shape[2]

    def affine(*matrix, resampling=Image.Resampling.NEAREST):
        return picture.transform(picture.size, Image.Transform.AFFINE, matrix, resampling, fillcolor=grey)

    others = {
        "shear_y": lambda: affine(1, 0, 0, 0.3 * level, 1, 0, resampling=Image.Resampling.BICUBIC),
        "translate_x": lambda: affine(1, 0, -150 / 331 * width * level, 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, -150 / 331 * height * level),
        "rotate": lambda: picture.rotate(30 * abs(level), Image.Resampling.NEAREST, fillcolor=grey),
        "solarize": lambda: ImageOps.solarize(picture, 256 * (1 - abs(level))),
    }
    return others[name]() if name in others else pil_op(name, image, level)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", auto_augment.OPS)
def test_randaugment_ops_as_pil(name, channels):
    image = np.ascontiguousarray(RGB[:, :30, :channels])  # not square, to detect swapped sides
    exact = name in ("identity", *auto_augment.GEOMETRIC, "posterize", "solarize", "equalize")
    for magnitude in (5, 9, 30):
        for sign in (False, True):
            level = magnitude / 30 * (-1 if sign else 1)
            expected = from_pil(pil_op(name, image, level))
            got = op(name, image, sign=sign, magnitude=magnitude)
            close = np.abs(got - expected) <= (1e-5 if exact else 1.9 / 255)
            # PIL uses 16-bit fixed point instead of float32, so a few nearest pixels differ.
            allowed = 0.005 if name in auto_augment.GEOMETRIC else 0
            assert np.mean(~close) <= allowed, (magnitude, sign, np.abs(got - expected).max())


def test_the_operations_differ():
    """Otherwise the comparison with PIL above could not fail."""
    results = [from_pil(pil_op(name, RGB, 0.9)) for name in (*auto_augment.OPS, "invert")]
    for i, first in enumerate(results):
        for second in results[:i]:
            assert np.mean(np.abs(first - second) > 2 / 255) > 0.02


def test_level_operations_keep_a_constant_image():
    image = np.full((20, 20, 3), 77, np.uint8)
    for name in ("autocontrast", "equalize", "sharpness", "contrast"):
        np.testing.assert_allclose(op(name, image), image / 255, atol=1e-6)


# AutoAugment

APPLIED, SKIPPED = 0.05, 0.95  # draws below and above all nonzero probabilities of the table
IMAGE = np.ascontiguousarray(RGB[:, :30])
autoaugment = jax.jit(auto_augment.autoaugment, static_argnames="maskcon")


def by_draws(image, place, draws, signs, *, maskcon=False):
    """Applies sub-policy `place`; a sign of True negates the magnitude."""
    u = [(place + 0.5) / 25, *draws, *(0.25 if sign else 0.75 for sign in signs)]
    return np.asarray(autoaugment(unit(image), jnp.array(u, jnp.float32), maskcon=maskcon))


@pytest.mark.parametrize("maskcon", [False, True], ids=["torchvision", "maskcon"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("slot", [0, 1])
def test_autoaugment_operations_as_pil(slot, channels, maskcon):
    image = np.ascontiguousarray(IMAGE[..., :channels])
    oracle = maskcon_op if maskcon else pil_op
    exact = ("identity", *auto_augment.GEOMETRIC, "posterize", "solarize", "equalize", "invert")
    for place, pair in enumerate(auto_augment.CIFAR10):
        name, probability, magnitude = pair[slot]
        draws = [APPLIED if i == slot else SKIPPED for i in (0, 1)]
        for sign in (False, True):
            level = (magnitude or 0) / 9 * (-1 if sign else 1)
            expected = from_pil(oracle(name if probability else "identity", image, level))
            got = by_draws(image, place, draws, (sign, sign), maskcon=maskcon)
            rounded = name not in exact or (maskcon and name == "shear_y")
            far = np.abs(got - expected) > (1.9 / 255 if rounded else 1e-5)
            # As above: 1.5 levels from PIL's two roundings, and a few different nearest pixels.
            assert far.mean() <= (0.005 if name in auto_augment.GEOMETRIC else 0), (place, pair[slot], sign)


def test_autoaugment_applies_nothing_above_the_probabilities():
    for place in range(25):
        np.testing.assert_array_equal(by_draws(IMAGE, place, (SKIPPED, SKIPPED), (True, False)), unit(IMAGE))


@pytest.mark.parametrize("signs", [(False, True), (True, False)])
def test_autoaugment_as_torchvision(signs, torchvision):
    """Compares both operations in a row with torchvision's transform on a PIL image with the same draws."""
    t, draws = torchvision.transforms, (APPLIED, APPLIED)
    transform = t.AutoAugment(t.AutoAugmentPolicy.CIFAR10)
    for place in range(25):
        transform.get_params = lambda _, place=place: (place, draws, [not sign for sign in signs])
        expected = from_pil(transform(pil(IMAGE)))
        levels = np.abs(by_draws(IMAGE, place, draws, signs) - expected) * 255
        case = (place, auto_augment.CIFAR10[place], levels.max())
        # PIL rounds between the operations, and the second can amplify that: `equalize` bins pixels differently.
        assert levels.mean() < 1.2 and np.mean(levels > 3.5) < 0.01, case


def test_autoaugment_table_as_torchvision(torchvision):
    t = torchvision.transforms
    theirs = t.AutoAugment(t.AutoAugmentPolicy.CIFAR10).policies
    ours = [tuple((name.replace("_", ""), p, m) for name, p, m in pair) for pair in auto_augment.CIFAR10]
    assert ours == [tuple((name.lower(), p, m) for name, p, m in pair) for pair in theirs]


@pytest.mark.parametrize("maskcon", [False, True], ids=["torchvision", "maskcon"])
def test_autoaugment_probabilities_bound_the_draws(maskcon):
    """An operation is applied for a draw just below its probability, and not just above."""
    for place, pair in enumerate(auto_augment.CIFAR10_MASKCON if maskcon else auto_augment.CIFAR10):
        for slot, (name, probability, magnitude) in enumerate(pair):
            if magnitude == 0 or probability == 0:  # no effect, or never applied
                continue
            for draw, changes in ((probability - 1e-3, True), (probability + 1e-3, False)):
                draws = [draw if i == slot else 0.9999 for i in (0, 1)]
                got = by_draws(IMAGE, place, draws, (False, False), maskcon=maskcon)
                changed = np.abs(got - unit(IMAGE)).max() > 1e-3
                assert changed == changes, (place, name, draw)


def test_one_probability_of_maskcons_table_differs():
    """The second equalize has 0.8 in MaskCon's utils.py, and 0.6 in AutoAugment's paper and torchvision."""
    pairs = zip(auto_augment.CIFAR10, auto_augment.CIFAR10_MASKCON, strict=True)
    theirs, ours = zip(*((a, b) for a, b in pairs if a != b), strict=True)
    assert theirs == ((("equalize", 0.2, None), ("equalize", 0.6, None)),)
    assert ours == ((("equalize", 0.2, None), ("equalize", 0.8, None)),)


def test_autoaugment_uses_the_draws_of_each_image():
    u = jnp.asarray(np.random.default_rng(2).random((64, 5), np.float32))
    together = jax.jit(jax.vmap(auto_augment.autoaugment, (None, 0)))(unit(IMAGE), u)
    for image, draws in zip(together, u, strict=True):
        np.testing.assert_allclose(image, autoaugment(unit(IMAGE), draws), atol=1e-5)
    assert len(np.unique(np.asarray(together).reshape(64, -1), axis=0)) > 20
