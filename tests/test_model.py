"""A model loaded from a workdir, a saved folder or the hub embeds any images, without the data of its training."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import PIL.ImageSequence
import pytest

import grafit_jax
from grafit_jax import model, restore
from grafit_jax.errors import UserError
from grafit_jax.runs import checkpoint
from helpers import command_lines, image_files
from helpers.devices import use_devices
from helpers.runs import small_config, split_features


@pytest.fixture(scope="module")
def photo_run(tmp_path_factory):
    """A one-epoch run on photos of 30 x 21 pixels, whose evaluation resizes and crops; returns (workdir, photos)."""
    from grafit_jax.commands import training

    root = tmp_path_factory.mktemp("photo_run")
    written = image_files.write_tree(root / "photos", image_files.TREE, height=21, width=30)
    config = small_config(
        **{"data.source": f"folder:{root / 'photos'}", "data.image_size": 14, "data.resize_mode": "centre"},
        **{"eval.size": 10, "eval.crop": "centre", "eval.recall_at": (1,), "train.epochs": 1, "train.batch_size": 8},
        **{"views.mean": (0.5,) * 3, "views.std": (0.3,) * 3, "checkpoint.every_steps": 1},
    )
    training.train(config, root / "run")
    return root / "run", written


@pytest.mark.parametrize("layer", ["trunk", "projector", "concat"])
def test_embeddings_equal_those_of_the_evaluation(photo_run, layer):
    # The evaluation reads the split as one batch through its own reader.
    workdir, _ = photo_run
    run, state = restore.newest(workdir)
    expected = split_features(run, state, "test", layer)
    loaded = grafit_jax.load(workdir)
    got = loaded.embed([str(file) for file in expected.filename], layer=layer, normalize=False)
    assert got.dtype == np.float32 and loaded.layers == ("trunk", "projector", "concat")
    np.testing.assert_allclose(got, expected.embedding, rtol=1e-4, atol=1e-6)
    unit = loaded.embed([str(file) for file in expected.filename], layer=layer)
    norm = np.linalg.norm(expected.embedding.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(unit, expected.embedding / norm, atol=1e-6)


def test_every_kind_of_input_gives_the_same_embedding(photo_run):
    workdir, written = photo_run
    loaded = grafit_jax.load(workdir)
    (path, pixels), *_ = written.items()
    one = loaded.embed(path)
    assert one.shape == (1, 64)
    folder = pathlib.Path(path).parent
    for images in (
        pathlib.Path(path), [path], PIL.Image.open(path), pixels, pixels[None], (p for p in [path]), [[pixels]],
    ):  # fmt: skip
        np.testing.assert_array_equal(loaded.embed(images), one)
    several = loaded.embed(folder, batch_size=2)
    assert several.shape == (5, 64)
    np.testing.assert_allclose(several[0], one[0], atol=1e-6)


def test_images_of_the_training_set_enter_as_they_are(digits, trained_once):
    run, state = restore.newest(trained_once)
    images = run.records["test"].image[:5]
    expected = split_features(run, state, "test").embedding[:5]
    np.testing.assert_allclose(digits.embed(images, normalize=False), expected, rtol=1e-4, atol=1e-6)
    # A larger image is resized on the host, and colours become grey.
    large = PIL.Image.fromarray(images[0, ..., 0]).resize((80, 60), PIL.Image.Resampling.NEAREST)
    small = np.asarray(large.resize((8, 8), PIL.Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(digits.embed(large.convert("RGB")), digits.embed(small))


def test_any_number_of_images_and_any_batch_size_give_the_same_rows(digits):
    images = np.random.default_rng(0).integers(0, 256, (11, 8, 8), np.uint8)[..., None]
    expected = digits.embed(images, batch_size=11)
    for batch_size in (1, 3, 4, 64):
        np.testing.assert_allclose(digits.embed(images, batch_size=batch_size), expected, atol=1e-6)


def test_a_generator_may_use_the_same_memory_for_every_image(digits):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), np.uint8)
    for shape in ((8, 8, 1), (16, 16)):  # as the training's images, and resized
        frames = np.stack([np.resize(image, shape) for image in images])
        buffer = np.empty(shape, np.uint8)

        def reused(frames=frames, buffer=buffer):
            for frame in frames:
                buffer[:] = frame
                yield buffer
            buffer[:] = 0

        np.testing.assert_array_equal(digits.embed(reused()), digits.embed([*frames]))


def test_frames_of_an_animation_and_closed_files_are_embedded(digits, tmp_path):
    rng = np.random.default_rng(0)
    frames = [PIL.Image.fromarray(rng.integers(0, 256, (9, 9), np.uint8)) for _ in range(5)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    expected = digits.embed(frames)
    with PIL.Image.open(tmp_path / "a.gif") as opened:
        np.testing.assert_allclose(digits.embed(PIL.ImageSequence.Iterator(opened)), expected, atol=0.02)

    def closed():
        with PIL.Image.open(tmp_path / "a.gif") as image:
            yield image

    np.testing.assert_allclose(digits.embed(closed()), expected[:1], atol=0.02)


def test_eight_devices_give_the_embeddings_of_one(trained_once, monkeypatch, eight_devices):
    images = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 1), np.uint8)
    eight = grafit_jax.load(trained_once).embed(images)
    use_devices(monkeypatch, 1)
    np.testing.assert_allclose(eight, grafit_jax.load(trained_once).embed(images), atol=1e-6)


def test_class_names_step_and_metrics_come_from_the_run(digits, trained_once):
    assert digits.classes == {"coarse": ("closed loop", "no loop"), "fine": tuple("0123456789")}
    recorded = json.loads((trained_once / "metrics.json").read_text())
    assert digits.step == recorded["step"] == 28 and digits.metrics["map"] == recorded["map"]


def test_a_checkpoint_is_chosen_by_its_step(trained_once, digits):
    earlier = grafit_jax.load(trained_once, checkpoint=14)
    assert earlier.step == 14 and earlier.digest != digits.digest
    with pytest.raises(UserError, match=r"found no checkpoint of step 15; use one of 28, 14"):
        grafit_jax.load(trained_once, checkpoint=15)
    for wrong in ("best", True, 1.0):
        with pytest.raises(UserError, match='expected "newest" or the step of a checkpoint'):
            grafit_jax.load(trained_once, checkpoint=wrong)


def test_the_digest_is_that_of_weights_and_preprocessing(trained_once, digits, train_run):
    assert grafit_jax.load(trained_once).digest == digits.digest
    run, state = restore.newest(trained_once)
    assert model.of_run(run, state, trained_once).digest == digits.digest
    config = json.loads((train_run / "config.json").read_text())
    for group, key, value, same in (
        ("eval", "size", 10, False),
        ("views", "mean", [0.31], False),
        ("model", "dtype", "bfloat16", False),
        ("eval", "recall_at", [1], True),
        ("optimizer", "weight_decay", 0.5, True),
    ):
        (train_run / "config.json").write_text(json.dumps(config | {group: config[group] | {key: value}}))
        assert (grafit_jax.load(train_run).digest == digits.digest) is same, key


def test_bfloat16_embeddings_are_float32_and_close(train_run, digits):
    config = json.loads((train_run / "config.json").read_text())
    config["model"]["dtype"] = "bfloat16"
    (train_run / "config.json").write_text(json.dumps(config))
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    got = grafit_jax.load(train_run).embed(images)
    assert got.dtype == np.float32
    assert np.sum(got * digits.embed(images), axis=1).min() > 0.99


def test_a_run_without_its_description_is_an_error(train_run):
    (train_run / "model.json").unlink()
    with pytest.raises(UserError, match=r"found no file .*model\.json; start the training again with the same command"):
        grafit_jax.load(train_run)


@pytest.mark.slow
def test_a_workdir_without_its_photos_embeds_and_searches_from_another_directory(photo_run, tmp_path):
    # In a process of its own with TensorFlow blocked: nothing of the training's data is needed.
    workdir, written = photo_run
    moved = shutil.copytree(workdir, tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    for i, pixels in enumerate(list(written.values())[:4]):
        image_files.write(tmp_path / "elsewhere" / f"{i}.png", pixels)
    config = json.loads((moved / "config.json").read_text())
    config["data"]["source"] = "folder:gone"
    (moved / "config.json").write_text(json.dumps(config))
    code = (
        "import sys; sys.modules['tensorflow'] = sys.modules['tensorflow_datasets'] = None\n"
        "import grafit_jax\n"
        "model = grafit_jax.load('moved')\n"
        "gallery = grafit_jax.Gallery.build(model, 'elsewhere')\n"
        "hits = gallery.search('elsewhere/2.png', k=3)\n"
        "assert hits[0][0].id == 'elsewhere/2.png' and hits[0][0].similarity > 0.999, hits\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env=command_lines.shell_environment() | {"PYTHONPATH": str(command_lines.ROOT)})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ([], {}, "found no image that can be read; expected at least one"),
        (
            np.zeros((1, 8, 8, 1), np.uint8),
            {"layer": "head"},
            "layer: found head; expected one of trunk, projector, concat, the",
        ),
        (np.zeros((1, 8, 8, 1), np.uint8), {"batch_size": 0}, "batch_size: found 0; expected at least 1"),
        ("text.png", {}, r"found an unreadable image: .*text\.png \(no JPEG, .*\); repair it or leave it out"),
    ],
)
def test_a_mistake_in_embed_is_a_one_line_error(digits, tmp_path, monkeypatch, images, options, message):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("text.png").write_text("no image")
    with pytest.raises(UserError, match=message):
        digits.embed(images, **options)


def test_a_method_without_a_projector_has_one_layer(tmp_path):
    run = restore.load(small_config("baseline", **{"model.sync_batch_norm": False}))
    with pytest.raises(UserError, match="found projector; expected one of trunk, the layers of method baseline"):
        split_features(run, restore.initial_state(run), "test", "projector")


def test_what_is_no_model_is_a_one_line_error(tmp_path, train_run):
    with pytest.raises(UserError, match=r"none: found no such folder; expected a workdir, the folder of a saved model"):
        grafit_jax.load(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: found no run \(no config\.json\)"):
        grafit_jax.load(tmp_path / "empty")
    facts = json.loads((train_run / "model.json").read_text())
    for changed, message in (
        (facts | {"format": 99}, r"model\.json: found format 99; expected at most 1; use a newer grafit_jax"),
        ({}, r"model\.json: found no description of a model \(KeyError: 'format'\)"),
        (facts | {"image_shape": [1, 2]}, r"model\.json: found no description of a model \(ValueError"),
        (facts | {"classes": []}, r"model\.json: found no description of a model \(AttributeError"),
    ):
        (train_run / "model.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=message):
            grafit_jax.load(train_run)
    (train_run / "model.json").write_text(json.dumps(facts))
    config = json.loads((train_run / "config.json").read_text())
    config["model"]["trunk"] = "resnet18"
    (train_run / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=r"found batch_stats\.trunk\..* of shape \(16,\); expected \(64,\), as in the config"
    ):
        grafit_jax.load(train_run)
    shutil.rmtree(train_run / "checkpoints")
    with pytest.raises(UserError, match="found no checkpoint; expected the first one of the training"):
        grafit_jax.load(train_run)


def test_a_checkpoint_that_a_training_replaces_meanwhile_is_not_called_damaged(train_run, monkeypatch, capsys):
    folder, read = train_run / "checkpoints", checkpoint._read_weights

    def replaced(path):
        if path.name == "28":
            (folder / "28").rename(folder / "42")
            raise FileNotFoundError(path)
        return read(path)

    monkeypatch.setattr(checkpoint, "_read_weights", replaced)
    assert grafit_jax.load(train_run).step == 42 and capsys.readouterr().err == ""


def test_a_damaged_checkpoint_is_skipped_with_a_warning(train_run, capsys):
    newest = train_run / "checkpoints" / "28" / "state"
    for file in newest.rglob("*"):
        if file.is_file() and "d" in file.parent.name and file.stat().st_size > 1000:
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 0xFF
            file.write_bytes(content)
    assert grafit_jax.load(train_run).step == 14
    assert "checkpoints/28: found a damaged checkpoint" in capsys.readouterr().err
    with pytest.raises(UserError, match="found damaged checkpoints only"):
        grafit_jax.load(train_run, checkpoint=28)
