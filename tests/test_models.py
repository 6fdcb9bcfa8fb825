"""Trunks and heads: parameter counts as torchvision has them, stems, dtypes, who owns which parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grafit_jax import methods
from grafit_jax.models import build_trunk, convolution
from grafit_jax.models.resnet import _fold_patches
from small import small_config


def parameter_count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "with_head", "features"),
    [
        # torchvision's counts with the 1000-way head; the head itself is features * 1000 + 1000.
        ("resnet18", 11_689_512, 512),
        ("resnet34", 21_797_672, 512),
        ("resnet50", 25_557_032, 2048),
    ],
)
def test_parameter_counts_are_torchvisions(name, with_head, features):
    trunk = build_trunk(name)
    variables = jax.eval_shape(lambda: trunk.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))
    assert parameter_count(variables["params"]) == with_head - (features * 1000 + 1000)
    out = jax.eval_shape(lambda v: trunk.apply(v, jnp.zeros((2, 64, 64, 3)), train=False), variables)
    assert out.shape == (2, features) and out.dtype == jnp.float32


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 8), ("cifar", 32), ("patch2", 16)])
def test_stems_leave_the_first_stage_its_resolution(stem, side):
    trunk = build_trunk("resnet18", stem=stem)

    def first_stage():
        variables = trunk.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
        return trunk.apply(
            variables, jnp.zeros((1, 32, 32, 3)), train=False, capture_intermediates=True, mutable=["intermediates"]
        )[1]["intermediates"]["BasicBlock_0"]["__call__"][0]

    assert jax.eval_shape(first_stage).shape == (1, side, side, 64)


def test_patches_are_folded_without_mixing_places():
    # A 4x4 image of its own pixel numbers: the patch at row 0, column 1 holds the pixels 2 3 6 7.
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    folded = _fold_patches(image, 2)
    assert folded.shape == (1, 2, 2, 4)
    np.testing.assert_array_equal(folded[0, 0, 1], [2, 3, 6, 7])
    np.testing.assert_array_equal(folded[0, 1, 0], [8, 9, 12, 13])


def test_convolution_golden():
    # One 3x3 convolution of ones over a 3x3 image of ones, stride 1, padding 1: 4 taps in the corners, 6 at the edges,
    # 9 in the middle. Stride 2 with torchvision's symmetric padding takes the corners: 4 4 4 4.
    from grafit_jax.models.resnet import _conv3x3

    image = jnp.ones((1, 3, 3, 1))
    ones = {"params": {"kernel": jnp.ones((3, 3, 1, 1))}}
    np.testing.assert_allclose(
        _conv3x3(1, 1, jnp.float32).apply(ones, image)[0, ..., 0], [[4, 6, 4], [6, 9, 6], [4, 6, 4]]
    )
    np.testing.assert_allclose(_conv3x3(1, 2, jnp.float32).apply(ones, image)[0, ..., 0], [[4, 4], [4, 4]])
    # On a 4x4 image, stride 2: rows 0 and 2 as centres -> 4 6 / 6 9. "SAME" would pad below and give 9 6 / 6 4.
    np.testing.assert_allclose(
        _conv3x3(1, 2, jnp.float32).apply(ones, jnp.ones((1, 4, 4, 1)))[0, ..., 0], [[4, 6], [6, 9]]
    )


@pytest.mark.parametrize(("images", "stride", "dtype"), [(70, 1, "float32"), (64, 2, "float32"), (33, 1, "bfloat16")])
def test_convolution_in_parts_is_the_convolution_and_so_are_its_gradients(images, stride, dtype, monkeypatch):
    monkeypatch.setattr(convolution, "_PART", 2000)  # bytes: 3 images of float32, 6 of bfloat16
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (images, 6, 6, 4), dtype)
    kernel = jax.random.normal(keys[1], (3, 3, 4, 5), dtype)
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    out, pull = jax.vjp(
        lambda x, k: convolution.conv_general_dilated(x, k, (stride, stride), [(1, 1)] * 2, **options), x, kernel
    )
    cotangent = jax.random.normal(keys[2], out.shape, dtype)
    got = pull(cotangent)

    # The same as a sum over the nine taps, in float64.
    x64, kernel64, c64 = (np.asarray(a, np.float64) for a in (x, kernel, cotangent))
    padded = np.pad(x64, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.zeros(out.shape)
    x_gradient, kernel_gradient = np.zeros_like(padded), np.zeros_like(kernel64)
    rows = stride * (out.shape[1] - 1) + 1
    for i, j in np.ndindex(3, 3):
        taps = np.s_[:, i : i + rows : stride, j : j + rows : stride]
        expected += padded[taps] @ kernel64[i, j]
        kernel_gradient[i, j] = np.einsum("bhwi,bhwo->io", padded[taps], c64)
        x_gradient[taps] += c64 @ kernel64[i, j].T
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    for mine, want in zip((out, *got), (expected, x_gradient[:, 1:-1, 1:-1], kernel_gradient), strict=True):
        assert mine.dtype == dtype
        np.testing.assert_allclose(np.asarray(mine, np.float64), want, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("baseline", {"trunk", "classifier"}),
        ("baseline_mlp", {"trunk", "projector", "classifier"}),
        ("snca_plus", {"trunk", "projector"}),
        ("byol", {"trunk", "projector", "predictor"}),
        ("grafit_fc", {"trunk", "projector", "predictor", "classifier"}),
        ("grafit", {"trunk", "projector", "predictor"}),
    ],
)
def test_a_method_has_the_heads_it_trains_and_no_others(name, parts):
    config = small_config(name)
    network = methods.build_network(methods.get(name), config.model, num_classes=2)
    x = jax.random.normal(jax.random.key(0), (5, 8, 8, 1))
    variables = network.init(jax.random.key(1), x, train=False)
    assert set(variables["params"]) == parts
    out = network.apply(variables, x, train=False)
    assert out.features.shape == (5, 64)
    shapes = {k: None if v is None else v.shape for k, v in vars(out).items()}
    assert shapes["projection"] == ((5, 16) if "projector" in parts else None)
    assert shapes["prediction"] == ((5, 16) if "predictor" in parts else None)
    assert shapes["logits"] == ((5, 2) if "classifier" in parts else None)


def test_bfloat16_keeps_parameters_statistics_and_outputs_in_float32():
    config = small_config("grafit_fc", **{"model.dtype": "bfloat16"})
    network = methods.build_network(methods.get("grafit_fc"), config.model, num_classes=2)
    x = jax.random.normal(jax.random.key(0), (8, 8, 8, 1))
    variables = network.init(jax.random.key(1), x, train=False)
    out, updated = network.apply(variables, x, train=True, mutable=["batch_stats"])
    for tree in (variables, updated, out):
        assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype("float32")}
    full = methods.build_network(methods.get("grafit_fc"), small_config().model, num_classes=2)
    exact = full.apply(variables, x, train=True, mutable=["batch_stats"])[0]
    assert not np.array_equal(out.features, exact.features)
    np.testing.assert_allclose(out.features, exact.features, atol=0.1)
