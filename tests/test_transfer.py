"""Transfer: pretrained trunk with a new classifier, layer-wise learning rates, mixed images, label smoothing."""

import dataclasses
import functools
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from grafit_jax import experiment, losses, methods, restore, train_step
from grafit_jax.commands import training
from grafit_jax.errors import UserError
from grafit_jax.models import Outputs
from grafit_jax.objective import Objective
from grafit_jax.views import augment
from grafit_jax.views.mixing import mix
from helpers.runs import small_config


def fine_tuning(**options):
    return small_config("baseline", **{"data.train_level": "fine", "eval.layers": ("trunk",)} | options)


def kernels(tree):
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same(got, expected):
    assert got.keys() == expected.keys() and got
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_the_convolution_of_another_stem_starts_from_scratch(trained_once):
    _, theirs = restore.newest(trained_once)
    options = {"model.stem": "cifar"}
    state = restore.initial_state(experiment.load(fine_tuning(**options, **{"model.pretrained": str(trained_once)})))
    fresh = restore.initial_state(experiment.load(fine_tuning(**options)))
    ours = state.params["trunk"]
    assert_same(kernels(ours["Conv_0"]), kernels(fresh.params["trunk"]["Conv_0"]))
    others = [name for name in theirs.params["trunk"] if name != "Conv_0"]
    assert len(others) == 4  # three blocks, and the stem's batch norm
    for name in others:
        assert_same(kernels(ours[name]), kernels(theirs.params["trunk"][name]))
        assert_same(kernels(state.batch_stats["trunk"][name]), kernels(theirs.batch_stats["trunk"][name]))


def test_workdirs_without_a_fitting_trunk_are_errors(trained_once, tmp_path):
    def start(config, **kwargs):
        return restore.initial_state(experiment.load(config, **kwargs))

    with pytest.raises(UserError, match=r"found trunk resnet8; expected resnet18, as in model\.trunk"):
        start(fine_tuning(**{"model.pretrained": str(trained_once), "model.trunk": "resnet18"}))
    with pytest.raises(UserError, match=r"found no run \(no config\.json\)"):
        start(fine_tuning(**{"model.pretrained": str(tmp_path)}))
    for file in ("config.json", "model.json"):
        (tmp_path / file).write_text((trained_once / file).read_text())
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"found no checkpoint"):
        start(fine_tuning(**{"model.pretrained": str(tmp_path)}))
    with pytest.raises(UserError, match=r"pretrained = runs/none: found no such file; expected a workdir, the"):
        start(fine_tuning(**{"model.pretrained": "runs/none"}))
    with pytest.raises(
        UserError, match=r"config\.json: found file type '\.json'; expected a \.safetensors or \.pth file"
    ):
        start(fine_tuning(**{"model.pretrained": str(tmp_path / "config.json")}))


def test_a_trunk_that_does_not_fit_is_an_error_before_anything_is_written(trained_once, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(trained_once.parent))
    (tmp_path / "colour").mkdir()
    for split in ("train", "test"):
        labels = {"label": np.arange(16) % 4, "coarse_label": np.arange(16) % 2}
        np.savez(tmp_path / "colour" / f"{split}.npz", image=np.zeros((16, 8, 8, 3), np.uint8), **labels)
    options = {"data.source": f"npz:{tmp_path}/colour", "train.batch_size": 8}
    options["model.pretrained"] = f"~/{trained_once.name}"
    options |= {"views.mean": (0.3,) * 3, "views.std": (0.4,) * 3}
    with pytest.raises(UserError, match=r"kernel.* of shape \(3, 3, 4, 16\); expected \(3, 3, 12, 16\)"):
        training.train(fine_tuning(**options), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_layer_decay_lowers_the_rates_from_the_head_to_the_stem():
    params = {
        "trunk": {name: {"kernel": np.ones((1, 1), np.float32)} for name in ("Conv_0", "BatchNorm_0")}
        | {f"YBlock_{i}": {"Conv_0": {"kernel": np.ones((1, 1), np.float32)}} for i in (0, 1, 10)},
        "classifier": {"kernel": np.ones((1, 1), np.float32)},
    }
    base = {"optimizer.learning_rate": 0.4, "optimizer.weight_decay": 0.0, "optimizer.momentum": 0.0}
    for decay, expected in ((1.0, (1, 1, 1, 1, 1, 1)), (0.5, (1, 0.5, 0.25, 0.125, 0.0625, 0.0625))):
        tx = experiment.load(fine_tuning(**base, **{"optimizer.layer_decay": decay})).tx
        updates, _ = tx.update(params, tx.init(params), params)
        trunk = updates["trunk"]
        got = [updates["classifier"]["kernel"], *(trunk[f"YBlock_{i}"]["Conv_0"]["kernel"] for i in (10, 1, 0))]
        got += [trunk["BatchNorm_0"]["kernel"], trunk["Conv_0"]["kernel"]]
        np.testing.assert_allclose(
            np.ravel(got), -0.1 * np.array(expected), rtol=1e-6
        )  # 0.4 per 256 images, and the batch has 64


# Labels


@pytest.mark.parametrize("smoothing", [0.1, 0.9])
def test_label_smoothing(smoothing):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 5)) * 4, np.array([0, 4, 2, 2, 1, 3])
    target = (1 - smoothing) * np.eye(5)[labels] + smoothing / 5
    expected = -(target * scipy.special.log_softmax(logits, axis=1)).sum(1)
    got = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing=smoothing)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


