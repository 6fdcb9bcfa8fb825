"""Operations on one image, each compared with PIL, torchvision or a float64 reference."""

import colorsys
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from grafit_jax.views import image_ops
from helpers.pixels import LEVEL, RGB, from_pil, pil, unit

# Crop


def test_crop_golden():
    image = jnp.arange(16.0).reshape(4, 4, 1)
    box = (1.0, 2.0, 2.0, 2.0)  # rows 1-2, columns 2-3: whole pixels at their own scale
    np.testing.assert_allclose(image_ops.crop(image, box, 2)[..., 0], [[6, 7], [10, 11]], atol=1e-5)
    box = (0.5, 1.0, 2.0, 2.0)  # half a pixel lower: means of two rows, (1 + 5) / 2 = 3
    np.testing.assert_allclose(image_ops.crop(image, box, 2)[..., 0], [[3, 4], [7, 8]], atol=1e-5)


def test_crop_against_float64():
    top, left, height, width, size = 3.3, 7.8, 21.4, 16.2, 12

    def weights(start, length):  # triangle filter, widened when downsizing, normalised over the image
        centre = start + (np.arange(size)[:, None] + 0.5) * length / size
        w = np.maximum(0, 1 - np.abs(np.arange(32) + 0.5 - centre) / max(length / size, 1))
        return w / w.sum(1, keepdims=True)

    expected = np.einsum("ai,ijc,bj->abc", weights(top, height), RGB / 255, weights(left, width))
    got = image_ops.crop(unit(RGB), (jnp.float32(top), left, height, width), size)
    np.testing.assert_allclose(got, expected, atol=2e-5)


