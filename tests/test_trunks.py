"""Trunks against torchvision and timm: parameters, multiply-adds, gradients, initialisation; remat."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grafit_jax import models
from grafit_jax.models import regnet, resnet, trunks, vit, weights
from grafit_jax.models.layers import batch_norm, stage_of
from helpers import state_dicts, twins
from helpers.runs import assert_close

# Parameters with a 1000-way classifier, 10^9 multiply-adds at 224 px, features. The first two are torchvision's; for
# the 200MF, those of torchvision's RegNet with the paper's parameters, and the paper's. Of the others, timm's
# parameters, and multiply-adds counted by hooks on timm's layers (Lite0) or summed by hand: for N tokens of D channels
# and P patches of p pixels 12 (12 N D² + 2 N² D) + 3 P p² D + 1000 D, plus (16 x 37 + 16²) x 37 D for the positions
# of a 37 x 37 grid at 16 x 16 patches.
PUBLISHED = {
    "resnet18": (11_689_512, 1.814, 512),
    "resnet34": (21_797_672, 3.664, 512),
    "resnet50": (25_557_032, 4.089, 2048),
    "regnet_y_200mf": (3_162_996, 0.2, 368),
    "regnet_y_400mf": (4_344_144, 0.402, 440),
    "regnet_y_800mf": (6_432_512, 0.834, 784),
    "regnet_y_1_6gf": (11_202_430, 1.612, 888),
    "regnet_y_3_2gf": (19_436_338, 3.176, 1512),
    "regnet_y_8gf": (39_381_472, 8.473, 2016),
    "regnet_y_16gf": (83_590_140, 15.912, 3024),
    "tf_efficientnet_lite0": (4_652_008, 0.385, 1280),
    "vit_small_patch16_224": (22_050_664, 4.599, 384),
    "vit_base_patch16_224": (86_567_656, 17.564, 768),
    "vit_small_patch14_dinov2": (22_441_192, 6.136, 384),
    "vit_base_patch14_dinov2": (87_348_712, 23.186, 768),
    "vit_small_patch14_reg4_dinov2": (22_442_344, 6.240, 384),
    "vit_base_patch14_reg4_dinov2": (87_351_016, 23.564, 768),
}
OTHERS = [name for name in PUBLISHED if name.startswith(("vit", "tf"))]

# The hardware's random number generator, which compiles faster than the default one.
KEY = jax.random.key(0, impl="rbg")


def multiply_adds(jaxpr):
    """Counts the multiply-adds of convolutions and matrix products, including those on padding."""
    total = 0
    for equation in twins.equations(jaxpr):
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            total += equation.outvars[0].aval.size * kernel.size // kernel.shape[-1]  # HWIO
            assert equation.params["dimension_numbers"].rhs_spec[0] == 3
        elif equation.primitive.name == "dot_general":
            (axes, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval
            total += equation.outvars[0].aval.size * int(np.prod([left.shape[axis] for axis in axes]))
    return total


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_multiply_adds_equal_the_published_ones(name, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # a depthwise convolution as one, not as products
    network = models.build(name)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    parameters, billions, features = PUBLISHED[name]
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == parameters
    assert variables["params"]["classifier"]["kernel"].shape == (features, 1000)
    jaxpr = jax.make_jaxpr(network.apply)(variables, images).jaxpr
    assert multiply_adds(jaxpr) / 1e9 == pytest.approx(billions, abs=6e-4)
    row = f"| {name} | {parameters:,} | {multiply_adds(jaxpr) / 1e9:.2f} G | {features} |"
    assert row in regnet.__doc__ + vit.__doc__ or not name.startswith(("regnet", "vit")), row


def test_features_are_float32_vectors():
    for name in ("resnet50", "regnet_y_8gf"):
        trunk = models.build_trunk(name, dtype=jnp.bfloat16)
        images = jnp.zeros((2, 64, 64, 3))
        out, _ = jax.eval_shape(lambda t=trunk, i=images: t.init_with_output(jax.random.key(0), i, train=False))
        assert out.shape == (2, PUBLISHED[name][2]) and out.dtype == jnp.float32


def test_published_numbers_equal_torchvisions(torch, torchvision):
    tv = torchvision.models
    for name in set(trunks.PRETRAINED) - {*OTHERS, "regnet_y_200mf"}:
        meta = tv.get_model_weights(name)["IMAGENET1K_V1"].meta
        assert (meta["num_params"], meta["_ops"]) == PUBLISHED[name][:2]
    layout = tv.regnet.BlockParams.from_init_params(13, 24, 36.44, 2.49, 8, se_ratio=0.25)
    with torch.device("meta"):
        net = tv.regnet.RegNet(layout)
    assert sum(p.numel() for p in net.parameters()) == PUBLISHED["regnet_y_200mf"][0]


def test_published_numbers_equal_timms(torch, timm):
    for name in OTHERS:
        with torch.device("meta"):
            net = timm.create_model(name, num_classes=1000)
        assert (sum(p.numel() for p in net.parameters()), net.num_features) == PUBLISHED[name][::2], name
    for theirs, ours in regnet.TIMM.items():
        with torch.device("meta"):
            net = timm.create_model(theirs, num_classes=1000)
        assert (sum(p.numel() for p in net.parameters()), net.num_features) == PUBLISHED[ours][::2], theirs


def test_stages_golden():
    # u = 192 268.82 ... 1421.12; s = 0 0 1 1 1 1 2 ... 2 3; widths 192 424 920 2016 before groups of 56.
    # 424 / 56 = 7.57 -> 8, 920 / 56 = 16.4 -> 16, 2016 = 36 x 56; 192 / 56 = 3.43 -> 168 < 0.9 x 192, so 224.
    assert models.build_trunk("regnet_y_8gf").stages() == ([2, 4, 10, 1], [224, 448, 896, 2016])
    # Halves round up: 136 / 16 = 8.5 -> 9, 776 / 16 = 48.5 -> 49, 56 / 16 = 3.5 -> 4.
    assert models.build_trunk("regnet_y_800mf").stages() == ([1, 3, 8, 2], [64, 144, 320, 784])
    assert [stage_of(block, [2, 4, 10, 1]) for block in (0, 1, 2, 5, 6, 16)] == [
        (1, 0), (1, 1), (2, 0), (2, 3), (3, 0), (4, 0),
    ]  # fmt: skip


def test_squeeze_and_excitation_golden():
    # Means of the first image: 2 and -1 -> 2 x 1 - 1 x 0.5 + 0.5 = 2 -> relu 2 -> 2 x 0.5 + 0 = 1 and 2 x -1 + 1 = -1.
    # Means of the second: -2 and 1 -> -1 -> relu 0 -> 0 and 1. The sigmoid of 1 is 0.7310586.
    first = jnp.array([[[1.0, -2.0], [3.0, 0.0]]])
    params = {
        "Conv_0": {"kernel": jnp.array([1.0, 0.5]).reshape(1, 1, 2, 1), "bias": jnp.array([0.5])},
        "Conv_1": {"kernel": jnp.array([0.5, -1.0]).reshape(1, 1, 1, 2), "bias": jnp.array([0.0, 1.0])},
    }
    out = regnet.SqueezeExcitation(1, jnp.float32).apply({"params": params}, jnp.stack([first, -first]))
    s = 0.7310586
    np.testing.assert_allclose(out[0], first * np.array([s, 1 - s]), rtol=1e-6)
    np.testing.assert_allclose(out[1], -first * np.array([0.5, s]), rtol=1e-6)


def test_initialisation_equals_torchvisions():
    block = regnet.YBlock(64, 1, 16, functools.partial(batch_norm, use_running_average=False), jnp.float32)
    params = jax.jit(block.init)(KEY, jnp.zeros((1, 4, 4, 256)), None)["params"]
    for name, fan_out in (("Conv_0", 64), ("Conv_1", 9 * 64), ("Conv_2", 64), ("Conv_3", 64)):
        # The fan-out of all groups together.
        assert np.std(params[name]["kernel"]) == pytest.approx(np.sqrt(2 / fan_out), rel=0.05)
        norm = params[name.replace("Conv", "BatchNorm")]
        np.testing.assert_array_equal(norm["scale"], 1)  # the last one too
        np.testing.assert_array_equal(norm["bias"], 0)
    squeeze, excite = (params["SqueezeExcitation_0"][name] for name in ("Conv_0", "Conv_1"))
    assert squeeze["kernel"].shape == (1, 1, 64, 64)  # a quarter of the 256 input channels
    for layer in (squeeze, excite):
        assert np.std(layer["kernel"]) == pytest.approx(np.sqrt(2 / 64), rel=0.05)
        # PyTorch's uniform distribution, bounded by 1 / sqrt(64).
        assert 0.1 < np.max(np.abs(layer["bias"])) <= 0.125
        assert np.std(layer["bias"]) == pytest.approx(0.125 / np.sqrt(3), rel=0.2)


def tiny_regnet(**options):
    """Returns a RegNet with stages of 1, 2 and 1 blocks, widths 8, 16 and 32, and groups of 8."""
    trunk = regnet.RegNet(4, 8, 6.0, 2.0, 8, **options)
    assert trunk.stages() == ([1, 2, 1], [8, 16, 32])
    return trunk


def test_initialisation_of_the_classifier_equals_torchvisions():
    network = models.Classifier(tiny_regnet(), 1000)
    head = jax.jit(network.init)(KEY, jnp.zeros((1, 32, 32, 3)))["params"]["classifier"]
    assert np.std(head["kernel"]) == pytest.approx(0.01, rel=0.05)
    np.testing.assert_array_equal(head["bias"], 0)


def cross_entropy(network, labels, images):
    def loss(params, batch_stats):
        out, updated = network.apply(
            {"params": params, "batch_stats": batch_stats}, images, train=True, mutable=["batch_stats"]
        )
        return optax.softmax_cross_entropy_with_integer_labels(out, labels).mean(), updated["batch_stats"]

    return loss


@pytest.mark.parametrize("name", ["regnet_y_400mf", "tf_efficientnet_lite0"])
def test_gradients_and_statistics_equal_torchvisions_and_timms(name, torch, torchvision, timm):
    # In float64: rounding in float32 moves a few activations across a ReLU's kink, which changes torchvision's own
    # gradients by a tenth.
    labels = [3, 8, 1, 3]
    images = np.random.default_rng(1).normal(size=(4, 64, 64, 3))
    tensors = state_dicts.state_dict(name)
    make = timm.create_model if name in OTHERS else torchvision.models.get_model
    net = make(name, num_classes=10).train()
    net.load_state_dict({key: torch.from_numpy(value) for key, value in tensors.items()})
    logits = net.double()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    torch_loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels))
    torch_loss.backward()
    # Gradients in place of their parameters, and the running averages after the pass.
    expected = {key: value.numpy() for key, value in net.state_dict().items()}
    expected |= {key: value.grad.numpy() for key, value in net.named_parameters()}
    expected = weights.convert(name, expected)

    with jax.enable_x64(True):
        variables = jax.tree.map(lambda leaf: leaf.astype(np.float64), weights.convert(name, tensors))
        network = models.build(name, num_classes=10, dtype=jnp.float64)
        gradient = jax.jit(jax.value_and_grad(cross_entropy(network, jnp.array(labels), images), has_aux=True))
        (loss, stats), grads = jax.device_get(gradient(variables["params"], variables["batch_stats"]))
    assert float(loss) == pytest.approx(torch_loss.item(), abs=1e-5)

    def assert_near(got, wanted):
        # Lite0's biases before a linear layer with a batch norm have no gradient, only rounding errors.
        np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max() + 1e-12)

    jax.tree.map(assert_near, grads, expected["params"])
    # Variances differ by design: PyTorch divides running variances by n - 1.
    for got, mean in zip(means(stats), means(expected["batch_stats"]), strict=True):
        np.testing.assert_allclose(got, mean, atol=1e-5)


def means(stats):
    return [leaf for path, leaf in jax.tree.leaves_with_path(stats) if path[-1].key == "mean"]


@pytest.mark.parametrize(
    ("trunk", "saved"),
    [
        (functools.partial(resnet.ResNet, (6,), False, 8), 0.5),
        (functools.partial(regnet.RegNet, 6, 8, 0.1, 2.0, 4), 0.15),
    ],
    ids=["resnet", "regnet"],
)
@pytest.mark.slow
def test_remat_saves_memory_without_changing_results(trunk, saved):
    images = jax.random.normal(jax.random.key(1), (32, 16, 16, 3))
    results, memory, variables = [], [], []
    for remat in (False, True):
        network = models.Classifier(trunk(stem="cifar", remat=remat), 10)
        variables.append(jax.jit(network.init)(KEY, images[:2]))
        start = variables[0]["params"], variables[0]["batch_stats"]
        loss = jax.value_and_grad(cross_entropy(network, jnp.arange(32) % 10, images), has_aux=True)
        # On CPU this pass lets XLA merge recomputed with original values, unlike on accelerators.
        compiled = jax.jit(loss).lower(*start).compile({"xla_disable_hlo_passes": "cse_barrier_expander"})
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
        results.append(compiled(*start))
    jax.tree.map(np.testing.assert_array_equal, *variables)
    assert_close(*results, atol=1e-6)
    assert memory[1] < (1 - saved) * memory[0], memory