# Mixed images

IMAGES = np.random.default_rng(0).normal(size=(2000, 4, 4, 1)).astype(np.float32)
LABELS, IDS = np.arange(2000) % 7, np.arange(2000) + 5
KEY = jax.random.PRNGKey(3)


def test_mixup_blends_with_the_mirrored_image_by_a_beta_share():
    mixed, other, share = mix(IMAGES, LABELS, IDS, KEY, mixup=0.4, cutmix=0.0)
    np.testing.assert_array_equal(other, LABELS[::-1])
    weight = np.asarray(share)[:, None, None, None]
    np.testing.assert_allclose(mixed, weight * IMAGES + (1 - weight) * IMAGES[::-1], atol=1e-5)
    assert scipy.stats.kstest(share, scipy.stats.beta(0.4, 0.4).cdf).pvalue > 0.01


def test_cutmix_pastes_a_rectangle_and_returns_the_remaining_share():
    mixed, other, share = mix(IMAGES, LABELS, IDS, KEY, mixup=0.0, cutmix=1.0)
    np.testing.assert_array_equal(other, LABELS[::-1])
    own, pasted = np.isclose(mixed, IMAGES, atol=1e-6), np.isclose(mixed, IMAGES[::-1], atol=1e-6)
    assert np.all(own | pasted)
    np.testing.assert_allclose(own.mean(axis=(1, 2, 3)), share, atol=1e-6)
    for image in pasted[..., 0]:  # a rectangle is the product of its rows and its columns
        np.testing.assert_array_equal(image, image.any(1)[:, None] & image.any(0)[None, :])
    # Without a border, half of an image would remain on average; rectangles are cut off at the border, so it is more.
    assert 0.5 < np.mean(share) < 0.75 and np.ptp(share) == 1


def test_the_area_of_the_rectangle_depends_on_alpha():
    images = np.random.default_rng(1).normal(size=(400, 16, 16, 1)).astype(np.float32)
    half = mix(images, LABELS[:400], IDS[:400], KEY, mixup=0.0, cutmix=50.0)[2]  # 50 % ± 15 % of the image
    assert np.all(half > 0.3) and np.all(half < 0.95)
    extreme = mix(images, LABELS[:400], IDS[:400], KEY, mixup=0.0, cutmix=0.02)[2]  # nearly 0 or 1
    assert 0.4 < np.mean(np.asarray(extreme) > 0.99) < 0.6


def test_mixup_and_cutmix_alternate():
    mixed, _, share = mix(IMAGES, LABELS, IDS, KEY, mixup=1.0, cutmix=1.0)
    weight = np.asarray(share)[:, None, None, None]
    blended = np.isclose(mixed, weight * IMAGES + (1 - weight) * IMAGES[::-1], atol=1e-5).all(axis=(1, 2, 3))
    assert 0.4 < np.mean(blended) < 0.65  # includes the few rectangles of nearly all or nothing


def test_a_mixture_depends_on_its_id_and_the_key_only():
    share = mix(IMAGES, LABELS, IDS, KEY, mixup=1.0, cutmix=0.0)[2]
    rows = np.array([7, 3, 1999])
    again = mix(IMAGES[rows], LABELS[rows], IDS[rows], KEY, mixup=1.0, cutmix=0.0)[2]
    np.testing.assert_allclose(again, share[rows], rtol=1e-6)
    other = mix(IMAGES[rows], LABELS[rows], IDS[rows], jax.random.PRNGKey(4), mixup=1.0, cutmix=0.0)[2]
    assert np.abs(other - again).min() > 1e-3


@pytest.mark.slow
def test_a_mixture_does_not_depend_on_the_number_of_devices():
    rows = slice(0, 64)
    one = mix(IMAGES[rows], LABELS[rows], IDS[rows], KEY, mixup=0.4, cutmix=1.0)
    of_device = functools.partial(mix, mixup=0.4, cutmix=1.0, axis_name="batch")
    shards = [x[rows].reshape(8, 8, *x.shape[1:]) for x in (IMAGES, LABELS, IDS)]
    eight = jax.pmap(of_device, axis_name="batch", in_axes=(0, 0, 0, None))(*shards, KEY)
    for got, expected in zip(eight, one, strict=True):
        np.testing.assert_allclose(np.reshape(got, expected.shape), expected, atol=1e-6)