# Colour, as in PIL and torchvision


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.8])
@pytest.mark.parametrize(
    "op, enhancer",
    [
        (image_ops.brightness, ImageEnhance.Brightness),
        (image_ops.contrast, ImageEnhance.Contrast),
        (image_ops.saturation, ImageEnhance.Color),
        (lambda x, f: image_ops.blend(image_ops.smooth(x), x, f), ImageEnhance.Sharpness),
    ],
    ids=["brightness", "contrast", "saturation", "sharpness"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_enhancements_as_pil(op, enhancer, factor, channels):
    image = RGB[..., :channels]
    expected = from_pil(enhancer(pil(image)).enhance(factor))
    # PIL rounds the other image and the blend: up to 1.5 levels, 1.8 for extrapolation.
    np.testing.assert_allclose(op(unit(image), factor), expected, atol=1.9 / 255)


@pytest.mark.parametrize("turns", [-0.3, 0.0, 0.1, 0.5])
def test_hue_as_colorsys(turns):
    image = RGB[:8, :8]
    expected = np.zeros(image.shape)
    for place in np.ndindex(8, 8):
        h, s, v = colorsys.rgb_to_hsv(*(image[place] / 255))
        expected[place] = colorsys.hsv_to_rgb((h + turns) % 1, s, v)
    np.testing.assert_allclose(image_ops.hue(unit(image), turns), expected, atol=1e-5)


def test_grey_as_pil():
    expected = from_pil(pil(RGB).convert("L"))
    got = image_ops.grey(unit(RGB))
    np.testing.assert_allclose(got, np.broadcast_to(expected, (32, 32, 3)), atol=LEVEL)


# Perspective


SIZE = (30, 32)  # width, height; not square, to detect swapped sides
_STAY = [(0, 0), (29, 0), (29, 31), (0, 31)]
CORNERS = {
    "stay": _STAY,
    "one moves": [(5, 3), *_STAY[1:]],
    "all move": [(7, 7), (26, 1), (20, 25), (3, 29)],
    "turned": _STAY[1:] + _STAY[:1],
    "affine": [(3, 2), (27, 5), (25, 29), (1, 26)],
}


def assert_perspective(corners, expected):
    expected = from_pil(expected)
    got = image_ops.perspective(unit(np.ascontiguousarray(RGB[:, :30])), jnp.asarray(corners, jnp.float32))
    # PIL truncates to 256 levels. At the border of the black, float32 and float64 may disagree.
    far = (np.abs(got - expected) > LEVEL).any(2)
    assert far.sum() <= 3, (far.sum(), np.argwhere(far))
    assert (expected.max(2) > 0).mean() > 0.3


@pytest.mark.parametrize("corners", CORNERS.values(), ids=CORNERS)
def test_perspective_as_pil(corners):
    rows, values = [], []
    for (x, y), (u, v) in zip(corners, _STAY, strict=True):  # output (x, y) comes from (u, v)
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    coefficients = np.linalg.solve(np.array(rows, float), np.array(values, float))
    image = pil(np.ascontiguousarray(RGB[:, :30]))
    transform, bilinear = Image.Transform.PERSPECTIVE, Image.Resampling.BILINEAR
    assert_perspective(corners, image.transform(SIZE, transform, tuple(coefficients), bilinear))


@pytest.mark.parametrize("corners", CORNERS.values(), ids=CORNERS)
def test_perspective_as_torchvision(corners, torchvision):
    functional = torchvision.transforms.functional
    mode = functional.InterpolationMode.BILINEAR
    image = pil(np.ascontiguousarray(RGB[:, :30]))
    expected = functional.perspective(image, [list(c) for c in _STAY], [list(c) for c in corners], mode, fill=0)
    assert_perspective(corners, expected)


def test_perspective_moves_corners_to_their_targets():
    image = np.zeros((41, 41, 1), np.float32)
    image[:5, :5], image[:5, -5:], image[-5:, -5:], image[-5:, :5] = 0.2, 0.4, 0.6, 0.8
    places = [(4, 6), (35, 2), (38, 33), (1, 37)]
    got = np.asarray(image_ops.perspective(jnp.asarray(image), jnp.array(places, jnp.float32)))[..., 0]
    inwards = [(1, 1), (1, -1), (-1, -1), (-1, 1)]  # (row, column)
    found = [float(got[y + i, x + j]) for (x, y), (i, j) in zip(places, inwards, strict=True)]
    np.testing.assert_allclose(found, [0.2, 0.4, 0.6, 0.8], atol=1e-5)
    assert got[0].max() == got[-1].max() == 0  # black outside


def test_perspective_of_corners_in_one_line_is_black():
    """There is no such homography; torchvision's solver fails too."""
    got = image_ops.perspective(unit(RGB), jnp.array([[0.0, 0.0], [5, 5], [20, 20], [31, 31]]))
    np.testing.assert_array_equal(got, 0)


# Blur


@pytest.mark.parametrize("radius", [0.1, 0.5, 1.0, 2.3, 12.0])
def test_gaussian_blur_as_scipy(radius):
    ndimage = pytest.importorskip("scipy.ndimage")
    half_width = math.ceil(3 * radius)  # larger than the image at radius 12
    image = np.ascontiguousarray(RGB[:, :30])
    sides = {"mode": "nearest", "radius": (half_width, half_width, 0)}
    expected = ndimage.gaussian_filter(image / 255, (radius, radius, 0), **sides)
    got = image_ops.gaussian_blur(unit(image), radius, half_width)
    np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.parametrize("radius", [0.5, 1.0, 2.0, 3.0])
def test_gaussian_blur_as_pil(radius):
    """PIL's three box blurs are close to this Gaussian, and not to one a quarter wider or narrower."""
    image = from_pil(pil(RGB).filter(ImageFilter.GaussianBlur(radius)))
    inner = slice(6, -6)  # at the border PIL pads after each box blur

    def distances(radius):
        got = image_ops.gaussian_blur(unit(RGB), radius, math.ceil(3 * radius))
        return np.abs(np.asarray(got) - image)[inner, inner] * 255

    assert distances(radius).max() < 2.5  # levels
    mean = distances(radius).mean()
    assert mean < 0.6 and distances(1.25 * radius).mean() > 1.5 * mean < distances(0.75 * radius).mean()


def test_gaussian_blur_golden():
    image = jnp.zeros((7, 7, 1)).at[3, 3].set(1.0)
    tap = np.exp(-0.5 * np.arange(-2, 3) ** 2 / 1.5**2)
    expected = np.pad(np.outer(tap, tap) / tap.sum() ** 2, 1)  # truncated at two pixels
    np.testing.assert_allclose(image_ops.gaussian_blur(image, 1.5, 2)[..., 0], expected, atol=1e-6)
    np.testing.assert_array_equal(image_ops.gaussian_blur(image, 0.0, 2), image)


def test_gaussian_blur_uses_the_radius_of_each_image():
    radii = jnp.array([0.0, 0.7, 2.0])
    got = jax.vmap(lambda r: image_ops.gaussian_blur(unit(RGB), r, 6))(radii)
    for image, radius in zip(got, (0.0, 0.7, 2.0), strict=True):
        np.testing.assert_allclose(image, image_ops.gaussian_blur(unit(RGB), radius, 6), atol=1e-6)
    assert np.abs(got[0] - got[1]).max() > 0.05 and np.abs(got[1] - got[2]).max() > 0.05
