"""Layers, stems and heads: hand-computed convolutions, dtypes, parameters of each method."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grafit_jax import experiment, methods, restore
from grafit_jax.errors import UserError
from grafit_jax.models import build_trunk, layers
from grafit_jax.models.layers import conv3x3, fold_patches
from helpers.runs import small_config


@pytest.mark.parametrize(
    ("name", "stem", "side", "block", "width"),
    [
        ("resnet18", "imagenet", 8, "BasicBlock_0", 64),
        ("resnet18", "cifar", 32, "BasicBlock_0", 64),
        ("resnet18", "patch2", 16, "BasicBlock_0", 64),
        # A RegNet's first stage has stride 2.
        ("regnet_y_400mf", "imagenet", 8, "YBlock_0", 48),
        ("regnet_y_400mf", "cifar", 16, "YBlock_0", 48),
        ("regnet_y_400mf", "patch2", 8, "YBlock_0", 48),
        ("tf_efficientnet_lite0", "imagenet", 16, "MBBlock_0", 16),
        ("tf_efficientnet_lite0", "cifar", 32, "MBBlock_0", 16),
        ("tf_efficientnet_lite0", "patch2", 16, "MBBlock_0", 16),
    ],
)
def test_stems_determine_the_resolution_of_the_first_stage(name, stem, side, block, width):
    trunk = build_trunk(name, stem=stem)

    def first_stage():
        variables = trunk.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
        return trunk.apply(
            variables, jnp.zeros((1, 32, 32, 3)), train=False, capture_intermediates=True, mutable=["intermediates"]
        )[1]["intermediates"][block]["__call__"][0]

    assert jax.eval_shape(first_stage).shape == (1, side, side, width)


def test_folded_patches_keep_their_positions():
    # A 4x4 image of pixel numbers: the patch at row 0, column 1 has the pixels 2 3 6 7.
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    folded = fold_patches(image, 2)
    assert folded.shape == (1, 2, 2, 4)
    np.testing.assert_array_equal(folded[0, 0, 1], [2, 3, 6, 7])
    np.testing.assert_array_equal(folded[0, 1, 0], [8, 9, 12, 13])


def test_convolution_golden():
    # One 3x3 convolution of ones over a 3x3 image of ones, stride 1, padding 1: 4 taps in the corners, 6 at the edges,
    # 9 in the middle. Stride 2 with torchvision's symmetric padding gives the corners: 4 4 4 4.
    image = jnp.ones((1, 3, 3, 1))
    ones = {"params": {"kernel": jnp.ones((3, 3, 1, 1))}}
    np.testing.assert_allclose(
        conv3x3(1, 1, jnp.float32).apply(ones, image)[0, ..., 0], [[4, 6, 4], [6, 9, 6], [4, 6, 4]]
    )
    np.testing.assert_allclose(conv3x3(1, 2, jnp.float32).apply(ones, image)[0, ..., 0], [[4, 4], [4, 4]])
    # On a 4x4 image with stride 2, centred at rows 0 and 2: 4 6 / 6 9. "SAME" would pad below and give 9 6 / 6 4.
    np.testing.assert_allclose(
        conv3x3(1, 2, jnp.float32).apply(ones, jnp.ones((1, 4, 4, 1)))[0, ..., 0], [[4, 6], [6, 9]]
    )


@pytest.mark.parametrize(
    ("images", "stride", "groups", "dtype"),
    [(70, 1, 1, "float32"), (64, 2, 1, "float32"), (33, 1, 1, "bfloat16"), (70, 2, 2, "float32"), (7, 1, 4, "float32")],
)
def test_convolution_in_parts_equals_the_convolution_with_its_gradients(images, stride, groups, dtype, monkeypatch):
    monkeypatch.setattr(layers, "PART", 2000)  # bytes: 3 images of float32, 6 of bfloat16
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (images, 6, 6, 4), dtype)
    kernel = jax.random.normal(keys[1], (3, 3, 4 // groups, 8), dtype)
    options = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": groups}
    options["precision"] = "highest"  # otherwise a GPU rounds float32 to 10 bits
    out, pull = jax.vjp(
        lambda x, k: layers.conv_general_dilated(x, k, (stride, stride), [(1, 1)] * 2, **options), x, kernel
    )
    cotangent = jax.random.normal(keys[2], out.shape, dtype)
    got = pull(cotangent)

    # Reference: a float64 sum over the nine taps, with the kernels of the groups as diagonal blocks of a dense kernel.
    x64, kernel64, c64 = (np.asarray(a, np.float64) for a in (x, kernel, cotangent))
    blocks = [np.s_[:, :, i * 4 // groups : (i + 1) * 4 // groups] for i in range(groups)]
    blocks = [(*block, np.s_[i * 8 // groups : (i + 1) * 8 // groups]) for i, block in enumerate(blocks)]
    dense = np.zeros((3, 3, 4, 8))
    for block in blocks:
        dense[block] = kernel64[..., block[-1]]
    padded = np.pad(x64, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.zeros(out.shape)
    x_gradient, dense_gradient = np.zeros_like(padded), np.zeros_like(dense)
    rows = stride * (out.shape[1] - 1) + 1
    for i, j in np.ndindex(3, 3):
        taps = np.s_[:, i : i + rows : stride, j : j + rows : stride]
        expected += padded[taps] @ dense[i, j]
        dense_gradient[i, j] = np.einsum("bhwi,bhwo->io", padded[taps], c64)
        x_gradient[taps] += c64 @ dense[i, j].T
    kernel_gradient = np.concatenate([dense_gradient[block] for block in blocks], axis=-1)
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    for found, reference in zip((out, *got), (expected, x_gradient[:, 1:-1, 1:-1], kernel_gradient), strict=True):
        assert found.dtype == dtype
        atol = tolerance * np.abs(reference).max()
        np.testing.assert_allclose(np.asarray(found, np.float64), reference, atol=atol)


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
def test_a_method_has_exactly_the_heads_it_trains(name, parts):
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


def test_without_a_projector_the_losses_use_the_trunks_features():
    x = jax.random.normal(jax.random.key(0), (5, 8, 8, 1))

    def network(dim):
        model = small_config("grafit_no_projector", **{"model.embed_dim": dim}).model
        return methods.build_network(methods.get("grafit_no_projector"), model, num_classes=2)

    variables = network(64).init(jax.random.key(1), x, train=False)
    assert set(variables["params"]) == {"trunk", "predictor"}
    out = network(64).apply(variables, x, train=False)
    np.testing.assert_array_equal(out.projection, out.features)
    assert out.prediction.shape == (5, 64)
    with pytest.raises(
        UserError,
        match=r"model\.embed_dim = 16 with a trunk of 64 features; expected equal .* without a projector; use .* = 64",
    ):
        network(16).init(jax.random.key(1), x, train=False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_projector_may_end_in_a_batch_norm_without_scale_and_bias(dtype):
    model = small_config("grafit", **{"model.projector_norm": True, "model.dtype": dtype}).model
    network = methods.build_network(methods.get("grafit"), model, num_classes=2)
    x = jax.random.normal(jax.random.key(0), (64, 8, 8, 1))
    variables = network.init(jax.random.key(1), x, train=False)
    last = variables["params"]["projector"]["Dense_1"]
    assert set(last) == {"kernel"} and "BatchNorm_1" not in variables["params"]["projector"]
    assert set(variables["params"]["predictor"]["Dense_1"]) == {"kernel", "bias"}  # the projector only
    out, updated = network.apply(variables, x, train=True, mutable=["batch_stats"])
    z = np.asarray(out.projection, np.float64)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(z.std(0), 1, atol=2e-3)
    # In evaluation an embedding does not depend on its batch.
    alone, batched = (network.apply({**variables, **updated}, images, train=False).projection for images in (x[:1], x))
    np.testing.assert_allclose(alone[0], batched[0], atol=1e-4 if dtype == "float32" else 0.1)


def test_heads_may_be_initialised_as_in_pytorch():
    def start(init):
        options = {"model.head_init": init, "model.head_hidden_dim": 400, "model.head_batch_norm": False}
        return restore.initial_state(experiment.load(small_config("grafit_fc", **options)))

    theirs, flax = (jax.device_get(start(init).params) for init in ("pytorch", "lecun"))
    jax.tree.map(np.testing.assert_array_equal, theirs["trunk"], flax["trunk"])
    assert jax.tree.structure(theirs) == jax.tree.structure(flax)
    layers = [theirs[head][layer] for head in ("projector", "predictor") for layer in ("Dense_0", "Dense_1")]
    for layer in (*layers, theirs["classifier"]):
        bound = 1 / np.sqrt(layer["kernel"].shape[0])  # torch.nn.Linear: uniform weights and biases
        drawn = layer["kernel"].ravel()
        assert 0.9 * bound < np.abs(drawn).max() <= bound
        assert drawn.std() == pytest.approx(bound / np.sqrt(3), rel=5 / np.sqrt(drawn.size))
        assert 0.5 * bound < np.abs(layer["bias"]).max() <= bound
    # Layers have different draws.
    assert not np.array_equal(theirs["projector"]["Dense_1"]["bias"], theirs["predictor"]["Dense_1"]["bias"])


@pytest.mark.parametrize(("trunk", "stem"), [("resnet8", "patch2"), ("regnet_y_200mf", "cifar")])
def test_a_jitted_trunk_in_bfloat16_is_close_to_float32(trunk, stem):
    exact, low = (build_trunk(trunk, stem=stem, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    image = jax.random.normal(jax.random.PRNGKey(0), (8, 32, 32, 3))
    variables = exact.init(jax.random.PRNGKey(1), image, train=False)
    expected = exact.apply(variables, image, train=False)
    got = jax.jit(functools.partial(low.apply, train=False))(variables, image)
    np.testing.assert_allclose(got, expected, rtol=0.1, atol=0.02 * float(jnp.abs(expected).max()))


@pytest.mark.slow
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