@pytest.mark.slow
def test_a_step_scores_a_mixture_by_both_labels(monkeypatch):
    seen = []

    def noted(images, labels, ids, key, *, mixup, cutmix, axis_name=None):
        # Known shares, and unmixed images; even ids have the share 1.
        seen.append((mixup, cutmix))
        share = jnp.where(ids % 2 == 0, 1.0, 0.25)
        return images, labels[::-1], share

    monkeypatch.setattr("grafit_jax.train_step.mix", noted)
    options = {"mixing.mixup": 0.2, "loss.label_smoothing": 0.1, "model.sync_batch_norm": False}
    run = experiment.load(fine_tuning(**options))
    records, ids = run.records["train"], np.arange(16)
    batch = {"image": records.image[ids], "label": records.train_label[ids], "id": ids}
    state = restore.initial_state(run)
    _, _, terms = jax.jit(train_step.make_train_step(run, axis_name=None))(state, None, batch, state.rng)
    assert seen == [(0.2, 0.0)]
    key = jax.random.fold_in(state.rng, 0)
    views = augment.random_views(batch["image"], ids, key, views=run.views, num_views=1)[0]
    out, _ = run.network.apply(state.variables, views, train=True, mutable=["batch_stats"])
    log_p = scipy.special.log_softmax(np.asarray(out.logits, np.float64), axis=1)
    smoothed = 0.9 * np.eye(10) + 0.01
    share, label = np.where(ids % 2 == 0, 1.0, 0.25)[:, None], records.label[ids]
    target = share * smoothed[label] + (1 - share) * smoothed[label[::-1]]
    np.testing.assert_allclose(terms["loss"][0] / 16, -(target * log_p).sum(1).mean(), rtol=1e-5)


def test_a_step_mixes_images_only_if_the_config_says_so(monkeypatch):
    seen = []

    def noted(images, labels, ids, key, *, mixup, cutmix, axis_name=None):
        seen.append((mixup, cutmix))
        return images, labels, jnp.ones(len(labels))

    monkeypatch.setattr("grafit_jax.train_step.mix", noted)
    for options in ({}, {"mixing.mixup": 0.2}, {"mixing.cutmix": 0.3}):
        run = experiment.load(fine_tuning(**options, **{"model.sync_batch_norm": False}))
        batch = {"image": run.records["train"].image[:16], "label": np.zeros(16, np.int32), "id": np.arange(16)}
        state = restore.initial_state(run)
        jax.eval_shape(train_step.make_train_step(run, axis_name=None), state, None, batch, state.rng)
    assert seen == [(0.2, 0.0), (0.0, 0.3)]


def test_a_mixture_is_scored_by_both_labels():
    # Logits (log 3, 0): probabilities 3/4 and 1/4. The first class has a share of 0.8 and of 0.
    out = Outputs(features=jnp.zeros((2, 1)), logits=jnp.log(jnp.array([[3.0, 1.0]] * 2)))
    batch = {"label": jnp.array([0, 0]), "other_label": jnp.array([1, 1]), "share": jnp.array([0.8, 0.0])}
    loss = types.SimpleNamespace(instance_weight=1.0, maskcon_weight=1.0, temperature=1.0, label_smoothing=0.0)
    per_example, _ = Objective(methods.get("baseline"), loss, 1, None)(out, None, batch, None, None)
    np.testing.assert_allclose(per_example, [-0.8 * np.log(3 / 4) - 0.2 * np.log(1 / 4), -np.log(1 / 4)], rtol=1e-6)


# Evaluation


@pytest.mark.parametrize(("level", "name"), [("fine", "top1"), ("", "coarse/top1")])
def test_top1_is_the_accuracy_of_the_classifier_at_the_training_level(level, name):
    run = experiment.load(fine_tuning(**{"data.train_level": level, "eval.size": 12}))
    state = restore.initial_state(run)
    metrics = experiment.evaluate(run, state)
    assert [key for key in metrics if "top1" in key and "knn" not in key] == [name]
    test = run.records["test"]
    # At the size of evaluation, which differs from that of training.
    images = augment.plain_view(test.image, views=dataclasses.replace(run.views, size=12))
    out = run.network.apply(state.variables, images, train=False)
    assert metrics[name] == pytest.approx(np.mean(np.argmax(out.logits, 1) == test.train_label))
    embedded = run.embed_fn(state.variables, test.image)
    np.testing.assert_allclose(embedded["trunk"], out.features, atol=1e-5)
    at_8 = run.network.apply(state.variables, augment.plain_view(test.image, views=run.views), train=False)
    assert np.abs(at_8.features - out.features).max() > 1e-2


def test_without_a_classifier_there_is_no_top1():
    run = experiment.load(small_config("byol", **{"eval.layers": ("trunk",)}))
    assert not [k for k in experiment.evaluate(run, restore.initial_state(run)) if k.endswith("/top1") or k == "top1"]


@pytest.mark.slow
def test_fine_tuning_learns_and_resumes_without_the_pretraining_run(trained_once, tmp_path, trains):
    options = {"optimizer.layer_decay": 0.7, "mixing.cutmix": 1.0, "train.epochs": 6, "optimizer.learning_rate": 0.3}
    start = tmp_path / "start"
    shutil.copytree(trained_once, start)
    metrics = trains(fine_tuning(**options, **{"model.pretrained": str(start)}), tmp_path / "run")
    shutil.rmtree(start)
    assert metrics["top1"] > 0.5  # of ten classes
    assert experiment.evaluate(*restore.newest(tmp_path / "run")) == metrics
