"""The probe on frozen embeddings: scikit-learn's logistic regression, and what it must not look at."""

import json
import re

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from grafit_jax import experiment, model, parallel, restore
from grafit_jax.errors import UserError
from grafit_jax.retrieval import embeddings, probe
from grafit_jax.retrieval.embeddings import Features
from grafit_jax.retrieval.evaluate import evaluate_features
from grafit_jax.runs import workdir
from grafit_jax.runs.checkpoint import Checkpoints
from helpers.devices import use_devices
from helpers.runs import small_config


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
    # To a thousandth of the largest: float32 tells no better where a minimum as flat as the weakest penalty's is.
    np.testing.assert_allclose(got[:-1].T, expected.coef_, atol=1e-3 * np.abs(expected.coef_).max())
    # A number added to all biases changes nothing.
    np.testing.assert_allclose(got[-1] - got[-1].mean(), expected.intercept_ - expected.intercept_.mean(), atol=1e-3)
    test, test_label = problem(n=500, seed=1)
    np.testing.assert_array_equal(probe.predict(got, test), expected.predict(test.astype(float)))
    assert 0.6 < np.mean(expected.predict(test.astype(float)) == test_label) < 1


def test_shift_and_scale_of_the_embeddings_change_nothing_but_the_unit_of_l2():
    rows, label = problem()
    test, test_label = problem(n=500, seed=1)
    centred = rows - rows.mean(0)
    square = np.mean(np.sum(centred.astype(float) ** 2, axis=1))
    expected = LogisticRegression(C=1 / (1e-3 * square * len(rows)), tol=1e-10, max_iter=10_000)
    accuracy = expected.fit(centred.astype(float), label).score((test - rows.mean(0)).astype(float), test_label)
    for scale, shift in ((1, 0), (300, 40), (1e-3, -0.5)):
        got = probe.probe(rows * scale + shift, label, test * scale + shift, test_label, l2=1e-3)
        assert got == {"top1": pytest.approx(accuracy, abs=0.005), "l2": 1e-3}


