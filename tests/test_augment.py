"""Views: shapes, probabilities and strengths, statelessness, and absence of disabled options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from grafit_jax.errors import UserError
from grafit_jax.views import augment, auto_augment, image_ops
from helpers.pixels import LEVEL, RGB, from_pil, pil

KEY = jax.random.key(7)


def views(**options):
    channels = options.pop("channels", 3)
    options = {"size": 32, "mean": (0.5,) * channels, "std": (0.25,) * channels} | options
    return augment.Views(**options)


NEW = {"autoaugment": True, "perspective": 0.5, "blur": (0.1, 2.0)}
PLAIN = {"crop_scale": (1.0, 1.0), "flip_prob": 0.0}  # random views that are plain views


@functools.cache
def maker(v, num_views):
    return jax.jit(functools.partial(augment.random_views, views=v, num_views=num_views))


@pytest.fixture
def patch(monkeypatch):
    """Replaces a function of the modules, and clears the compiled functions before and after."""
    maker.cache_clear()

    def replace(name, function):
        module = next(m for m in (augment, image_ops, auto_augment) if hasattr(m, name))
        monkeypatch.setattr(module, name, function)

    yield replace
    maker.cache_clear()


def make(images, ids=None, key=KEY, num_views=1, **options):
    ids = np.arange(len(images)) if ids is None else np.asarray(ids)
    v = views(channels=images.shape[-1], **options)
    return np.asarray(maker(v, num_views)(images, ids, key))


def batch(count, size=32, channels=3):
    return np.random.default_rng(1).integers(0, 256, (count, size, size, channels), np.uint8)


# Shapes, the plain view, and errors


@pytest.mark.parametrize("channels", [1, 3])
def test_shape_and_dtype_with_everything_on(channels):
    everything = {"jitter": (0.4, 0.4, 0.4, 0.1), "grayscale_prob": 0.2, "randaugment_ops": 2, "erase_prob": 0.25} | NEW
    out = make(batch(5, 12, channels), num_views=3, size=16, **everything)
    assert out.shape == (3, 5, 16, 16, channels) and out.dtype == np.float32
    assert np.isfinite(out).all()
    assert out.min() >= -2 - 1e-5 and out.max() <= 2 + 1e-5  # (0 - .5) / .25 and (1 - .5) / .25
    plain = augment.plain_view(batch(5, 12, channels), views=views(channels=channels, size=16))
    assert plain.shape == (5, 16, 16, channels) and plain.dtype == np.float32


def test_plain_view_normalises():
    v = views(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    expected = (RGB / 255 - np.array(v.mean)) / np.array(v.std)
    np.testing.assert_allclose(augment.plain_view(RGB[None], views=v)[0], expected, atol=1e-5)


@pytest.mark.parametrize("size", [12, 48])
def test_plain_view_resizes_as_pil(size):
    expected = from_pil(pil(RGB).resize((size, size), Image.Resampling.BILINEAR))
    got = augment.plain_view(RGB[None], views=views(size=size, mean=(0,) * 3, std=(1,) * 3))[0]
    np.testing.assert_allclose(got, expected, atol=LEVEL)


@pytest.mark.parametrize(("height", "width"), [(45, 60), (61, 45), (50, 50)])
def test_plain_view_crops_the_centre_as_torchvision(height, width, torchvision):
    image = np.ascontiguousarray(np.resize(RGB, (height, width, 3)))
    t = torchvision.transforms
    expected = from_pil(t.Compose([t.Resize(36), t.CenterCrop(31)])(pil(image)))
    got = augment.plain_view(image[None], views=views(size=31, resize=36, mean=(0,) * 3, std=(1,) * 3))[0]
    np.testing.assert_allclose(got, expected, atol=LEVEL)


def test_plain_view_crops_the_centre_exactly_without_resizing():
    """As for images stored at 256 pixels and cropped to 224."""
    got = augment.plain_view(RGB[None, :32, :32], views=views(size=28, resize=32, mean=(0,) * 3, std=(1,) * 3))[0]
    np.testing.assert_allclose(got, RGB[2:30, 2:30] / 255, atol=1e-6)


@pytest.mark.parametrize(
    "options, found",
    [
        ({"flip_prob": 1.5}, "views.flip_prob = 1.5"),
        ({"crop_scale": (0.5, 0.2)}, "views.crop_scale = (0.5, 0.2)"),
        ({"crop_ratio": (0.0, 1.0)}, "views.crop_ratio"),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "views.jitter"),
        ({"jitter": (0.4,)}, "views.jitter"),
        ({"std": (0.25, 0.25)}, "views.std"),
        ({"std": (0.25, 0.25, 0.0)}, "views.std"),
        ({"randaugment_magnitude": 31}, "views.randaugment_magnitude = 31"),
        ({"randaugment_ops": -1}, "views.randaugment_ops"),
        ({"size": 0}, "views.size = 0"),
        ({"size": 9, "resize": 8}, "views.resize = 8"),
        ({"autoaugment": "torchvision"}, "views.autoaugment = torchvision"),
        ({"erase_prob": -0.1}, "views.erase_prob"),
        ({"perspective": 1.1}, "views.perspective = 1.1"),
        ({"perspective_prob": -0.5}, "views.perspective_prob = -0.5"),
        ({"blur": (2.0, 1.0)}, "views.blur = (2.0, 1.0)"),
        ({"blur": (-1.0, 1.0)}, "views.blur = (-1.0, 1.0)"),
        ({"blur": (1.0,)}, "views.blur = (1.0,)"),
        ({"blur_prob": 2.0}, "views.blur_prob = 2.0"),
    ],
)
def test_a_value_out_of_range_is_refused(options, found):
    with pytest.raises(UserError) as error:
        views(**options)
    assert found in str(error.value) and "\n" not in str(error.value)


def test_mismatched_channels_are_refused():
    for images, channels in ((batch(1), 1), (batch(1, channels=1), 3), (batch(1, channels=2), 2)):
        with pytest.raises(UserError, match=f"{images.shape[-1]} channels"):
            augment.plain_view(images, views=views(channels=channels))
        with pytest.raises(UserError, match=r"views\.mean"):
            augment.random_views(images, np.arange(1), KEY, views=views(channels=channels), num_views=1)


def test_views_from_lists_are_hashable():
    lists = views(mean=[0.5] * 3, jitter=[0, 0, 0, 0], blur=[0, 1])
    assert hash(lists) == hash(views(jitter=(0, 0, 0, 0), blur=(0, 1)))


# Flip


@pytest.mark.parametrize("flip", [0.0, 0.3, 1.0])
def test_flip_probability(flip):
    images = np.repeat(np.arange(4, dtype=np.uint8)[None, None, :, None] * 60, 2000, 0).repeat(4, 1)
    out = make(images, size=4, crop_scale=(1, 1), flip_prob=flip)[0]
    plain = np.asarray(augment.plain_view(images, views=views(channels=1, size=4)))
    flipped = np.isclose(out, plain[:, :, ::-1], atol=1e-5).all((1, 2, 3))
    kept = np.isclose(out, plain, atol=1e-5).all((1, 2, 3))
    assert (flipped ^ kept).all()
    assert flipped.mean() == pytest.approx(flip, abs=0.04)  # 4 sigma


# Probabilities and strengths


@pytest.mark.parametrize("place, low, high", [(0, 0.6, 1.4), (1, 0.0, 2.5), (2, 0.6, 1.4), (3, -0.1, 0.1)])
def test_jitter_strengths(place, low, high, patch):
    """The factors are uniform in [max(0, 1 - s), 1 + s], those of hue in [-s, s]."""
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
    [
        {"jitter": (1.0, 0.0, 0.0, 0.0), "jitter_prob": 0.3},
        {"grayscale_prob": 0.3},
        {"erase_prob": 0.3},
        {"perspective": 1.0, "perspective_prob": 0.3},  # all eight draws are 0 with probability 1 / 5^8
        {"blur": (0.5, 1.0), "blur_prob": 0.3},
    ],
    ids=["jitter", "grey", "erase", "perspective", "blur"],
)
def test_probabilities(options):
    images = np.repeat(RGB[None, :8, :8], 2000, 0)
    out = make(images, size=8, **PLAIN, **options)[0]
    plain = np.asarray(augment.plain_view(images[:1], views=views(size=8)))
    changed = (np.abs(out - plain) > 1e-4).any((1, 2, 3))
    assert changed.mean() == pytest.approx(0.3, abs=0.04)  # 4 sigma
    if "grayscale_prob" in options:
        np.testing.assert_allclose(out[changed], np.repeat(out[changed][..., :1], 3, -1), atol=1e-6)


def test_blur_radii_fill_their_range(patch):
    patch("gaussian_blur", lambda image, radius, half_width: image * 0 + radius + 100 * half_width)
    out = make(
        np.zeros((2000, 1, 1, 1), np.uint8), size=1, **PLAIN, blur=(0.5, 2.1), blur_prob=1.0, std=(1,), mean=(0,)
    )
    radius = out.ravel() - 700  # half_width = ceil(3 * 2.1)
    assert 0.5 <= radius.min() < 0.51 and 2.09 < radius.max() <= 2.1001
    assert radius.mean() == pytest.approx(1.3, abs=0.05)  # 5 sigma


# RandAugment and AutoAugment


def test_autoaugment_has_five_independent_draws(patch):
    patch("autoaugment", lambda x, u, maskcon: x * 0 + u[:, None, None])  # row i of the view is draw i
    images = np.zeros((3000, 5, 5, 1), np.uint8)
    rows = make(images, size=5, **PLAIN, autoaugment=True, std=(1,), mean=(0,))[0, :, :, 0, 0].T
    assert rows.shape == (5, 3000)
    np.testing.assert_allclose(rows.mean(1), 0.5, atol=0.025)  # 4.7 sigma
    assert rows.min() >= 0 and (rows.min(1) < 0.01).all() and (rows.max(1) > 0.99).all()
    assert np.abs(np.corrcoef(rows) - np.eye(5)).max() < 0.09


def test_randaugment_draws_operations_uniformly(patch):
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


def test_erased_pixels_are_zero_after_normalisation():
    images = np.full((50, 16, 16, 3), 255, np.uint8)
    out = make(images, size=16, **PLAIN, erase_prob=1.0, mean=(0.1,) * 3)[0]
    assert set(np.unique(np.round(out, 4))) == {0.0, np.float32(3.6)}  # (1 - .1) / .25
    share = (out == 0).all(-1).mean((1, 2))
    assert share.min() > 0 and share.max() < 0.4  # at most a third, with sides rounded to whole pixels


# Statelessness and disabled options


FULL = {"jitter": (0.4, 0.4, 0.4, 0.1), "grayscale_prob": 0.2, "randaugment_ops": 1, "erase_prob": 0.5} | NEW


@pytest.mark.slow
def test_a_view_does_not_depend_on_the_batch():
    images = batch(8, 16)
    whole = make(images, num_views=3, size=16, **FULL)
    # Another order and other images: inverted pixels under ids from 10 replace five images.
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
    used += [*u[a._AUTOAUGMENT], *u[a._CORNERS], a._DISTORTED, a._BLURRED, a._RADIUS]
    assert sorted(used) == u and len(u[a._CROP]) == len(u[a._ERASE]) == 22 and len(u[a._FACTORS]) == 4


def test_an_option_keeps_the_draws_of_the_others():
    images = batch(16, 16)
    without, with_erasing = (make(images, size=16, erase_prob=p) for p in (0.0, 1.0))
    kept = with_erasing != 0
    assert 0.5 < kept.mean() < 0.98
    np.testing.assert_allclose(with_erasing[kept], without[kept], atol=1e-5)


def test_operations_run_in_the_documented_order(patch):
    order = []

    def seen(module, name):
        original = getattr(module, name)
        return lambda *a, **k: order.append(name) or original(*a, **k)

    stages = [
        (image_ops, "crop"), (image_ops, "perspective"), (auto_augment, "autoaugment"),
        (auto_augment, "randaugment_op"),
        (augment, "_jitter"), (image_ops, "gaussian_blur"), (augment, "normalise"), (augment, "erase_mask"),
    ]  # fmt: skip
    for module, name in stages:
        patch(name, seen(module, name))
    jax.eval_shape(maker(views(size=8, **FULL), 1), batch(1, 8), np.arange(1), KEY)
    assert order == [name for _, name in stages]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, 10])
def test_random_views_without_options_are_plain_views(channels, size):
    images = batch(4, 16, channels)
    out = make(images, num_views=2, size=size, **PLAIN)
    plain = augment.plain_view(images, views=views(channels=channels, size=size))
    np.testing.assert_allclose(out, np.stack([plain] * 2), atol=1e-6)


@pytest.mark.parametrize(
    "options, names",
    [
        ({"crop_scale": (1.0, 1.0)}, ["crop"]),
        ({}, ["_jitter", "grey", "randaugment_op", "erase_mask", "autoaugment", "perspective", "gaussian_blur"]),
        ({"perspective": 0.5, "perspective_prob": 0.0}, ["perspective"]),
        ({"perspective": 0.2}, ["perspective"]),  # no corner can move by a whole pixel
        ({"blur": (0.5, 1.0), "blur_prob": 0.0}, ["gaussian_blur"]),
        ({"jitter": (0.4,) * 4, "jitter_prob": 0.0}, ["_jitter"]),
        ({"jitter": (0.4, 0.0, 0.0, 0.0)}, ["contrast", "saturation", "hue"]),
        ({"jitter": (0.0, 0.0, 0.0, 0.1)}, ["brightness", "contrast", "saturation"]),
    ],
)
def test_disabled_options_are_not_traced(options, names, patch):
    def refuse(*_):
        raise AssertionError("traced")

    for name in names:
        patch(name, refuse)
    assert make(batch(1, 8), size=8, **options).shape == (1, 1, 8, 8, 3)


def test_disabled_flip_is_not_traced():
    def ops(flip):
        v = views(flip_prob=flip, size=16)
        f = jax.make_jaxpr(lambda i: augment.random_views(i, np.arange(2), KEY, views=v, num_views=1))
        return str(f(batch(2, 16)))

    assert " rev[" in ops(0.5) and " rev[" not in ops(0.0)


def test_colour_options_on_one_channel_images():
    images = batch(20, 16, 1)
    colour_only = {"jitter": (0.0, 0.0, 0.9, 0.5), "jitter_prob": 1.0, "grayscale_prob": 1.0}
    plain = augment.plain_view(images, views=views(channels=1, size=16))
    np.testing.assert_allclose(make(images, size=16, **PLAIN, **colour_only)[0], plain, atol=1e-5)
    brighter = make(images, size=16, **PLAIN, jitter=(0.5, 0.0, 0.0, 0.0), jitter_prob=1.0)[0]
    assert (np.abs(brighter - plain).max((1, 2, 3)) > 1e-3).mean() > 0.9


def test_random_views_are_traced_once():
    traces = []

    def step(images, ids, key):
        traces.append(1)
        return augment.random_views(images, ids, key, views=views(size=8), num_views=2)

    step = jax.jit(step)
    for i in range(3):
        step(batch(4, 8), np.arange(4, dtype=np.int32) + i, jax.random.fold_in(KEY, i))
    assert len(traces) == 1
