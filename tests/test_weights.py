"""Weights from torchvision and timm: equal logits, layout of tensors, errors."""

import dataclasses
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from grafit_jax import experiment, models, restore
from grafit_jax.errors import UserError
from grafit_jax.models import weights
from helpers import state_dicts
from helpers.runs import small_config

NAMES = ("resnet18", "resnet34", "resnet50", "regnet_y_400mf")
GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden" / "logits.json").read_text())


def logits(name, variables, images):
    return np.asarray(jax.jit(models.build(name, num_classes=10).apply)(variables, images))


def random_tensors(net, torch):
    """Changes every tensor from its initial value, keeping logits of order 1."""
    torch.manual_seed(0)
    for key, tensor in net.state_dict().items():
        if key.endswith(("running_mean", "bn1.bias", "bn2.bias", "bn3.bias", "1.bias")):
            tensor.normal_(0, 0.2)
        elif key.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif tensor.ndim == 1 and key.endswith("weight"):
            tensor.uniform_(0.5, 1.0)
    return net.eval()


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_torchvisions(name, tmp_path, torch, torchvision):
    net = random_tensors(getattr(torchvision.models, name)(num_classes=10), torch)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    numpy_dict = {key: value.numpy() for key, value in net.state_dict().items()}
    safetensors.numpy.save_file(numpy_dict, tmp_path / "net.safetensors")
    for file in ("net.pth", "net.safetensors"):
        assert_same_logits(name, weights.read(tmp_path / file), net, torch)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("resnet18", "resnet18"), ("resnet50", "resnet50"), ("tf_efficientnet_lite0", "tf_efficientnet_lite0"),
        ("regnet_y_400mf", "regnety_004"), ("regnet_y_200mf", "regnety_002"), ("regnet_y_800mf", "regnety_008_tv"),
    ],
)  # fmt: skip
def test_logits_equal_timms(name, theirs, torch, timm):
    net = random_tensors(timm.create_model(theirs, pretrained=False, num_classes=10), torch)
    assert_same_logits(name, {key: value.numpy() for key, value in net.state_dict().items()}, net, torch)


def test_features_equal_timms_without_a_classifier(torch, timm):
    name, images = "tf_efficientnet_lite0", state_dicts.images(size=75)  # odd, for uneven padding
    net = random_tensors(timm.create_model(name, pretrained=False, num_classes=0), torch)
    tensors = {key: value.numpy() for key, value in net.state_dict().items()}
    with torch.no_grad():
        expected = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    got = jax.jit(models.build(name, num_classes=0).apply)(weights.convert(name, tensors), images)
    assert got.shape == expected.shape == (2, 1280) and np.abs(expected).max() > 0.1
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())


def assert_same_logits(name, tensors, net, torch):
    images = state_dicts.images()
    with torch.no_grad():
        expected = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    assert 0.1 < np.abs(expected).max() < 10
    np.testing.assert_allclose(logits(name, weights.convert(name, tensors), images), expected, atol=1e-4)


@pytest.mark.parametrize("name", GOLDEN)
def test_logits_golden(name):
    variables = weights.convert(name, state_dicts.state_dict(name))
    np.testing.assert_allclose(logits(name, variables, state_dicts.images()), GOLDEN[name], atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d.pop("layer2.0.downsample.1.running_var"),
            r"found no tensor layer2\.0\.downsample\.1\.running_var of resnet18; expected the resnet18 of torchv",
        ),
        (
            lambda d: d.update({"layer9.weight": d["conv1.weight"]}),
            r"found tensor layer9\.weight, which resnet18 lacks",
        ),
        (
            lambda d: d.update({"layer1.0.conv1.weight": d["layer2.0.conv1.weight"]}),
            r"layer1\.0\.conv1\.weight of shape \[128, 64, 3, 3\], \[3, 3, 64, 128\] in .*; expected \[3, 3, 64, 64\]",
        ),
        (
            lambda d: d.update({"maxpool.w": d.pop("fc.weight")}),
            r"found no tensor fc\.weight of resnet18 \(but maxpool\.w, which resnet18 lacks",
        ),
    ],
)  # fmt: skip
def test_the_error_for_a_wrong_tensor_names_it(change, message):
    tensors = state_dicts.state_dict("resnet18")
    change(tensors)
    with pytest.raises(UserError, match=message) as error:
        weights.convert("resnet18", tensors)
    assert "\n" not in str(error.value)


