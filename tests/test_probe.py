"""The linear probe against scikit-learn's logistic regression, and its independence of the test labels."""

import json
import re

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from grafit_jax import experiment, parallel, restore
from grafit_jax.errors import UserError
from grafit_jax.retrieval import embeddings, probe
from grafit_jax.retrieval.embeddings import Features
from grafit_jax.retrieval.evaluate import evaluate_features
from grafit_jax.runs import workdir
from grafit_jax.runs.checkpoint import Checkpoints
from helpers.devices import use_devices
from helpers.runs import small_config, split_features


def problem(n=420, num_classes=4, dim=10, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, num_classes, n)
    centre = np.random.default_rng(7).normal(size=(num_classes, dim))
    return ((noise * rng.normal(size=(n, dim)) + centre[label]) / 4).astype(np.float32), label


@pytest.mark.parametrize("l2", [1e-1, 1e-2, 1e-3])
def test_scikit_learn_finds_the_same_classifier(l2):
    rows, label = problem()
    got = probe.fit(rows, label, 4, l2)[0]
    expected = LogisticRegression(C=1 / (l2 * len(rows)), tol=1e-10, max_iter=10_000).fit(rows.astype(float), label)
    # To a thousandth of the largest weight, the limit of float32 at the flat minimum of the weakest penalty.
    np.testing.assert_allclose(got[:-1].T, expected.coef_, atol=1e-3 * np.abs(expected.coef_).max())
    # The biases are determined up to a constant.
    np.testing.assert_allclose(got[-1] - got[-1].mean(), expected.intercept_ - expected.intercept_.mean(), atol=1e-3)
    test, test_label = problem(n=500, seed=1)
    np.testing.assert_array_equal(probe.predict(got, test), expected.predict(test.astype(float)))
    assert 0.6 < np.mean(expected.predict(test.astype(float)) == test_label) < 1


def test_shift_and_scale_of_the_embeddings_only_change_the_unit_of_l2():
    rows, label = problem()
    test, test_label = problem(n=500, seed=1)
    centred = rows - rows.mean(0)
    square = np.mean(np.sum(centred.astype(float) ** 2, axis=1))
    expected = LogisticRegression(C=1 / (1e-3 * square * len(rows)), tol=1e-10, max_iter=10_000)
    accuracy = expected.fit(centred.astype(float), label).score((test - rows.mean(0)).astype(float), test_label)
    for scale, shift in ((1, 0), (300, 40), (1e-3, -0.5)):
        got = probe.probe(rows * scale + shift, label, test * scale + shift, test_label, l2=1e-3)
        assert got == {"top1": pytest.approx(accuracy, abs=0.005), "l2": 1e-3}


