"""Views: every operation against PIL or a float64 twin, the laws of the random ones, and statelessness."""

import colorsys
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from grafit_jax.data import augment
from grafit_jax.errors import UserError

_RNG = np.random.default_rng(0)
# Smooth colour plus noise, so that histograms have gaps and channels differ.
_RAMP = np.linspace(20, 200, 32)[:, None, None] * np.array([1.0, 0.7, 0.4])
RGB = np.clip(_RAMP + _RNG.normal(0, 25, (32, 32, 3)), 0, 255).astype(np.uint8)
LEVEL = 1 / 255 + 1e-6  # PIL rounds or truncates to 256 levels, the module works in float32
KEY = jax.random.key(7)


def unit(image):
    return jnp.asarray(image, jnp.float32) / 255


def pil(image):
    return Image.fromarray(image if image.shape[2] == 3 else image[..., 0])


def from_pil(image):
    return np.atleast_3d(np.asarray(image)) / 255


def views(**options):
    channels = options.pop("channels", 3)
    options = {"size": 32, "mean": (0.5,) * channels, "std": (0.25,) * channels} | options
    return augment.Views(**options)


PLAIN = {"crop_scale": (1.0, 1.0), "flip": 0.0}  # random views that are plain views


@functools.cache
def maker(v, num_views):
    return jax.jit(functools.partial(augment.random_views, views=v, num_views=num_views))


@pytest.fixture
def patch(monkeypatch):
    """Replaces a function of the module; no program compiled with or without it outlives the test."""
    maker.cache_clear()
    yield lambda name, function: monkeypatch.setattr(augment, name, function)
    maker.cache_clear()


def make(images, ids=None, key=KEY, num_views=1, **options):
    ids = np.arange(len(images)) if ids is None else np.asarray(ids)
    v = views(channels=images.shape[-1], **options)
    return np.asarray(maker(v, num_views)(images, ids, key))


def batch(count, size=32, channels=3):
    return np.random.default_rng(1).integers(0, 256, (count, size, size, channels), np.uint8)


# Shapes, the plain view, and mistakes


@pytest.mark.parametrize("channels", [1, 3])
def test_shape_and_dtype_with_everything_on(channels):
    everything = {"jitter": (0.4, 0.4, 0.4, 0.1), "grey": 0.2, "randaugment_ops": 2, "erase": 0.25}
    out = make(batch(5, 12, channels), num_views=3, size=16, **everything)
    assert out.shape == (3, 5, 16, 16, channels) and out.dtype == np.float32
    assert np.isfinite(out).all()
    assert out.min() >= -2 - 1e-5 and out.max() <= 2 + 1e-5  # (0 - .5) / .25 and (1 - .5) / .25
    plain = augment.plain_view(batch(5, 12, channels), views=views(channels=channels, size=16))
    assert plain.shape == (5, 16, 16, channels) and plain.dtype == np.float32


def test_plain_view_normalises():
    v = views(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    want = (RGB / 255 - np.array(v.mean)) / np.array(v.std)
    np.testing.assert_allclose(augment.plain_view(RGB[None], views=v)[0], want, atol=1e-5)


@pytest.mark.parametrize("size", [12, 48])
def test_plain_view_resizes_as_pil(size):
    want = from_pil(pil(RGB).resize((size, size), Image.Resampling.BILINEAR))
    got = augment.plain_view(RGB[None], views=views(size=size, mean=(0,) * 3, std=(1,) * 3))[0]
    np.testing.assert_allclose(got, want, atol=LEVEL)


@pytest.mark.parametrize(
    "options, found",
    [
        ({"flip": 1.5}, "views.flip = 1.5"),
        ({"crop_scale": (0.5, 0.2)}, "views.crop_scale = (0.5, 0.2)"),
        ({"crop_ratio": (0.0, 1.0)}, "views.crop_ratio"),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "views.jitter"),
        ({"jitter": (0.4,)}, "views.jitter"),
        ({"std": (0.25, 0.25)}, "views.std"),
        ({"std": (0.25, 0.25, 0.0)}, "views.std"),
        ({"randaugment_magnitude": 31}, "views.randaugment_magnitude = 31"),
        ({"randaugment_ops": -1}, "views.randaugment_ops"),
        ({"size": 0}, "views.size = 0"),
        ({"erase": -0.1}, "views.erase"),
    ],
)
def test_a_value_out_of_range_is_refused(options, found):
    with pytest.raises(UserError) as error:
        views(**options)
    assert found in str(error.value) and "\n" not in str(error.value)


