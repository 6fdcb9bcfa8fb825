"""What a run decides at its start: the preset by its devices, and trunk and pixels by weights of the hub."""

import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from sweeps import expansion

from grafit_jax import config as config_lib
from grafit_jax import config_checks, config_files, open_keys, parallel, presets, pretrained
from grafit_jax.errors import UserError
from grafit_jax.runs import workdir
from helpers import hub as hubs
from helpers.command_lines import ROOT
from helpers.hub import own, resolved

NAME = "hf:timm/resnet18.a1_in1k"


def left_open(config):
    return {key for key, value in config_lib.flatten(config).items() if value is None}


# Config files


def test_configs_of_photos_load_without_devices_and_without_the_hub(monkeypatch):
    monkeypatch.setattr(jax._src.xla_bridge, "backends", lambda: pytest.fail("initialised devices"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    of_weights = {"model.trunk", "model.stem", "views.mean", "views.std", "data.image_size"}
    assert left_open(own()) == {*presets.PRESETS["laptop"]} | of_weights
    assert left_open(own("dir=photos,preset=laptop")) == left_open(own("dir=photos,preset=gpu")) == of_weights
    assert left_open(own(f"dir=photos,pretrained={NAME}")) == left_open(own()) - {"model.pretrained"}
    assert not left_open(own("dir=photos,preset=scratch")) and not left_open(config_lib.default())
    for arg in ("dir=photos", "dir=photos,preset=gpu"):
        config_checks.validate(presets.assumed(own(arg)), num_devices=1)
    assert presets.PRESETS["laptop"].keys() == presets.PRESETS["gpu"].keys()


def test_the_small_network_from_scratch_is_the_one_of_the_tutorial():
    c = own("dir=photos,preset=scratch")
    assert (c.model.trunk, c.model.stem, c.model.pretrained, c.model.head_hidden_dim) == ("resnet8", "patch2", "", 256)
    assert (c.views.size, c.data.image_size, c.data.resize_mode, c.eval.crop) == (32, 40, "squash", "whole")
    assert (c.train.epochs, c.train.batch_size, c.optimizer.learning_rate, c.ema.base) == (50, 64, 0.2, 0.99)
    assert (c.views.mean, c.views.num_views, c.optimizer.warmup_epochs) == ((0.485, 0.456, 0.406), 2, 2.0)
    for arg, message in (
        (
            "preset=laptp",
            r"unknown preset 'laptp' \(did you mean 'laptop'\?\); expected one of auto, laptop, gpu, scra",
        ),
        ("preset=scratch,pretrained=a", "found preset=scratch and pretrained=a; expected one of them"),
        ("init=a,pretrained=b", "found init=a and pretrained=b; expected one of them"),
    ):
        with pytest.raises(UserError, match=message):
            own(arg)


def test_open_keys_take_typed_values_from_the_command_line(monkeypatch):
    given = ["views.size=160", "views.mean=(0.1, 0.2, 0.3)", "model.trunk=resnet34", "data.stream=true"]
    parsed = parse(monkeypatch, *given)
    assert (parsed.views.size, parsed.views.mean, parsed.model.trunk) == (160, (0.1, 0.2, 0.3), "resnet34")
    assert parsed.data.stream is True
    assert left_open(parsed) == left_open(own()) - {"views.size", "views.mean", "model.trunk", "data.stream"}
    for wrong in ("views.size=large", "views.size=1.5", "data.stream=3"):
        with pytest.raises(flags.IllegalFlagValueError):
            parse(monkeypatch, wrong)


def parse(monkeypatch, *given):
    words = ["train", f"--config={hubs.OWN}:dir=photos", *(f"--config.{text}" for text in given)]
    values = flags.FlagValues()
    monkeypatch.setattr(sys, "argv", words)
    config_flags.DEFINE_config_file("config", flag_values=values)
    values(words)
    return values.config


def test_the_laptop_preset_is_the_recipe_that_table_grocery_measures(hub_cache):
    lite0 = hubs.timm_config("tf_efficientnet_lite0", mean=hubs.HALVES, std=hubs.HALVES)
    name = pretrained.KNOWN["tf_efficientnet_lite0"].removeprefix("hf:")
    hubs.write_cache(hub_cache, name, {"config.json": lite0})
    found = resolved(own("dir=photos,preset=laptop,method=baseline"))
    measured = config_lib.flatten(config_files.load_file(ROOT / "configs" / "grocery.py", "method=baseline"))
    assert {key for key, value in measured.items() if value != found[key]} == {
        "data.source", "data.variant", "data.image_size", "model.pretrained", "eval.batch_size", "checkpoint.keep"
    }  # fmt: skip


# Choices at the start


@pytest.mark.parametrize(
    ("backend", "preset", "trunk", "size", "resized", "dtype", "stream"),
    [
        ("cpu", "laptop", "tf_efficientnet_lite0", 128, 146, "float32", False),
        ("gpu", "gpu", "resnet50", 224, 256, "bfloat16", True),
        ("tpu", "gpu", "resnet50", 224, 256, "bfloat16", True),
    ],
)
def test_devices_decide_the_preset(
    monkeypatch, hub_cache, capsys, backend, preset, trunk, size, resized, dtype, stream
):
    name = pretrained.KNOWN[trunk]
    hubs.write_cache(hub_cache, name.removeprefix("hf:"), {"config.json": hubs.timm_config(trunk, size=320)})
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    config = own()
    found = resolved(config)
    expected = {
        **presets.PRESETS[preset], "model.pretrained": f"{name}@{hubs.COMMIT}", "model.trunk": trunk,
        "model.stem": "imagenet", "model.dtype": dtype, "views.size": size, "views.mean": (0.1, 0.2, 0.3),
        "views.std": (0.4, 0.5, 0.6), "data.image_size": resized, "data.stream": stream,
    }  # fmt: skip
    assert {key: value for key, value in found.items() if value != config_lib.flatten(config)[key]} == expected
    config_checks.validate(presets.resolve(config, pathlib.Path("nowhere")), num_devices=1)
    printed = (
        f"found 1 CPU device: preset {preset}; initial weights {name}@{hubs.COMMIT}: {trunk}, views of {size} px\n"
    )
    assert capsys.readouterr().err == printed * 2


def test_given_values_and_presets_win_over_those_of_the_weights(hub_cache):
    hubs.write_cache(hub_cache, NAME.removeprefix("hf:"), hubs.model())
    given = {"model__stem": "cifar", "views__mean": hubs.HALVES, "data__image_size": 200, "train__epochs": 3}
    found = resolved(own(f"dir=photos,pretrained={NAME}", **given))
    assert {key.replace("__", "."): value for key, value in given.items()}.items() <= found.items()
    assert (found["model.trunk"], found["views.std"], found["views.size"]) == ("resnet18", (0.4, 0.5, 0.6), 128)


def test_the_size_is_that_of_the_weights_if_nothing_else_decides_it(hub_cache):
    hubs.write_cache(hub_cache, NAME.removeprefix("hf:"), hubs.model())
    config = config_lib.default()
    open_keys.leave_open(config, ["views.mean", "views.std", "views.size"])
    config.model.pretrained = NAME
    changed = {"views.mean": (0.1, 0.2, 0.3), "views.std": (0.4, 0.5, 0.6), "views.size": 160}
    assert resolved(config) == config_lib.flatten(config) | changed | {"model.pretrained": f"{NAME}@{hubs.COMMIT}"}


def test_a_size_of_a_preset_is_made_of_whole_patches_and_a_given_one_is_kept(hub_cache):
    name = "hf:timm/vit_small_patch14_dinov2.lvd142m"
    hubs.write_cache(hub_cache, name.removeprefix("hf:"), hubs.model("vit_small_patch14_dinov2", size=518))
    config = own(f"dir=photos,pretrained={name}")
    assert resolved(config)["views.size"] == 126 == presets.assumed(config).views.size
    assert resolved(own(f"dir=photos,pretrained={name}", views__size=128))["views.size"] == 128


def test_the_normalisation_of_a_complete_config_stays_with_a_warning_if_the_weights_have_another(hub_cache, capsys):
    hubs.write_cache(hub_cache, NAME.removeprefix("hf:"), hubs.model(mean=config_lib.default().views.mean))
    config = config_lib.default()
    config.model.pretrained = NAME
    assert resolved(config)["views.std"] == config.views.std
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and "views.std = (0.267, 0.256, 0.276), and (0.4, 0.5, 0.6)" in warnings[0]


@pytest.mark.parametrize(
    ("name", "trunk"),
    [
        ("resnet18-f37072fd.safetensors", "resnet18"),
        ("weights/resnet50.a1_in1k.pth", "resnet50"),
        ("hf:timm/tf_efficientnet_lite0.in1k@abc", "tf_efficientnet_lite0"),
        ("regnety_016.tv2_in1k.safetensors", "regnet_y_1_6gf"),
        ("resnet18_finetuned.safetensors", ""),
        ("best.pth", ""),
    ],
)
def test_names_of_weights_begin_with_their_trunk(name, trunk):
    assert pretrained.trunk_in(name) == trunk


def test_before_a_run_an_open_trunk_is_that_of_the_named_weights():
    assumed = presets.assumed(own(model__freeze="12"))
    assert (assumed.model.trunk, assumed.model.stem) == ("tf_efficientnet_lite0", "imagenet")
    config_checks.validate(assumed, num_devices=1)


def test_a_regnet_has_the_name_of_torchvision(hub_cache):
    hubs.write_cache(hub_cache, "timm/regnety_032.tv2_in1k", hubs.model("regnety_032"))
    found = resolved(own("dir=photos,pretrained=hf:timm/regnety_032.tv2_in1k"))
    assert found["model.trunk"] == "regnet_y_3_2gf"


def test_a_complete_config_stays_as_it_is_and_asks_no_one(monkeypatch, capsys):
    monkeypatch.setattr(jax, "default_backend", lambda: pytest.fail("asked for devices"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    config = config_lib.default()
    config.model.pretrained = "runs/other"
    assert resolved(config) == config_lib.flatten(config)
    assert capsys.readouterr().err == ""


def test_process_0_decides_for_all(monkeypatch):
    sent = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        parallel.multihost_utils, "process_allgather", lambda x: sent.append(x) or np.stack([x, np.zeros_like(x)])
    )
    assert parallel.of_first(lambda: '{"views.size": "größer"}') == '{"views.size": "größer"}'
    answers = iter(sent[:])
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(parallel.multihost_utils, "process_allgather", lambda x: receive(x, next(answers)))
    assert parallel.of_first(lambda: pytest.fail("asked process 1")) == '{"views.size": "größer"}'


def test_a_mistake_of_process_0_is_one_of_all(monkeypatch):
    sent = []

    def mistaken():
        raise UserError("found no network.")

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        parallel.multihost_utils, "process_allgather", lambda x: sent.append(x) or np.stack([x, np.zeros_like(x)])
    )
    with pytest.raises(UserError, match="found no network"):
        parallel.of_first(mistaken)
    answers = iter(sent[:])
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(parallel.multihost_utils, "process_allgather", lambda x: receive(x, next(answers)))
    with pytest.raises(UserError, match="found no network"):
        parallel.of_first(mistaken)


def receive(own_part, first):
    """What process 1 gathers; all processes must give arrays of one shape."""
    assert np.shape(own_part) == np.shape(first) and np.asarray(own_part).dtype == np.asarray(first).dtype
    return np.stack([first, own_part])


# Runs that have started


def started(path, config):
    """Leaves a workdir as a run does at its start."""
    config = presets.resolve(config, path)
    workdir.claim(path, config)
    return config


def test_a_run_keeps_its_choices_without_hub_and_devices(hub_cache, tmp_path, monkeypatch, capsys):
    hubs.write_cache(hub_cache, NAME.removeprefix("hf:"), hubs.model())
    arg = f"dir=photos,pretrained={NAME}"
    first = started(tmp_path / "run", own(arg))
    shutil.rmtree(hub_cache)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    capsys.readouterr()
    same = (own(arg), own(f"{arg}@main"), own(f"{arg}@{hubs.COMMIT}"), own(f"{arg}@{hubs.COMMIT[:8]}"), own())
    for config in same:
        workdir.check(tmp_path / "run", config)
        again = presets.resolve(config, tmp_path / "run")
        assert config_lib.flatten(again) == config_lib.flatten(first)
    assert capsys.readouterr().err == ""
    for other, difference in (
        (own("dir=photos,pretrained=hf:timm/resnet34.a1_in1k"), r"model\.pretrained: 'hf:timm/resnet18\.a1_in1k@"),
        (own(f"{arg}@{'f' * 40}"), r"model\.pretrained: 'hf:timm/resnet18\.a1_in1k@"),
        (own(arg, views__size=64), r"views\.size: 128 -> 64"),
    ):
        with pytest.raises(UserError, match=rf"found the run of another config \({difference}"):
            workdir.check(tmp_path / "run", presets.resolve(other, tmp_path / "run"))


def test_a_sweep_of_open_configs_knows_its_runs(hub_cache, tmp_path):
    hubs.write_cache(hub_cache, NAME.removeprefix("hf:"), hubs.model())
    runs = tmp_path / "runs"
    sweep = expansion.expand(str(hubs.OWN), f"dir=photos,pretrained={NAME}", {}, seeds=[0])
    assert [point.values["method"] for point in sweep.points] == ["baseline", "baseline_mlp", "grafit"]
    started(runs / sweep.points[1].name, sweep.points[1].config)
    expansion.check_directory(sweep, runs)
    started(runs / sweep.points[0].name, sweep.points[2].config)
    with pytest.raises(UserError, match=r"found the run of another config \(method: 'grafit' -> 'baseline'\)"):
        expansion.check_directory(sweep, runs)
    with pytest.raises(UserError, match=r"point .*found train\.batch_size = 0; expected at least 1"):
        expansion.expand(str(hubs.OWN), "dir=photos", {"train.batch_size": 0})
