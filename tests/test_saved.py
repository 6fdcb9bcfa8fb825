"""Saved models: equal to the workdir to the bit, complete or refused, and the hub through its cache."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

import grafit_jax
from grafit_jax import config as config_lib
from grafit_jax import experiment, model, pretrained, restore
from grafit_jax.errors import UserError
from grafit_jax.runs import checkpoint
from helpers.runs import small_config

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)


@pytest.fixture
def folder(digits, tmp_path):
    digits.save(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_model_equals_its_workdir_to_the_bit(digits, folder):
    loaded = grafit_jax.load(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    for layer in ("trunk", "projector"):
        np.testing.assert_array_equal(loaded.embed(IMAGES, layer=layer), digits.embed(IMAGES, layer=layer))
    assert (loaded.digest, loaded.step, loaded.classes, loaded.metrics) == (
        digits.digest, digits.step, digits.classes, digits.metrics
    )  # fmt: skip
    assert loaded.description.config == digits.description.config
    again = folder.parent / "again"
    loaded.save(again)
    for path in folder.iterdir():
        if path.name != "README.md":  # its title is the folder's name
            assert (again / path.name).read_bytes() == path.read_bytes()


def test_another_run_starts_from_the_trunk_of_a_run_or_of_a_saved_model(trained_once, folder):
    starts = []
    for where in (trained_once, folder):
        config = small_config("baseline", **{"model.pretrained": str(where)})
        starts.append(jax.device_get(restore.initial_state(experiment.load(config))))
        of_weights = pretrained.describe(str(where)).values
        assert (of_weights["model.trunk"], of_weights["views.mean"]) == ("resnet8", (0.3,))
    theirs, _ = checkpoint.read_weights(trained_once)
    for state in starts:
        jax.tree.map(np.testing.assert_array_equal, state.params["trunk"], theirs["params"]["trunk"])
        jax.tree.map(np.testing.assert_array_equal, state.batch_stats["trunk"], theirs["batch_stats"]["trunk"])
    config = small_config("baseline", **{"model.pretrained": str(folder), "model.trunk": "resnet18"})
    with pytest.raises(UserError, match=r"saved: found trunk resnet8; expected resnet18, as in model\.trunk; use"):
        restore.check_start(experiment.load(config))


def test_a_saved_model_shows_no_one_s_folders(train_run, tmp_path):
    config = json.loads((train_run / "config.json").read_text())
    config["data"] |= {"source": "folder:/home/me/photos", "data_dir": "/home/me/tfds"}
    config["model"] |= {"pretrained": "/home/me/weights.pth"}
    (train_run / "config.json").write_text(json.dumps(config))
    grafit_jax.load(train_run).save(tmp_path / "saved")
    for name in ("config.json", "README.md"):
        assert "/home/me" not in (tmp_path / "saved" / name).read_text()
    loaded = grafit_jax.load(tmp_path / "saved").description.config
    assert (loaded.data.source, loaded.model.pretrained) == ("folder:photos", "weights.pth")
    of_the_hub = small_config(**{"model.pretrained": "hf:a/b@c"})
    assert config_lib.with_short_paths(of_the_hub).model.pretrained == "hf:a/b@c"


def test_others_may_read_the_files_and_hidden_ones_do_not_matter(digits, folder):
    assert len({path.stat().st_mode & 0o777 for path in folder.iterdir()}) == 1
    (folder / ".git").mkdir()
    (folder / "model.safetensors.tmp").touch()  # left by a kill
    digits.save(folder)


def test_the_model_card_has_the_metrics_of_the_run(digits, folder):
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: grafit_jax\n") and "# saved\n" in card
    percent = [f"{100 * digits.metrics[name]:.1f}" for name in ("map", "recall@1", "knn_top1")]
    assert f"| trunk | fine | {' | '.join(percent)} |" in card
    assert digits.digest in card and "2 coarse classes; 10 fine classes" in card


def test_the_model_card_of_a_method_without_labels_says_so(tmp_path):
    run = restore.load(small_config("byol", **{"model.sync_batch_norm": False}))
    model.of_run(run, restore.initial_state(run), tmp_path).save(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "by the method `byol` without labels." in card and "None were recorded for this checkpoint." in card


def test_saving_replaces_a_saved_model_and_nothing_else(digits, folder, tmp_path):
    digits.save(folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"mine: found other files \(thesis\.tex\); expected an empty folder"):
        digits.save(tmp_path / "mine")


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def without_a_tensor(path):
    tensors = safetensors.numpy.load_file(path)
    del tensors[next(name for name in tensors if ".trunk." in name)]
    safetensors.numpy.save_file(tensors, path)


def with_a_stranger(path):
    safetensors.numpy.save_file({**safetensors.numpy.load_file(path), "extra": np.zeros(1)}, path)


def with_another_value(path):
    tensors = safetensors.numpy.load_file(path)
    next(tensor for name, tensor in tensors.items() if ".trunk." in name).flat[0] += 1
    safetensors.numpy.save_file(tensors, path)


def changed(**values):
    def change(path):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in (content | values).items() if v is not None}))

    return change


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", cut, r"model\.safetensors cannot be read \(.*\); save or download the model again"),
        ("model.safetensors", lambda path: path.unlink(), r"found no model\.safetensors; expected a complete saved"),
        ("config.json", lambda path: path.unlink(), r"found no config\.json; expected a complete saved model"),
        ("config.json", cut, r"config\.json cannot be read \(.*\); save or download the model again"),
        ("model.safetensors", without_a_tensor, r"found .* of shape \(absent\); expected \(.*\), as in the config"),
        ("model.safetensors", with_a_stranger, r"cannot be read \(found tensor extra, expected params\."),
        ("model.safetensors", with_another_value, r"found weights and settings with the digest .*; expected "),
        ("config.json", changed(format=2), r"config\.json: found format 2; expected at most 1; use a newer grafit_jax"),
        ("config.json", changed(format=None), r"config\.json: found no description of a model \(KeyError: 'format'\)"),
        ("config.json", changed(config=None), r"config\.json cannot be read \(KeyError: 'config'\)"),
        ("config.json", changed(config={"method": "none"}), r"unknown method 'none'"),
        ("config.json", changed(config={"model": {"new": 1}}), r"found unknown config key 'model\.new'; expected "),
        ("config.json", changed(metrics=3), r"config\.json cannot be read \(TypeError"),
        ("config.json", changed(image_shape=[9, 9, 1]), r"found weights and settings with the digest"),
    ],
)
def test_an_incomplete_or_newer_model_is_a_one_line_error(folder, name, damage, message):
    damage(folder / name)
    with pytest.raises(UserError, match=message):
        grafit_jax.load(folder)


def test_a_saved_model_has_one_checkpoint(folder):
    with pytest.raises(UserError, match="found checkpoint = 14 for a saved model, which has one"):
        grafit_jax.load(folder, checkpoint=14)


# The hub


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """A local cache of the hub with the model owner/digits and nothing else; the hub itself refuses connections."""
    constants = pytest.importorskip("huggingface_hub.constants")
    cache = tmp_path / "hub"
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = cache / "models--owner--digits"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    for revision in ("main", "v1"):
        (repository / "refs" / revision).write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def test_a_model_in_the_cache_loads_although_the_hub_is_unreachable(hub, digits):
    for name in ("hf:owner/digits", "hf:owner/digits@v1"):
        loaded = grafit_jax.load(name)
        assert loaded.digest == digits.digest and loaded.made_by("trunk")["path"] == name


def test_an_unreachable_hub_is_a_one_line_error(hub, digits):
    with pytest.raises(UserError, match=r"hf:owner/other: cannot be downloaded \(.+\); check the name and the network"):
        grafit_jax.load("hf:owner/other")
    with pytest.raises(UserError, match=r"hf:no name: cannot be downloaded \(.+\); check the name"):
        grafit_jax.load("hf:no name")
    with pytest.raises(UserError, match=r"hf:owner/new: cannot be uploaded \(.+\); check the name and the network"):
        digits.push_to_hub("owner/new")


def test_without_huggingface_hub_the_message_says_what_to_install(monkeypatch, digits):
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: grafit_jax.load("hf:owner/x"), lambda: digits.push_to_hub("owner/x")):
        with pytest.raises(UserError, match="hf:owner/x: found no huggingface_hub; use `pip install huggingface_hub`"):
            call()


def test_push_to_hub_uploads_a_complete_saved_model(monkeypatch, digits, tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    calls = []

    class Api:
        def create_repo(self, name, **options):
            calls.append((name, options))

        def upload_folder(self, *, repo_id, folder_path, allow_patterns):
            shutil.copytree(folder_path, tmp_path / "uploaded")
            calls.append((repo_id, sorted(allow_patterns)))
            return f"https://huggingface.co/{repo_id}/commit/1"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert digits.push_to_hub("owner/new", private=True) == "https://huggingface.co/owner/new/commit/1"
    assert calls[0] == ("owner/new", {"private": True, "exist_ok": True})
    assert calls[1] == ("owner/new", ["README.md", "config.json", "model.safetensors"])
    assert grafit_jax.load(tmp_path / "uploaded").digest == digits.digest
    assert "# owner/new\n" in (tmp_path / "uploaded" / "README.md").read_text()