def test_l2_is_chosen_on_training_images_only():
    # On few noisy images the weak penalties overfit; they are the best on the images they were trained on.
    rows, label = problem(n=200, dim=60, noise=2.0)
    test, test_label = problem(n=600, dim=60, seed=1, noise=2.0)
    got = probe.probe(rows, label, test, test_label)
    shuffled = probe.probe(rows, label, test, np.random.default_rng(0).permutation(test_label))
    assert shuffled["l2"] == got["l2"] and shuffled["top1"] < got["top1"]
    # The choice of scikit-learn on the same held-out images.
    held = probe._held_out(label)
    scaled = rows - rows.mean(0)
    scaled = (scaled / np.sqrt(np.mean(np.sum(scaled**2, axis=1)))).astype(float)
    on_held, on_kept = {}, {}
    for l2 in (0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        model = LogisticRegression(C=1 / (l2 * np.sum(~held)), tol=1e-8, max_iter=10_000).fit(
            scaled[~held], label[~held]
        )
        on_held[l2], on_kept[l2] = (model.score(scaled[side], label[side]) for side in (held, ~held))
    # max returns the first maximum, that is the largest l2.
    assert got["l2"] == max(on_held, key=on_held.get) != max(on_kept, key=on_kept.get)
    # The final classifier is trained on all images.
    assert probe.probe(rows, label, test, test_label, l2=got["l2"]) == got


def test_a_share_of_every_class_is_held_out():
    label = np.repeat([0, 1, 2, 3], [10, 25, 2, 1])
    held = probe._held_out(label)
    # A fifth of 10 and 25, one of two, none of one.
    np.testing.assert_array_equal(np.bincount(label[held], minlength=4), [2, 5, 1, 0])
    assert not held[:2].all() and not held[10:15].all()  # drawn at random, not the first of each class
    mixed = np.random.default_rng(0).permutation(label)
    np.testing.assert_array_equal(np.bincount(mixed[probe._held_out(mixed)], minlength=4), [2, 5, 1, 0])


def test_eight_devices_give_the_classifier_of_one(monkeypatch, eight_devices):
    rows, label = problem(n=2100)
    assert parallel.num_devices() == 8
    eight = probe.fit(rows, label, 4, 1e-2)[0]
    use_devices(monkeypatch, 1)
    np.testing.assert_allclose(probe.fit(rows, label, 4, 1e-2)[0], eight, atol=1e-3)


def test_classes_may_be_missing_on_either_side_and_have_any_names():
    # Classes along a line; "b" has no test image, "z" no training image.
    names = np.array(["a", "b", "c"])[[0, 0, 0, 1, 1, 1, 2, 2, 2]]
    rows = np.array([[-1.1], [-1], [-0.9], [-0.1], [0], [0.1], [0.9], [1], [1.1]])
    test = np.array([[-1.0], [1.0], [0.0], [1.2]])
    assert probe.probe(rows, names, test, np.array(["a", "c", "z", "c"]), l2=1e-4) == {"top1": 0.75, "l2": 1e-4}


def test_a_single_training_class_is_always_predicted():
    rows = np.random.default_rng(0).normal(size=(6, 3))
    assert probe.probe(rows, np.full(6, 5), rows[:4], np.array([5, 5, 5, 2])) == {"top1": 0.75, "l2": 0.1}


def test_a_fit_that_stops_short_of_the_minimum_is_a_one_line_warning(monkeypatch, capsys):
    rows, label = problem()
    probe.probe(rows, label, rows, label, l2=1e-2)
    probe.probe(rows, label, rows, label)  # the fits that choose l2 do not warn either
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(probe, "_MAX_ITERATIONS", 3)
    probe.probe(rows, label, rows, label)
    warned = capsys.readouterr().err
    assert re.fullmatch(
        r"warning: probe with l2 = \S+: found a largest gradient of \de-0[1-5] after 3 steps; expected at most "
        r"1e-07; top1 may be slightly off\.\n",
        warned,
    ), warned


def test_constant_features_give_the_most_frequent_class():
    label = np.array([0, 1, 1, 1, 2, 2])
    assert probe.probe(np.ones((6, 3)), label, np.ones((4, 3)), np.array([1, 1, 1, 0]))["top1"] == 0.75


E = np.eye(4)
L = np.array([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((E - np.inf, L, E, L), r"train_embedding: found 4 rows with NaN or infinite values, first row 0"),
        ((E, L, E * np.nan, L), r"test_embedding: found 4 rows with NaN"),
        (
            (E, L, E[:, :3], L),
            r"found train_embedding with 4 dimensions and test_embedding with 3; expected embeddings of",
        ),
        ((E, L[:3], E, L), r"train_label: found shape \(3,\); expected \(4,\), one per embedding"),
        ((E, L, E, L[:3]), r"test_label: found shape \(3,\); expected \(4,\), one per embedding"),
        (
            (E, np.arange(4), E, L),
            r"single training image in every class; expected more, to choose l2; add images or pass l2",
        ),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(UserError, match=message):
        probe.probe(*arguments)


# In evaluations


def test_a_probe_of_features_requires_a_gallery_and_scores_every_level():
    rows, label = problem()
    test, test_label = problem(n=90, seed=1)
    options = {"leave_out": False, "ks": (1,), "knn_k": 3, "knn_temperature": 0.05}
    queries = Features(test, np.arange(90), label=test_label, coarse_label=test_label // 2)
    gallery = Features(rows, np.arange(420), label=label, coarse_label=label // 2)
    plain = evaluate_features(queries, gallery, **options)
    got = evaluate_features(queries, gallery, probe=True, **options)
    fine = probe.probe(rows, label, test, test_label)
    coarse = probe.probe(rows, label // 2, test, test_label // 2)
    assert got == plain | {
        "probe_top1": fine["top1"],
        "probe_l2": fine["l2"],
        "coarse/probe_top1": coarse["top1"],
        "coarse/probe_l2": coarse["l2"],
    }
    with pytest.raises(UserError, match=r"found --probe without --gallery; pass the training embeddings"):
        evaluate_features(queries, None, probe=True, **options)


@pytest.mark.slow
def test_the_probe_of_a_workdir_uses_trunk_embeddings(tmp_path, cli):
    config = small_config("baseline_mlp")
    workdir.claim(tmp_path / "run", config)
    of_run = experiment.load(config)
    state = restore.initial_state(of_run)
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(0, state, None)
    checkpoints.close()
    evaluated = cli("evaluate", f"--workdir={tmp_path / 'run'}", "--probe")
    assert evaluated.returncode == 0, evaluated.stderr[-2000:]
    got = json.loads(evaluated.stdout)
    train, test = (split_features(of_run, state, split) for split in ("train", "test"))
    for level, prefix in (("label", ""), ("coarse_label", "coarse/")):
        expected = probe.probe(train.embedding, getattr(train, level), test.embedding, getattr(test, level))
        assert got[f"{prefix}probe_top1"] == pytest.approx(expected["top1"], abs=0.01)
        assert got[f"{prefix}probe_l2"] == expected["l2"]
    assert {k for k in got if "probe_" in k} == {f"{p}probe_{k}" for p in ("", "coarse/") for k in ("top1", "l2")}
    assert "projector/knn_top1" in got
    # The same from embedding files.
    for split, embedded in (("train", train), ("test", test)):
        embeddings.save(tmp_path / f"{split}.npz", embedded)
    paths = (f"--features={tmp_path}/test.npz", f"--gallery={tmp_path}/train.npz")
    evaluated = cli("evaluate", *paths, "--probe", "--knn_k=5")
    assert evaluated.returncode == 0, evaluated.stderr[-2000:]
    assert json.loads(evaluated.stdout)["probe_top1"] == pytest.approx(got["probe_top1"], abs=0.01)
