"""Vision transformers: against a NumPy reference in float64 and timm; positions of other sizes, initialisation."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grafit_jax
from grafit_jax import experiment, initial_weights, models, restore
from grafit_jax.errors import UserError
from grafit_jax.models import trunks, vit, weights
from helpers import state_dicts
from helpers.runs import small_config

NAMES = [name for name in trunks.TRUNKS if name.startswith("vit")]
# The small transformers of state_dicts.VITS, with positions for 16 px.
SMALL = {
    "vit": functools.partial(vit.VisionTransformer, 4, 16, 2, 2, 16),
    "vit_dinov2": functools.partial(vit.VisionTransformer, 4, 16, 2, 2, 16, layer_scale=True),
    "vit_reg4_dinov2": functools.partial(vit.VisionTransformer, 4, 16, 2, 2, 16, layer_scale=True, registers=4),
}


@pytest.fixture
def small(monkeypatch):
    for name, trunk in SMALL.items():
        monkeypatch.setitem(trunks.TRUNKS, name, trunk)


def images(height, width, count=2):
    return np.random.default_rng(0).normal(size=(count, height, width, 3)).astype(np.float32)


def cubic(old, new):
    """Returns the weights [new, old] of bicubic interpolation, a = -1/2, stretched over the old pixels of a new one."""
    stretch = max(old / new, 1)
    found = np.zeros((new, old))
    for i in range(new):
        for j in range(old):
            x = abs((i + 0.5) * old / new - 0.5 - j) / stretch
            found[i, j] = (1.5 * x - 2.5) * x * x + 1 if x < 1 else ((2.5 - 0.5 * x) * x - 4) * x + 2 if x < 2 else 0
    return found / found.sum(1, keepdims=True)


def reference(tensors, x, *, heads=2):
    """A transformer under timm's tensor names, in float64."""
    t = {key: np.asarray(value, np.float64) for key, value in tensors.items()}
    kernel = t["patch_embed.proj.weight"]
    width, _, patch, _ = kernel.shape
    grid = (x.shape[1] // patch, x.shape[2] // patch)

    def norm(x, key):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * t[f"{key}.weight"] + t[f"{key}.bias"]

    def linear(x, key):
        return x @ t[f"{key}.weight"].T + t[f"{key}.bias"]

    def attention(x, key):
        q, k, v = np.split(linear(x, f"{key}.qkv"), 3, axis=-1)
        out = np.zeros_like(x)
        for part in np.split(np.arange(width), heads):
            for b in range(len(x)):
                scores = np.exp(q[b][:, part] @ k[b][:, part].T / math.sqrt(width / heads))
                out[b][:, part] = scores / scores.sum(1, keepdims=True) @ v[b][:, part]
        return linear(out, f"{key}.proj")

    def mlp(x, key):
        y = linear(x, f"{key}.fc1")
        return linear(y * (1 + np.vectorize(math.erf)(y / math.sqrt(2))) / 2, f"{key}.fc2")

    positions = t["pos_embed"][0]
    side = math.isqrt(len(positions))
    own, square = positions[: len(positions) - side**2], positions[len(positions) - side**2 :].reshape(side, side, -1)
    square = np.einsum("ih,jw,hwd->ijd", cubic(side, grid[0]), cubic(side, grid[1]), square)
    tokens = []
    for image in x:
        rows = [t["cls_token"][0, 0] + (own[0] if len(own) else 0), *t.get("reg_token", np.zeros((1, 0, width)))[0]]
        for i, j in np.ndindex(*grid):
            pixels = image[i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
            rows.append(np.einsum("ochw,hwc->o", kernel, pixels) + t["patch_embed.proj.bias"] + square[i, j])
        tokens.append(rows)
    y = np.array(tokens)
    for block in sorted({key.split(".")[1] for key in t if key.startswith("blocks.")}):
        for branch, layer, number in ((attention, "attn", 1), (mlp, "mlp", 2)):
            prefix = f"blocks.{block}"
            out = branch(norm(y, f"{prefix}.norm{number}"), f"{prefix}.{layer}")
            y = y + out * t.get(f"{prefix}.ls{number}.gamma", 1.0)
    return norm(y, "norm")[:, 0]


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 8), (24, 20)])
@pytest.mark.parametrize("name", SMALL)
def test_features_equal_the_reference(name, height, width, small):
    tensors, x = state_dicts.vit_dict(name, side=4), images(height, width)
    expected = reference(tensors, x)
    headless = {key: value for key, value in tensors.items() if not key.startswith("head.")}
    variables = weights.convert(name, headless)
    features = jax.jit(models.build(name, num_classes=0).apply)(variables, x)
    assert set(variables) == {"params"} and features.dtype == jnp.float32
    np.testing.assert_allclose(features, expected, atol=1e-4 * np.abs(expected).max())