def test_channels_that_do_not_fit_are_refused():
    for images, channels in ((batch(1), 1), (batch(1, channels=1), 3), (batch(1, channels=2), 2)):
        with pytest.raises(UserError, match=f"{images.shape[-1]} channels"):
            augment.plain_view(images, views=views(channels=channels))
        with pytest.raises(UserError, match=r"views\.mean"):
            augment.random_views(images, np.arange(1), KEY, views=views(channels=channels), num_views=1)


def test_views_from_lists_are_hashable():
    assert hash(views(mean=[0.5] * 3, jitter=[0, 0, 0, 0])) == hash(views(jitter=(0, 0, 0, 0)))


# Crop and flip


def test_crop_golden():
    image = jnp.arange(16.0).reshape(4, 4, 1)
    box = (1.0, 2.0, 2.0, 2.0)  # rows 1-2, columns 2-3: whole pixels at their own scale
    np.testing.assert_allclose(augment.crop(image, box, 2)[..., 0], [[6, 7], [10, 11]], atol=1e-5)
    box = (0.5, 1.0, 2.0, 2.0)  # half a pixel lower: means of two rows, (1 + 5) / 2 = 3
    np.testing.assert_allclose(augment.crop(image, box, 2)[..., 0], [[3, 4], [7, 8]], atol=1e-5)


def test_crop_against_float64():
    top, left, height, width, size = 3.3, 7.8, 21.4, 16.2, 12

    def weights(start, length):  # triangle filter, widened when it shrinks, over the pixels that there are
        centre = start + (np.arange(size)[:, None] + 0.5) * length / size
        w = np.maximum(0, 1 - np.abs(np.arange(32) + 0.5 - centre) / max(length / size, 1))
        return w / w.sum(1, keepdims=True)

    want = np.einsum("ai,ijc,bj->abc", weights(top, height), RGB / 255, weights(left, width))
    got = augment.crop(unit(RGB), (jnp.float32(top), left, height, width), size)
    np.testing.assert_allclose(got, want, atol=2e-5)


def boxes(count, height, width, scale, ratio):
    u = jax.random.uniform(KEY, (count, 22))
    found = jax.jit(jax.vmap(lambda u: jnp.stack(augment.crop_box(u, height, width, scale, ratio))))(u)
    return np.asarray(found, np.float64).T


@pytest.mark.parametrize("height, width", [(32, 32), (24, 36)])
def test_crop_boxes_keep_the_law(height, width):
    top, left, h, w = boxes(20_000, height, width, (0.2, 0.8), (3 / 4, 4 / 3))
    eps = 1e-3
    assert top.min() >= 0 and left.min() >= 0
    assert (top + h).max() <= height + eps and (left + w).max() <= width + eps
    share, ratio = h * w / (height * width), w / h
    assert 0.2 - eps <= share.min() < 0.21 and 0.77 < share.max() <= 0.8 + eps
    assert 0.75 - eps <= ratio.min() < 0.76 and 1.32 < ratio.max() <= 4 / 3 + eps
    # The place is uniform in what is left: the mean share of the room is 1/2 (standard error 0.002).
    assert np.mean(top / (height - h)) == pytest.approx(0.5, abs=0.01)
    assert np.mean(left / (width - w)) == pytest.approx(0.5, abs=0.01)


def test_crop_law_by_torchvisions_loop():
    """Rejection as in RandomResizedCrop.get_params, unrounded: the means agree to 4 sigma."""
    scale, log_ratio = (0.5, 1.0), (math.log(0.5), math.log(2))
    rng, kept = np.random.default_rng(3), []
    while len(kept) < 20_000:
        area, ratio = rng.uniform(*scale), math.exp(rng.uniform(*log_ratio))
        if area * ratio <= 1 and area / ratio <= 1:
            kept.append((area, math.log(ratio), abs(math.log(ratio))))
    _, _, h, w = boxes(20_000, 32, 32, scale, (0.5, 2))
    got = np.stack([h * w / 32**2, np.log(w / h), np.abs(np.log(w / h))])
    want = np.array(kept).T
    tolerance = 4 * want.std(1) * math.sqrt(2 / 20_000)
    assert (np.abs(got.mean(1) - want.mean(1)) < tolerance).all()


def test_crop_that_never_fits_is_central():
    top, left, h, w = boxes(50, 20, 40, (1.0, 1.0), (3 / 4, 4 / 3))  # the whole area needs ratio 2
    np.testing.assert_allclose([top, h], [np.zeros(50), np.full(50, 20)], atol=1e-5)
    np.testing.assert_allclose(w, 20 * 4 / 3, rtol=1e-5)
    np.testing.assert_allclose(left, (40 - 20 * 4 / 3) / 2, rtol=1e-5)


