"""Weights by name: models of timm on the hub, local files and runs."""

import pathlib
import sys

import numpy as np
import pytest
import safetensors.numpy

from grafit_jax import experiment, initial_weights, presets, pretrained
from grafit_jax.errors import UserError
from grafit_jax.runs import workdir
from helpers import hub as hubs
from helpers import image_files, state_dicts
from helpers.command_lines import ROOT
from helpers.hub import own, resolved

URL = "/{repo_id}/resolve/{revision}/{filename}"
NAME = "hf:timm/resnet18.a1_in1k"
LITE = ROOT.parent / "shared" / "weights" / "tf_efficientnet_lite0.safetensors"


@pytest.fixture
def served(hub_cache, monkeypatch):
    """A hub on loopback with a ResNet-18, a pickle and a gated model; yields its files and the requests."""
    constants = pytest.importorskip("huggingface_hub.constants")
    files = {
        "timm/resnet18.a1_in1k": hubs.model(),
        "timm/pickled": {"config.json": hubs.timm_config("resnet18"), "pytorch_model.bin": b"a pickle"},
        "timm/without": {"config.json": hubs.timm_config("resnet18")},
    }
    with hubs.serve(files, gated=["timm/gated"]) as (address, requests):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + URL)
        yield files, requests


def test_local_weights_say_what_they_are(tmp_path):
    files = hubs.model()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "w.safetensors").write_bytes(files["model.safetensors"])
    (tmp_path / "a" / "config.json").write_bytes(files["config.json"])
    found = resolved(own(f"dir=photos,pretrained={tmp_path}/a/w.safetensors"))
    assert found["model.pretrained"] == f"{tmp_path}/a/w.safetensors"
    assert (found["model.trunk"], found["views.mean"]) == ("resnet18", (0.1, 0.2, 0.3))
    # The config.json of something else, and no config.json: the name of the file.
    (tmp_path / "a" / "config.json").write_text('{"name": "mine"}')
    (tmp_path / "a" / "resnet34.a1_in1k.pth").touch()
    (tmp_path / "tf_efficientnet_lite0.safetensors").touch()
    found = resolved(own(f"dir=photos,pretrained={tmp_path}/a/resnet34.a1_in1k.pth"))
    assert (found["model.trunk"], found["model.stem"], found["views.mean"]) == (
        "resnet34", "imagenet", (0.485, 0.456, 0.406)
    )  # fmt: skip
    found = resolved(own(f"dir=photos,pretrained={tmp_path}/tf_efficientnet_lite0.safetensors"))
    assert (found["model.trunk"], found["views.mean"], found["views.std"]) == (
        "tf_efficientnet_lite0", hubs.HALVES, hubs.HALVES
    )  # fmt: skip
    with pytest.raises(UserError, match=r"found no value of model\.stem, model\.trunk, views\.mean, views\.std; expe"):
        resolved(own(f"dir=photos,pretrained={tmp_path}/a/w.safetensors"))
    # A folder as the hub stores it.
    (tmp_path / "hub").mkdir()
    for file, content in files.items():
        (tmp_path / "hub" / file).write_bytes(content)
    found = resolved(own(f"dir=photos,pretrained={tmp_path}/hub"))
    assert (found["model.trunk"], found["views.mean"]) == ("resnet18", (0.1, 0.2, 0.3))
    assert pretrained.locate(found["model.pretrained"]) == tmp_path / "hub" / "model.safetensors"
    # A run has its own config.
    workdir.claim(tmp_path / "run", own("dir=photos,preset=scratch"))
    found = resolved(own(f"dir=photos,pretrained={tmp_path}/run"))
    assert (found["model.trunk"], found["model.stem"], found["views.size"]) == ("resnet8", "patch2", 128)


def test_a_download_is_pinned_to_its_commit_and_then_needs_no_hub(served):
    files, requests = served
    found = pretrained.describe(NAME)
    assert found.name == f"{NAME}@{hubs.COMMIT}" and not any("safetensors" in request for request in requests)
    path = pretrained.locate(found.name)
    assert path.read_bytes() == files["timm/resnet18.a1_in1k"]["model.safetensors"]
    assert pretrained.describe(f"{NAME}@main") == pretrained.describe(found.name) == found
    before = len(requests)
    assert pretrained.locate(found.name) == path and len(requests) == before


def test_a_pickle_is_taken_if_there_is_nothing_else(served):
    assert pretrained.locate("hf:timm/pickled").name == "pytorch_model.bin"
    with pytest.raises(UserError, match=r"hf:timm/without: found no model\.safetensors or pytorch_model\.bin; use an"):
        pretrained.locate("hf:timm/without")


def test_a_pickle_of_the_hub_is_read_as_tensors_only(torch, tmp_path):
    from grafit_jax.models import weights

    tensors = state_dicts.state_dict("resnet18")
    torch.save({key: torch.tensor(value) for key, value in tensors.items()}, tmp_path / "pytorch_model.bin")
    found = weights.read(tmp_path / "pytorch_model.bin")
    assert found.keys() == tensors.keys()
    np.testing.assert_array_equal(found["conv1.weight"], tensors["conv1.weight"])
    torch.save({"w": pathlib.PurePosixPath("x")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin cannot be read"):
        weights.read(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "hf:timm/resnet18.a1_in1",
            r"\(found no such repository\); .*\(did you mean 'hf:timm/resnet18\.a1_in1k'\?\)\.$",
        ),
        (f"{NAME}@v9", r"a1_in1k@v9: cannot be downloaded \(found no revision v9\); check the name"),
        (
            "hf:timm/gated",
            r"gated: found a gated repository; accept its terms at https://huggingface\.co/timm/gated, th",
        ),
        ("hf:no name", r"hf:no name: cannot be downloaded \(.+\); check the name"),
    ],
)
def test_what_the_hub_refuses_is_a_one_line_error(served, name, message):
    with pytest.raises(UserError, match=message):
        pretrained.describe(name)