def test_l2_is_chosen_on_training_images_alone():
    # Few and noisy images: the weak penalties overfit. On what they were trained on, they are the best.
    rows, label = problem(n=200, dim=60, noise=2.0)
    test, test_label = problem(n=600, dim=60, seed=1, noise=2.0)
    got = probe.probe(rows, label, test, test_label)
    shuffled = probe.probe(rows, label, test, np.random.default_rng(0).permutation(test_label))
    assert shuffled["l2"] == got["l2"] and shuffled["top1"] < got["top1"]
    # The choice, by scikit-learn on the same share.
    held = probe._held_out(label)
    scaled = rows - rows.mean(0)
    scaled = (scaled / np.sqrt(np.mean(np.sum(scaled**2, axis=1)))).astype(float)
    on_held, on_kept = {}, {}
    for l2 in (0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        model = LogisticRegression(C=1 / (l2 * np.sum(~held)), tol=1e-8, max_iter=10_000).fit(
            scaled[~held], label[~held]
        )
        on_held[l2], on_kept[l2] = (model.score(scaled[side], label[side]) for side in (held, ~held))
    # max takes the first, the strongest, of equals.
    assert got["l2"] == max(on_held, key=on_held.get) != max(on_kept, key=on_kept.get)
    # What is chosen is then trained on all of them.
    assert probe.probe(rows, label, test, test_label, l2=got["l2"]) == got


def test_a_share_of_every_class_is_held_out():
    label = np.repeat([0, 1, 2, 3], [10, 25, 2, 1])
    held = probe._held_out(label)
    # A fifth of 10 and 25, one of two, none of a single one.
    np.testing.assert_array_equal(np.bincount(label[held], minlength=4), [2, 5, 1, 0])
    assert not held[:2].all() and not held[10:15].all()  # drawn, not the first ones of a class
    mixed = np.random.default_rng(0).permutation(label)
    np.testing.assert_array_equal(np.bincount(mixed[probe._held_out(mixed)], minlength=4), [2, 5, 1, 0])


def test_the_number_of_devices_makes_no_difference(monkeypatch, eight_devices):
    rows, label = problem(n=2100)
    assert parallel.num_devices() == 8
    eight = probe.fit(rows, label, 4, 1e-2)[0]
    use_devices(monkeypatch, 1)
    np.testing.assert_allclose(probe.fit(rows, label, 4, 1e-2)[0], eight, atol=1e-3)


def test_classes_may_be_missing_on_either_side_and_have_any_names():
    # Along a line; class "b" has no test image, class "z" no training image.
    names = np.array(["a", "b", "c"])[[0, 0, 0, 1, 1, 1, 2, 2, 2]]
    rows = np.array([[-1.1], [-1], [-0.9], [-0.1], [0], [0.1], [0.9], [1], [1.1]])
    test = np.array([[-1.0], [1.0], [0.0], [1.2]])
    assert probe.probe(rows, names, test, np.array(["a", "c", "z", "c"]), l2=1e-4) == {"top1": 0.75, "l2": 1e-4}


def test_one_class_is_always_right_where_it_is():
    rows = np.random.default_rng(0).normal(size=(6, 3))
    assert probe.probe(rows, np.full(6, 5), rows[:4], np.array([5, 5, 5, 2])) == {"top1": 0.75, "l2": 0.1}


def test_steps_that_end_short_of_the_minimum_are_told_in_one_line(monkeypatch, capsys):
    rows, label = problem()
    probe.probe(rows, label, rows, label, l2=1e-2)
    probe.probe(rows, label, rows, label)  # nor do those fits tell that l2 is chosen by
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(probe, "_MAX_ITERATIONS", 3)
    probe.probe(rows, label, rows, label)
    warned = capsys.readouterr().err
    assert re.fullmatch(
        r"warning: the probe with l2 = \S+ stopped at 3 steps, short of its minimum \(largest gradient \de-0[1-5], "
        r"wanted 1e-07\): its top-1 may be a little off\n",
        warned,
    ), warned


def test_constant_features_leave_the_most_frequent_class():
    label = np.array([0, 1, 1, 1, 2, 2])
    assert probe.probe(np.ones((6, 3)), label, np.ones((4, 3)), np.array([1, 1, 1, 0]))["top1"] == 0.75


E = np.eye(4)
L = np.array([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((E - np.inf, L, E, L), r"train_embedding has 4 rows with NaN or infinite values, the first is row 0"),
        ((E, L, E * np.nan, L), r"test_embedding has 4 rows with NaN"),
        ((E, L, E[:, :3], L), r"train_embedding has 4 dimensions and test_embedding 3: want embeddings of"),
        ((E, L[:3], E, L), r"train_label has shape \(3,\): want one for each of 4 embeddings"),
        ((E, L, E, L[:3]), r"test_label has shape \(3,\): want one for each of 4 embeddings"),
        ((E, np.arange(4), E, L), r"every class has a single training image: want another one, to choose l2 by, or l2"),
    ],
)
def test_mistakes_are_told(arguments, message):
    with pytest.raises(UserError, match=message):
        probe.probe(*arguments)


# With the other metrics


def test_a_probe_of_features_needs_a_gallery_and_is_told_at_every_level():
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
    with pytest.raises(UserError, match=r"found --probe without --gallery: want the training embeddings"):
        evaluate_features(queries, None, probe=True, **options)


@pytest.mark.slow
def test_a_workdirs_probe_is_of_its_trunk(tmp_path, cli):
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
    train, test = (model.embed(of_run, state, split, "trunk") for split in ("train", "test"))
    for level, prefix in (("label", ""), ("coarse_label", "coarse/")):
        expected = probe.probe(train.embedding, getattr(train, level), test.embedding, getattr(test, level))
        assert got[f"{prefix}probe_top1"] == pytest.approx(expected["top1"], abs=0.01)
        assert got[f"{prefix}probe_l2"] == expected["l2"]
    assert {k for k in got if "probe_" in k} == {f"{p}probe_{k}" for p in ("", "coarse/") for k in ("top1", "l2")}
    assert "projector/knn_top1" in got
    # The same from the embeddings in files.
    for split, embedded in (("train", train), ("test", test)):
        embeddings.save(tmp_path / f"{split}.npz", embedded)
    paths = (f"--features={tmp_path}/test.npz", f"--gallery={tmp_path}/train.npz")
    evaluated = cli("evaluate", *paths, "--probe", "--knn_k=5")
    assert evaluated.returncode == 0, evaluated.stderr[-2000:]
    assert json.loads(evaluated.stdout)["probe_top1"] == pytest.approx(got["probe_top1"], abs=0.01)