@pytest.mark.parametrize("flip", [0.0, 0.3, 1.0])
def test_flip_probability(flip):
    images = np.repeat(np.arange(4, dtype=np.uint8)[None, None, :, None] * 60, 2000, 0).repeat(4, 1)
    out = make(images, size=4, crop_scale=(1, 1), flip=flip)[0]
    plain = np.asarray(augment.plain_view(images, views=views(channels=1, size=4)))
    flipped = np.isclose(out, plain[:, :, ::-1], atol=1e-5).all((1, 2, 3))
    kept = np.isclose(out, plain, atol=1e-5).all((1, 2, 3))
    assert (flipped ^ kept).all()
    assert flipped.mean() == pytest.approx(flip, abs=0.04)  # 4 sigma


# Colour: PIL's meaning, which is torchvision's


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.8])
@pytest.mark.parametrize(
    "op, enhancer",
    [
        (augment.brightness, ImageEnhance.Brightness),
        (augment.contrast, ImageEnhance.Contrast),
        (augment.saturation, ImageEnhance.Color),
        (lambda x, f: augment.blend(augment.smooth(x), x, f), ImageEnhance.Sharpness),
    ],
    ids=["brightness", "contrast", "saturation", "sharpness"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_enhancements_as_pil(op, enhancer, factor, channels):
    image = RGB[..., :channels]
    want = from_pil(enhancer(pil(image)).enhance(factor))
    # Two roundings in PIL, of the other image and of the blend: up to 1.5 levels, 1.8 for extrapolation.
    np.testing.assert_allclose(op(unit(image), factor), want, atol=1.9 / 255)


@pytest.mark.parametrize("turns", [-0.3, 0.0, 0.1, 0.5])
def test_hue_as_colorsys(turns):
    image = RGB[:8, :8]
    want = np.zeros(image.shape)
    for place in np.ndindex(8, 8):
        h, s, v = colorsys.rgb_to_hsv(*(image[place] / 255))
        want[place] = colorsys.hsv_to_rgb((h + turns) % 1, s, v)
    np.testing.assert_allclose(augment.hue(unit(image), turns), want, atol=1e-5)


def test_grey_as_pil():
    want = from_pil(pil(RGB).convert("L"))
    got = augment.grey(unit(RGB))
    np.testing.assert_allclose(got, np.broadcast_to(want, (32, 32, 3)), atol=LEVEL)


@pytest.mark.parametrize("place, low, high", [(0, 0.6, 1.4), (1, 0.0, 2.5), (2, 0.6, 1.4), (3, -0.1, 0.1)])
def test_jitter_strengths(place, low, high, patch):
    """The factors that reach the operations fill their range: [max(0, 1 - s), 1 + s], hue [-s, s]."""
    strengths = (0.4, 1.5, 0.4, 0.1)
    name = ("brightness", "contrast", "saturation", "hue")[place]
    patch(name, lambda image, factor: image * 0 + factor)
    others = {"brightness", "contrast", "saturation", "hue"} - {name}
    for other in others:
        patch(other, lambda image, factor: image)
    u = np.random.default_rng(0).random((2000, 4), np.float32)
    got = jax.vmap(lambda u: augment._jitter(jnp.ones((1, 1, 3)), u, strengths))(u)[:, 0, 0, 0]
    np.testing.assert_allclose(got, low + u[:, place] * (high - low), atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"jitter": (1.0, 0.0, 0.0, 0.0), "jitter_prob": 0.3}, {"grey": 0.3}, {"erase": 0.3}],
    ids=["jitter", "grey", "erase"],
)
def test_probability_of_an_option(options):
    images = np.repeat(RGB[None, :8, :8], 2000, 0)
    out = make(images, size=8, **PLAIN, **options)[0]
    plain = np.asarray(augment.plain_view(images[:1], views=views(size=8)))
    changed = (np.abs(out - plain) > 1e-4).any((1, 2, 3))
    assert changed.mean() == pytest.approx(0.3, abs=0.04)  # 4 sigma
    if "grey" in options:
        np.testing.assert_allclose(out[changed], np.repeat(out[changed][..., :1], 3, -1), atol=1e-6)


# RandAugment


randaugment_op = jax.jit(augment.randaugment_op, static_argnames="magnitude")