def test_without_network_or_huggingface_hub_the_error_is_one_line(hub_cache, monkeypatch, caplog):
    with pytest.raises(
        UserError, match=rf"{NAME}: cannot be downloaded \(.*offline.*\); check the name and the network"
    ):
        pretrained.describe(NAME)
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9" + URL)
    http = pytest.importorskip("huggingface_hub.utils._http")
    monkeypatch.setattr(http.time, "sleep", lambda seconds: None)  # between its retries
    with pytest.raises(
        UserError, match=rf"{NAME}: cannot be downloaded \(.*refused.*\); check the name and the network"
    ):
        pretrained.describe(NAME)
    assert not caplog.records
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=rf"{NAME}: found no huggingface_hub; use `pip install huggingface_hub`"):
        pretrained.describe(NAME)


@pytest.mark.parametrize(
    ("files", "values", "message"),
    [
        (
            {"config.json": hubs.timm_config("resnet34")}, {"model__trunk": "resnet50"},
            rf"model\.pretrained = {NAME}: found trunk resnet34; expected resnet50, as in model\.trunk; use "
            r"--config\.model\.trunk=resnet34, or --config\.model\.pretrained=hf:timm/resnet50\.a1_in1k\.",
        ),
        (
            {"config.json": hubs.timm_config("resnet18d")}, {},
            r"found architecture 'resnet18d' \(did you mean 'resnet18'\?\); expected one of resnet18, .*; use a",
        ),
        ({"config.json": b'{"format": 1}'}, {}, r"found no architecture in its config\.json; .* use model\.init for a"),
        ({"config.json": b"{"}, {}, r"config\.json.*; download it again"),
        ({"config.json": b'{"architecture": "resnet18"}'}, {}, r"KeyError.*; expected timm's mean, std and input_size"),
    ],
)  # fmt: skip
def test_models_that_do_not_fit_are_one_line_errors(hub_cache, files, values, message):
    hubs.write_cache(hub_cache, NAME.removeprefix("hf:"), files)
    with pytest.raises(UserError, match=message):
        resolved(own(f"dir=photos,pretrained={NAME}", **values))


def test_a_name_without_prefix_is_corrected():
    for name, remedy in (
        ("resnet18", r"hf:timm/resnet50\.a1_in1k; use hf:timm/resnet18\.a1_in1k\.$"),
        ("timm/resnet34.a1_in1k", r"\(did you mean 'hf:timm/resnet34\.a1_in1k'\?\)\.$"),
    ):
        with pytest.raises(UserError, match=rf"model\.pretrained = {name}: found no such file; expected .*{remedy}"):
            pretrained.describe(name)


def test_grey_images_under_a_colour_trunk_are_a_one_line_error(hub_cache):
    hubs.write_cache(hub_cache, NAME.removeprefix("hf:"), hubs.model())
    config = own(f"preset=laptop,pretrained={NAME}", data__source="digits", data__image_size=0)
    with pytest.raises(UserError, match=r"^found images of 1 channels and views\.mean of 3 values; expected 1 or 3 of"):
        experiment.load(presets.resolve(config, pathlib.Path("nowhere")))


def test_a_network_starts_from_the_tensors_of_the_hub(hub_cache, tmp_path):
    hubs.write_cache(hub_cache, NAME.removeprefix("hf:"), hubs.model())
    image_files.write_tree(tmp_path / "d", {f"{split}/{c}": 8 for split in ("train", "test") for c in "ab"})
    values = {"train__batch_size": 8, "eval__recall_at": (1,), "data__image_size": 40, "views__size": 32}
    config = own(f"dir={tmp_path / 'd'},preset=laptop,method=baseline,pretrained={NAME}", **values)
    given = initial_weights.given(experiment.load(presets.resolve(config, tmp_path / "run"))).variables
    tensors = state_dicts.state_dict("resnet18")
    kernel = given["params"]["trunk"]["Conv_0"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["conv1.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(given["batch_stats"]["trunk"]["BatchNorm_0"]["mean"], tensors["bn1.running_mean"])


@pytest.mark.skipif(not LITE.is_file(), reason=f"found no {LITE}")
def test_imagenet_weights_of_efficientnet_fit_the_preset_of_laptops(tmp_path):
    image_files.write_tree(tmp_path / "d", {f"{split}/{c}": 8 for split in ("train", "test") for c in "ab"})
    values = {"train__batch_size": 8, "eval__recall_at": (1,)}
    config = own(f"dir={tmp_path / 'd'},preset=laptop,method=baseline,pretrained={LITE}", **values)
    given = initial_weights.given(experiment.load(presets.resolve(config, tmp_path / "run"))).variables
    kernel = safetensors.numpy.load_file(LITE)["conv_stem.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(given["params"]["trunk"]["Conv_0"]["kernel"], kernel)