def test_the_file_of_another_network_is_an_error(tmp_path):
    safetensors.numpy.save_file(state_dicts.state_dict("resnet34"), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"w\.safetensors: found tensor layer1\.2\.bn1\.bias, which resnet18 lacks"):
        weights.load_trunk(tmp_path / "w.safetensors", "resnet18", stem="imagenet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d.pop("trunk_output.block2.block2-0.proj.1.running_var"),
            r"found no tensor trunk_output\.block2\.block2-0\.proj\.1\.running_var of regnet_y_400mf",
        ),
        (
            lambda d: d.update({"trunk_output.block3.block3-5.f.b.0.weight": np.zeros((208, 16, 3, 3))}),
            r"block3-5\.f\.b\.0\.weight of shape \[208, 16, 3, 3\], .*; expected \[3, 3, 8, 208\]",
        ),
        (  # timm's name, but only of this tensor
            lambda d: d.update({"s4.b6.se.fc2.bias": d.pop("trunk_output.block4.block4-5.f.se.fc2.bias")}),
            r"no tensor .*block4-5\.f\.se\.fc2\.bias of regnet_y_400mf \(but s4\.b6\.se\.fc2\.bias, which regnet",
        ),
    ],
)  # fmt: skip
def test_the_error_for_a_wrong_tensor_of_a_regnet_names_it(change, message):
    tensors = state_dicts.state_dict("regnet_y_400mf")
    change(tensors)
    with pytest.raises(UserError, match=message):
        weights.convert("regnet_y_400mf", tensors)


def test_a_regnets_cifar_stem_has_a_random_convolution_and_the_files_batch_norm(tmp_path):
    tensors = state_dicts.state_dict("regnet_y_400mf")
    tensors["stem.0.weight"] = tensors["stem.0.weight"][:, :1]
    safetensors.numpy.save_file(tensors, tmp_path / "w.safetensors")
    trunk = weights.load_trunk(tmp_path / "w.safetensors", "regnet_y_400mf", stem="cifar")
    known = {"BatchNorm_0"} | {f"YBlock_{i}" for i in range(16)}
    assert set(trunk["params"]) == set(trunk["batch_stats"]) == known
    np.testing.assert_array_equal(trunk["params"]["BatchNorm_0"]["bias"], tensors["stem.1.bias"])
    expected = tensors["trunk_output.block3.block3-5.f.se.fc1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(trunk["params"]["YBlock_9"]["SqueezeExcitation_0"]["Conv_0"]["kernel"], expected)
    with pytest.raises(UserError, match=r"tensor stem\.0\.weight of shape \[32, 1, 3, 3\]"):
        weights.load_trunk(tmp_path / "w.safetensors", "regnet_y_400mf", stem="imagenet")


def test_half_precision_and_prefixed_names(tmp_path):
    tensors = state_dicts.state_dict("resnet18")
    half = {
        k: v.astype(ml_dtypes.bfloat16) if v.ndim > 1 else v.astype(np.float16) if v.ndim else v
        for k, v in tensors.items()
    }
    safetensors.numpy.save_file({f"module.{k}": v for k, v in half.items()}, tmp_path / "half.safetensors")
    variables = weights.convert("resnet18", weights.read(tmp_path / "half.safetensors"))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    kernel = variables["params"]["trunk"]["BasicBlock_2"]["Conv_2"]["kernel"]
    expected = half["layer2.0.downsample.0.weight"].astype(np.float32)[:, :, 0, 0].T
    np.testing.assert_array_equal(kernel[0, 0], expected)


def test_a_pth_with_a_wrapped_state_dict(tmp_path, torch):
    tensor = torch.arange(3.0).to(torch.bfloat16)
    torch.save({"state_dict": {"module.a": tensor, "n": torch.tensor(2)}, "epoch": 3}, tmp_path / "w.pth")
    got = weights.read(tmp_path / "w.pth")
    assert {k: v.tolist() for k, v in got.items()} == {"a": [0.0, 1.0, 2.0], "n": 2}
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"none\.pth: found no state dict; expected tensors by name"):
        weights.read(tmp_path / "none.pth")