def op(name, image, *, sign=False, magnitude=9):
    return np.asarray(randaugment_op(unit(image), augment.OPS.index(name), sign, magnitude=magnitude))


def pil_op(name, image, level):
    """torchvision's _apply_op on a PIL image; `level` is signed where the operation has a direction."""
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
        "solarize": lambda: ImageOps.solarize(image, 255 * (1 - abs(level))),
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
    }[name]()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", augment.OPS)
def test_randaugment_ops_as_pil(name, channels):
    image = np.ascontiguousarray(RGB[:, :30, :channels])  # not square, so that swapped sides show
    exact = name in ("identity", *augment._GEOMETRIC, "posterize", "solarize", "equalize")
    for magnitude in (5, 9, 30):
        for sign in (False, True):
            level = magnitude / 30 * (-1 if sign else 1)
            want = from_pil(pil_op(name, image, level))
            got = op(name, image, sign=sign, magnitude=magnitude)
            close = np.abs(got - want) <= (1e-5 if exact else 1.9 / 255)
            # PIL finds the pixel in 16-bit fixed point, here it is float32: a few lie on the border of two.
            allowed = 0.005 if name in augment._GEOMETRIC else 0
            assert np.mean(~close) <= allowed, (magnitude, sign, np.abs(got - want).max())


def test_the_oracle_tells_the_operations_apart():
    """Else the comparison with PIL above could not fail."""
    results = [from_pil(pil_op(name, RGB, 1.0)) for name in augment.OPS]
    for i, first in enumerate(results):
        for second in results[:i]:
            assert np.mean(np.abs(first - second) > 2 / 255) > 0.02


def test_constant_image_stays_under_levels_operations():
    image = np.full((20, 20, 3), 77, np.uint8)
    for name in ("autocontrast", "equalize", "sharpness", "contrast"):
        np.testing.assert_allclose(op(name, image), image / 255, atol=1e-6)


def test_randaugment_draws_every_operation_alike(patch):
    patch("randaugment_op", lambda x, op, sign, m: x * 0 + op + 100.0 * sign)
    out = make(np.zeros((7000, 1, 1, 1), np.uint8), size=1, **PLAIN, randaugment_ops=1, std=(1,), mean=(0,))
    sign, drawn = np.divmod(np.round(out.ravel()), 100)
    counts = np.bincount(drawn.astype(int), minlength=14)
    assert len(counts) == 14 and np.abs(counts - 500).max() < 100  # 4.6 sigma
    assert sign.mean() == pytest.approx(0.5, abs=0.03)


def test_randaugment_operations_differ_within_a_view(patch):
    patch("randaugment_op", lambda x, op, sign, m: 14 * x + op)
    out = make(np.zeros((5000, 1, 1, 1), np.uint8), size=1, **PLAIN, randaugment_ops=2, std=(1,), mean=(0,))
    assert len(np.unique(np.round(out))) == 14 * 14


# Erasing


def test_erase_law():
    u = jax.random.uniform(KEY, (5000, 22))
    masks = np.asarray(jax.jit(jax.vmap(lambda u: augment.erase_mask(u, 32)))(u))[..., 0]
    rows, columns = masks.any(2).sum(1), masks.any(1).sum(1)
    np.testing.assert_array_equal(masks.sum((1, 2)), rows * columns)  # a rectangle
    assert (rows > 0).all() and rows.max() < 32 and columns.max() < 32
    share, ratio = rows * columns / 32**2, rows / columns
    # Rounding of the sides to whole pixels moves both a little over the range.
    assert 0.012 < share.min() < 0.03 and 0.31 < share.max() < 0.36
    assert 0.26 < ratio.min() < 0.35 and 2.9 < ratio.max() < 3.8
    assert share.mean() == pytest.approx(0.175, abs=0.01)
    for edge in (masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]):
        assert edge.any()


def test_erased_pixels_are_zero_after_normalisation():
    images = np.full((50, 16, 16, 3), 255, np.uint8)
    out = make(images, size=16, **PLAIN, erase=1.0, mean=(0.1,) * 3)[0]
    assert set(np.unique(np.round(out, 4))) == {0.0, np.float32(3.6)}  # (1 - .1) / .25
    assert ((out == 0).any((1, 2, 3))).all()


# Statelessness, and what is not asked for


FULL = {"jitter": (0.4, 0.4, 0.4, 0.1), "grey": 0.2, "randaugment_ops": 1, "erase": 0.5}