def test_logits_equal_the_reference(small):
    tensors, x = state_dicts.vit_dict("vit_reg4_dinov2", side=4), images(16, 16)
    logits = jax.jit(models.build("vit_reg4_dinov2", num_classes=10).apply)(
        weights.convert("vit_reg4_dinov2", tensors), x
    )
    expected = reference(tensors, x) @ tensors["head.weight"].T + tensors["head.bias"]
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


def test_bfloat16_is_close_to_float32(small):
    name = "vit_dinov2"
    tensors, x = state_dicts.vit_dict(name, side=4, num_classes=0), images(16, 16, count=8)
    low = jax.jit(models.build(name, num_classes=0, dtype=jnp.bfloat16).apply)(weights.convert(name, tensors), x)
    expected = reference(tensors, x)
    assert low.dtype == jnp.float32
    difference = np.abs(low - expected).max() / np.abs(expected).max()
    assert 1e-4 < difference < 0.05


def test_softmax_and_layer_norms_are_float32_in_bfloat16():
    trunk = SMALL["vit_dinov2"](dtype=jnp.bfloat16)
    variables = jax.eval_shape(lambda: trunk.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=False))
    text = str(jax.make_jaxpr(functools.partial(trunk.apply, train=False))(variables, jnp.zeros((2, 16, 16, 3))))
    for kind in (" exp ", " rsqrt "):
        lines = [line for line in text.splitlines() if kind in line]
        assert lines and all("f32" in line.partition("=")[0] for line in lines), (kind, lines)


def test_positions_of_their_own_grid_are_not_interpolated():
    positions = jax.random.normal(jax.random.key(0), (1, 17, 3))
    assert vit.resize_positions(positions, (4, 4)) is positions
    smaller = vit.resize_positions(positions, (2, 6))
    assert smaller.shape == (1, 13, 3)
    np.testing.assert_array_equal(smaller[:, 0], positions[:, 0])  # the class token's


@pytest.mark.parametrize("name", ["vit", "vit_reg4_dinov2"])
def test_positions_of_a_file_with_another_grid_are_interpolated(name, small):
    tensors = state_dicts.vit_dict(name, side=7)
    found = weights.convert(name, tensors)["params"]["trunk"]["pos_embed"]
    own = name == "vit"
    square = tensors["pos_embed"][0, own:].astype(np.float64).reshape(7, 7, 16)
    expected = np.einsum("ih,jw,hwd->ijd", cubic(7, 4), cubic(7, 4), square).reshape(16, 16)
    np.testing.assert_allclose(found[0, own:], expected, atol=1e-5)
    np.testing.assert_array_equal(found[0, :own], tensors["pos_embed"][0, :own])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("cls_token"), r"found no tensor cls_token of vit_reg4_dinov2; expected the vit_reg4_"),
        (lambda d: d.pop("blocks.1.ls2.gamma"), r"found no tensor blocks\.1\.ls2\.gamma of vit_reg4_dinov2"),
        (
            lambda d: d.update({"reg_token": d["reg_token"][:, :3]}),
            r"reg_token of shape \[1, 3, 16\], .*; expected \[1, 4, 16\]",
        ),
        (
            lambda d: d.update({"pos_embed": d["pos_embed"][:, :-1]}),
            r"pos_embed of shape \[1, 15, 16\], .*; expected \[1, 16, 16\]",
        ),
        (lambda d: d.update(pos_embed=np.zeros((4, 4))), r"pos_embed of shape \[4, 4\], .*; expected \[1, 16, 16\]"),
        (
            lambda d: d.update({"blocks.0.attn.qkv.weight": d["blocks.0.attn.qkv.weight"].T}),
            r"attn\.qkv\.weight of shape \[16, 48\], \[48, 16\] in Flax; expected \[16, 48\]",
        ),
        (lambda d: d.update(mask_token=d["cls_token"]), r"found tensor mask_token, which vit_reg4_dinov2 lacks"),
    ],
)  # fmt: skip
def test_the_error_for_a_wrong_tensor_names_it(change, message, small):
    tensors = state_dicts.vit_dict("vit_reg4_dinov2", side=4)
    change(tensors)
    with pytest.raises(UserError, match=message):
        weights.convert("vit_reg4_dinov2", tensors)


def test_sizes_stems_and_names_that_do_not_fit_are_errors():
    with pytest.raises(UserError, match=r"images of 16 x 18 pixels; expected multiples of the patch, 4\."):
        jax.eval_shape(lambda: SMALL["vit"]().init(jax.random.key(0), jnp.zeros((1, 16, 18, 3)), train=False))
    with pytest.raises(UserError, match=r"stem of vit_small_patch16_224 'cifar'.*; expected one of imagenet\."):
        models.build("vit_small_patch16_224", stem="cifar")
    with pytest.raises(UserError, match="unknown trunk 'vit_smal'"):
        models.build("vit_smal")