@pytest.mark.parametrize("content", [b"", b"junk", b"<html>404</html>", b"PK\x03\x04 cut short", b"\x80\x02}q\x00("])
def test_an_invalid_pth_is_an_error_of_one_line(tmp_path, content, torch):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"w\.pth cannot be read \(.+\); expected a state dict of tensors, as") as error:
        weights.read(tmp_path / "w.pth")
    assert "\n" not in str(error.value)


def test_unreadable_files_are_errors(tmp_path, monkeypatch):
    (tmp_path / "w.safetensors").write_bytes(b"not safetensors at all")
    (tmp_path / "w.h5").write_bytes(b"")
    (tmp_path / "w.pth").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    for name, message in (
        ("w.safetensors", r"w\.safetensors cannot be read \(.*\); download it again"),
        ("none.pth", r"found no file .*none\.pth; expected a \.safetensors or \.pth file"),
        ("w.h5", r"w\.h5: found file type '\.h5'; expected a"),
        (
            "w.pth",
            r"w\.pth: found no PyTorch to read it; use `pip install torch`, or convert the file to \.safetensors",
        ),
    ):
        with pytest.raises(UserError, match=message) as error:
            weights.read(tmp_path / name)
        assert "\n" not in str(error.value)


def resnet18_config(path, **options):
    return small_config(
        "selfcon",
        **{
            "model.trunk": "resnet18",
            "model.stem": "cifar",
            "model.pretrained": str(path),
            "model.head_batch_norm": False,
            "queue.size": 64,
            "train.batch_size": 64,
        },
        **options,
    )


@pytest.mark.slow
def test_a_run_starts_from_the_file_with_a_random_stem_convolution(tmp_path):
    tensors = state_dicts.state_dict("resnet18")
    safetensors.numpy.save_file(tensors, tmp_path / "w.safetensors")
    run = experiment.load(resnet18_config(tmp_path / "w.safetensors"))
    run = dataclasses.replace(run, embed_fn=lambda variables, images: {"projector": np.ones((64, 16))})
    state = jax.device_get(restore.initial_state(run))
    scratch = jax.device_get(restore.initial_state(run, placeholder=True))
    trunk, fresh = state.params["trunk"], scratch.params["trunk"]
    # The first convolution, for which torchvision's is too large, and the head start from scratch; everything else is
    # from the file, including the stem's batch norm (as in MaskCon's code).
    assert trunk["Conv_0"]["kernel"].shape == (3, 3, 1, 64)
    jax.tree.map(np.testing.assert_array_equal, trunk["Conv_0"], fresh["Conv_0"])
    np.testing.assert_array_equal(trunk["BatchNorm_0"]["scale"], tensors["bn1.weight"])
    np.testing.assert_array_equal(state.batch_stats["trunk"]["BatchNorm_0"]["var"], tensors["bn1.running_var"])
    jax.tree.map(np.testing.assert_array_equal, state.params["projector"], scratch.params["projector"])
    last = tensors["layer4.1.conv2.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(trunk["BasicBlock_7"]["Conv_1"]["kernel"], last)
    stats = state.batch_stats["trunk"]["BasicBlock_0"]["BatchNorm_1"]
    np.testing.assert_array_equal(stats["var"], tensors["layer1.0.bn2.running_var"])
    np.testing.assert_array_equal(stats["mean"], tensors["layer1.0.bn2.running_mean"])
    # The momentum encoder starts as a copy.
    jax.tree.map(np.testing.assert_array_equal, state.target_params["trunk"], trunk)
    assert jax.tree.structure(state) == jax.tree.structure(scratch)


def test_the_imagenet_stem_is_loaded_from_the_file(tmp_path):
    tensors = state_dicts.state_dict("resnet18")
    safetensors.numpy.save_file(tensors, tmp_path / "w.safetensors")
    trunk = weights.load_trunk(tmp_path / "w.safetensors", "resnet18", stem="imagenet")
    kernel = trunk["params"]["Conv_0"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["conv1.weight"].transpose(2, 3, 1, 0))
    # The variables are exactly those of the module.
    fresh = jax.eval_shape(
        lambda: models.build_trunk("resnet18").init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    )
    assert jax.tree.structure(fresh) == jax.tree.structure(trunk)