def test_a_view_does_not_depend_on_the_batch():
    images = batch(8, 16)
    whole = make(images, num_views=3, size=16, **FULL)
    # Another order, and other mates: ids 10 on, with inverted pixels, take the places of five images.
    order, mixed = [5, 2, 7], 255 - images
    mixed[:3] = images[order]
    part = make(mixed, ids=[*order, *range(10, 15)], num_views=3, size=16, **FULL)
    np.testing.assert_allclose(part[:, :3], whole[:, order], atol=1e-4)
    alone = make(images[3:4], ids=[3], num_views=2, size=16, **FULL)  # another batch size, fewer views
    np.testing.assert_allclose(alone, whole[:2, 3:4], atol=1e-4)


def test_views_differ_over_views_ids_and_keys():
    images = np.repeat(RGB[None], 3, 0)  # the same pixels under three ids
    out = make(images, num_views=3).reshape(9, -1)
    other_key = make(images, num_views=3, key=jax.random.key(8)).reshape(9, -1)
    every = np.concatenate([out, other_key])
    distance = np.abs(every[:, None] - every[None]).max(-1) + np.eye(18)
    assert distance.min() > 0.1
    np.testing.assert_array_equal(make(images, num_views=3).reshape(9, -1), out)


def test_no_draw_is_used_twice():
    a, u = augment, list(range(augment._RANDAUGMENT))
    used = [*u[a._CROP], *u[a._ERASE], *u[a._FACTORS], a._FLIPPED, a._JITTERED, a._GREYED, a._ERASED]
    assert sorted(used) == u and len(u[a._CROP]) == len(u[a._ERASE]) == 22 and len(u[a._FACTORS]) == 4


def test_an_option_leaves_the_draws_of_the_others():
    images = batch(16, 16)
    without, with_erasing = (make(images, size=16, erase=p) for p in (0.0, 1.0))
    kept = with_erasing != 0
    assert 0.5 < kept.mean() < 0.98
    np.testing.assert_allclose(with_erasing[kept], without[kept], atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, 10])
def test_nothing_asked_for_is_the_plain_view(channels, size):
    images = batch(4, 16, channels)
    out = make(images, num_views=2, size=size, **PLAIN)
    plain = augment.plain_view(images, views=views(channels=channels, size=size))
    np.testing.assert_allclose(out, np.stack([plain] * 2), atol=1e-6)


@pytest.mark.parametrize(
    "options, names",
    [
        ({"crop_scale": (1.0, 1.0)}, ["crop"]),
        ({}, ["_jitter", "grey", "randaugment_op", "erase_mask"]),
        ({"jitter": (0.4,) * 4, "jitter_prob": 0.0}, ["_jitter"]),
        ({"jitter": (0.4, 0.0, 0.0, 0.0)}, ["contrast", "saturation", "hue"]),
        ({"jitter": (0.0, 0.0, 0.0, 0.1)}, ["brightness", "contrast", "saturation"]),
    ],
)
def test_what_is_off_is_not_traced(options, names, patch):
    def refuse(*_):
        raise AssertionError("traced")

    for name in names:
        patch(name, refuse)
    assert make(batch(1, 8), size=8, **options).shape == (1, 1, 8, 8, 3)


def test_flip_off_is_not_traced():
    def ops(flip):
        v = views(flip=flip, size=16)
        f = jax.make_jaxpr(lambda i: augment.random_views(i, np.arange(2), KEY, views=v, num_views=1))
        return str(f(batch(2, 16)))

    assert " rev[" in ops(0.5) and " rev[" not in ops(0.0)


def test_grey_images_under_colour_options():
    images = batch(20, 16, 1)
    colour_only = {"jitter": (0.0, 0.0, 0.9, 0.5), "jitter_prob": 1.0, "grey": 1.0}
    plain = augment.plain_view(images, views=views(channels=1, size=16))
    np.testing.assert_allclose(make(images, size=16, **PLAIN, **colour_only)[0], plain, atol=1e-5)
    brighter = make(images, size=16, **PLAIN, jitter=(0.5, 0.0, 0.0, 0.0), jitter_prob=1.0)[0]
    assert (np.abs(brighter - plain).max((1, 2, 3)) > 1e-3).mean() > 0.9


def test_one_trace_serves_every_step():
    traces = []

    def step(images, ids, key):
        traces.append(1)
        return augment.random_views(images, ids, key, views=views(size=8), num_views=2)

    step = jax.jit(step)
    for i in range(3):
        step(batch(4, 8), np.arange(4, dtype=np.int32) + i, jax.random.fold_in(KEY, i))
    assert len(traces) == 1