def test_initialisation_equals_timms():
    # timm: linear layers, positions and tokens normal, the patches' convolution uniform as PyTorch's.
    trunk = vit.VisionTransformer(16, 384, 6, depth=1, layer_scale=True, registers=4)
    start = jax.jit(functools.partial(trunk.init, train=False))
    params = start(jax.random.key(0, impl="rbg"), jnp.zeros((1, 32, 32, 1)))["params"]
    block = params["TransformerBlock_0"]
    for layer in (block["attn"]["qkv"], block["attn"]["proj"], block["mlp"]["fc1"], block["mlp"]["fc2"]):
        assert np.std(layer["kernel"]) == pytest.approx(0.02, rel=0.02)
        assert np.abs(layer["kernel"]).max() > 0.06  # beyond 3 standard deviations
        np.testing.assert_array_equal(layer["bias"], 0)
    assert params["pos_embed"].shape == (1, 196, 384) and np.std(params["pos_embed"]) == pytest.approx(0.02, rel=0.02)
    for token in ("cls_token", "reg_token"):
        assert np.std(params[token]) == pytest.approx(1e-6, rel=0.2)
    for leaf in params["patch_embed"].values():  # bounded by 1 / sqrt(16 x 16 x 1)
        assert 0.98 / 16 < np.abs(leaf).max() <= 1 / 16 and np.std(leaf) == pytest.approx(1 / 16 / 3**0.5, rel=0.1)
    for norm in (block["norm1"], block["norm2"], params["last_norm"]):
        np.testing.assert_array_equal(norm["scale"], 1)
        np.testing.assert_array_equal(norm["bias"], 0)
    for name in ("ls1", "ls2"):
        np.testing.assert_allclose(block[name]["gamma"], 1e-5)


def test_only_linear_layers_and_patches_have_kernels():
    # Weight decay covers leaves of this name: not positions, tokens, layer scales, norms and biases.
    trunk = models.build_trunk("vit_small_patch14_reg4_dinov2")
    params = jax.eval_shape(lambda: trunk.init(jax.random.key(0), jnp.zeros((1, 28, 28, 3)), train=False))["params"]
    paths = [path for path, _ in jax.tree.leaves_with_path(params)]
    kernels = {path[-2].key for path in paths if path[-1].key == "kernel"}
    assert kernels == {"patch_embed", "qkv", "proj", "fc1", "fc2"}


@pytest.mark.parametrize("name", NAMES)
def test_features_equal_timms(name, torch, timm):
    net = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True).eval()
    if "base" in name:  # it differs from "small" in width and heads; test_trunks.py has its numbers of parameters
        assert models.build_trunk(name).heads == net.blocks[0].attn.num_heads
        return
    torch.manual_seed(0)
    with torch.no_grad():
        for key, tensor in net.state_dict().items():  # away from zeros and ones
            if tensor.ndim == 1 or key in ("cls_token", "reg_token", "pos_embed"):
                tensor += 0.2 * torch.randn_like(tensor)
    variables = weights.convert(name, {key: value.numpy() for key, value in net.state_dict().items()})
    apply = jax.jit(models.build(name, num_classes=0).apply)
    patch = net.patch_embed.patch_size[0]
    for height, width in ((224, 224), (7 * patch, 7 * patch), (8 * patch, 18 * patch)):
        x = images(height, width)
        with torch.no_grad():
            expected = net(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(apply(variables, x), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("method", ["baseline", "grafit"])
def test_a_run_without_batch_norms_is_trained_saved_and_continued(method, small, trains, tmp_path):
    # The baseline has no batch statistics at all; Grafit's heads have some.
    options = {"model.trunk": "vit", "model.stem": "imagenet", "train.epochs": 1}
    trains(small_config(method, **options), tmp_path / "run")
    model = grafit_jax.load(tmp_path / "run")
    model.save(tmp_path / "model")
    x = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    expected = model.embed(x)
    np.testing.assert_array_equal(grafit_jax.load(tmp_path / "model").embed(x), expected)
    for key, place in (("model.pretrained", "run"), ("model.init", "run"), ("model.init", "model")):
        run = experiment.load(small_config("baseline", **options, **{key: str(tmp_path / place)}))
        trunk = initial_weights.given(run).variables["params"]["trunk"]
        assert set(trunk) == {
            "cls_token", "pos_embed", "patch_embed", "TransformerBlock_0", "TransformerBlock_1", "last_norm",
        }  # fmt: skip
        restore.fresh_state(run, initial_weights.given(run).variables)
