"""Evaluation drops and double-counts nothing, and its metrics agree with scikit-learn on the same arrays."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors

from grafit_jax import evaluation, experiment, parallel, pulse, restore
from grafit_jax.errors import UserError
from grafit_jax.retrieval.cluster_metrics import clustering_metrics
from grafit_jax.retrieval.evaluate import Embedded, evaluate
from helpers import twins
from helpers.runs import small_config

KS = (1, 2, 5)


def split(rng, n, num_fine=6):
    label = np.arange(n) % num_fine
    embedding = rng.normal(size=(n, 12)) + np.eye(num_fine, 12)[label]
    labels = {"": label.astype(np.int32), "coarse": (label // 2).astype(np.int32)}
    return Embedded(embedding.astype(np.float32), labels)


def test_metrics_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    train, test = split(rng, 121), split(rng, 83)
    got = evaluate(test, train, ks=KS, knn_k=7, knn_temperature=0.05)

    unit = lambda x: x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)  # noqa: E731
    q, g = unit(test.embedding), unit(train.embedding)
    near = NearestNeighbors(n_neighbors=6, metric="cosine").fit(q).kneighbors(q)[1][:, 1:]
    distance, near_train = NearestNeighbors(n_neighbors=7, metric="cosine").fit(g).kneighbors(q)
    for level, prefix in (("", ""), ("coarse", "coarse/")):
        label, train_label = test.labels[level], train.labels[level]
        for k in KS:
            hit = (label[near[:, :k]] == label[:, None]).any(1)
            assert got[f"{prefix}recall@{k}"] == pytest.approx(hit.mean(), abs=1e-9)
        ap = [average_precision_score(np.delete(label == label[i], i), np.delete(q @ q[i], i)) for i in range(len(q))]
        assert got[f"{prefix}map"] == pytest.approx(np.mean(ap), abs=1e-5)
        votes = np.zeros((len(q), label.max() + 1))
        for i in range(len(q)):
            np.add.at(votes[i], train_label[near_train[i]], np.exp((1 - distance[i]) / 0.05))
        assert got[f"{prefix}knn_top1"] == pytest.approx((votes.argmax(1) == label).mean(), abs=1e-9)
        for k in KS:
            hit = (train_label[near_train[:, :k]] == label[:, None]).any(1)
            assert got[f"{prefix}gallery/recall@{k}"] == pytest.approx(hit.mean(), abs=1e-7)


def test_retrieval_from_training_images_golden():
    # The first test image has its class first, the second one second, and class 2 of the third is not in training.
    train = Embedded(np.array([[1, 0], [0, 1]], np.float32), {"": np.array([0, 1], np.int32)})
    test = Embedded(np.array([[1, 0.1], [1, 0.2], [0, 1]], np.float32), {"": np.array([0, 1, 2], np.int32)})
    got = evaluate(test, train, ks=(1, 2), knn_k=1, knn_temperature=0.05)
    assert (got["gallery/recall@1"], got["gallery/recall@2"]) == (0.5, 1.0)
    assert got["knn_top1"] == pytest.approx(1 / 3)  # one vote, however many neighbours recall needs
    # Values of k beyond the number of training images have no result.
    assert "gallery/recall@3" not in evaluate(test, train, ks=(1,), knn_k=1, knn_temperature=0.05)
    one = Embedded(train.embedding[:1], {"": train.labels[""][:1]})
    assert {k for k in evaluate(test, one, ks=(1, 2), knn_k=1, knn_temperature=0.05) if "gallery" in k} == {
        "gallery/recall@1"
    }


def test_clusters_are_compared_with_the_finest_known_level_and_within_the_one_above():
    rng = np.random.default_rng(0)
    train, test = split(rng, 121), split(rng, 83)
    options = {"ks": KS, "knn_k": 7, "knn_temperature": 0.05}
    expected = clustering_metrics(test.embedding, test.labels[""], test.labels["coarse"])
    assert evaluate(test, train, clusters=True, **options) == evaluate(test, train, **options) | expected


def test_a_run_measures_clusters_after_its_last_step(trains, tmp_path):
    config = small_config("baseline_mlp", **{"eval.clusters": True, "eval.every_epochs": 1})
    metrics = trains(config, tmp_path / "run")
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in log if "eval/map" in line]
    assert ["eval/cluster_ari" in line for line in evaluated] == [False, True]
    run, state = restore.newest(tmp_path / "run")
    labels = run.records["test"].labels
    for layer, prefix in (("trunk", ""), ("projector", "projector/")):
        embedding = run.embed_fn(state.variables, run.records["test"].image)[layer]
        expected = clustering_metrics(embedding, labels[""], labels["coarse"])
        assert {key: metrics[f"{prefix}{key}"] for key in expected} == expected
    # A run without them has them on demand.
    plain = dataclasses.replace(run, config=small_config("baseline_mlp"))
    assert "cluster_ari" not in experiment.evaluate(plain, state)
    assert experiment.evaluate(plain, state, clusters=True) == metrics


def test_queries_without_another_image_of_their_class_are_excluded_and_counted():
    # Classes 0 0 1: the third image has no other of its class. The first two find each other at rank 1.
    embedding = np.array([[1, 0], [1, 0.1], [0, 1]], np.float32)
    label = np.array([0, 0, 1], np.int32)
    test = Embedded(embedding, {"": label, "coarse": np.zeros(3, np.int32)})
    got = evaluate(test, test, ks=(1,), knn_k=1, knn_temperature=0.05)
    assert (got["recall@1"], got["map"], got["queries_without_positive"]) == (1.0, 1.0, 1)
    assert (got["coarse/recall@1"], got["coarse/map"], got["coarse/queries_without_positive"]) == (1.0, 1.0, 0)


@pytest.mark.parametrize(
    ("value", "found"),
    [(np.nan, "2 rows with NaN or infinite values, first row 3"), (0.0, "2 zero vectors, first row 3")],
)
def test_embeddings_of_a_network_that_has_diverged_name_the_remedy_for_its_training(value, found):
    run = experiment.load(small_config())

    def embed(variables, images):
        rows = np.ones((len(images), 4), np.float32)
        rows[[3, 7]] = value if images is run.records["test"].image else 1
        return {"trunk": np.ones((len(images), 4), np.float32), "projector": rows}

    with pytest.raises(
        UserError, match=rf"projector of split test: found {found}.*; lower optimizer\.learning_rate or raise"
    ):
        experiment.evaluate(dataclasses.replace(run, embed_fn=embed), restore.initial(run)[0])


def test_without_fine_labels_the_coarse_metrics_remain():
    rng = np.random.default_rng(1)
    test = split(rng, 30)
    test = Embedded(test.embedding, {"coarse": test.labels["coarse"]})
    got = evaluate(test, test, ks=KS, knn_k=3, knn_temperature=0.05)
    assert got and all(key.startswith("coarse/") for key in got)


@pytest.mark.parametrize("batch_size", [8, 100, 40])
@pytest.mark.quick
def test_every_image_is_embedded_once_for_each_batch_size(batch_size, eight_devices):
    # 81 = 2 * 40 + 1 images over 8 devices: the last batch holds one image and 39 of padding.
    run = experiment.load(small_config(**{"eval.batch_size": batch_size}))
    state, _ = restore.initial(run)
    images = run.records["test"].image[:81]
    pulse.at(5, "evaluating")
    got = run.embed_fn(state.variables, images)
    # Each batch beats the watchdog's pulse, so a long evaluation does not count as a hang.
    number = -(-81 // (-(-batch_size // 8) * 8))
    assert pulse.here() == pulse.Place(5, "evaluating", beats=number + 1)

    variables = jax.device_get(state.variables)
    from grafit_jax.views import augment

    expected = run.network.apply(variables, augment.plain_view(images, views=run.views), train=False, method="embed")
    np.testing.assert_allclose(got["trunk"], expected.features, atol=1e-5)
    np.testing.assert_allclose(got["projector"], expected.projection, atol=1e-5)
    assert parallel.num_devices() == 8


def test_embeddings_leave_the_devices_batch_by_batch(monkeypatch):
    run = experiment.load(small_config(**{"eval.batch_size": 16}))
    state, _ = restore.initial(run)
    held = []

    def in_order(images, size):
        for start in range(0, len(images), size):
            held.append(sum(x.nbytes for x in jax.live_arrays()))
            yield images[start : start + size]

    monkeypatch.setattr(evaluation, "in_order", in_order)
    images = np.concatenate([run.records["test"].image] * 2)[: 40 * 16]
    rows = run.embed_fn(state.variables, images)
    assert len(held) == 40 and held[-1] <= held[3]
    assert all(x.base is None and len(x) == len(images) for x in rows.values())  # one copy on the host


def test_a_process_without_images_of_its_own_joins_the_gather(monkeypatch):
    run = experiment.load(small_config())
    state, _ = restore.initial(run)
    parts = []  # what it sends to the others if there are more processes than images
    monkeypatch.setattr(parallel, "own_part", lambda total: slice(total, total))
    monkeypatch.setattr(parallel, "gather", lambda rows, total: parts.append(rows.shape))
    run.embed_fn(state.variables, run.records["test"].image[:3])
    assert parts and {shape[0] for shape in parts} == {0}


def test_headline_is_plain_and_the_others_are_prefixed():
    run = experiment.load(small_config(**{"eval.layers": ("projector", "trunk")}))
    state, _ = restore.initial(run)
    got = experiment.evaluate(run, state)
    swapped = experiment.load(small_config())
    other = experiment.evaluate(swapped, state)
    assert got["map"] == other["projector/map"] and got["trunk/map"] == other["map"]
    assert got["map"] != got["trunk/map"]


def test_the_layer_concat_has_the_mean_of_the_similarities():
    run = experiment.load(small_config(**{"eval.layers": ("concat",)}))
    state, _ = restore.initial(run)
    got = experiment.evaluate(run, state)
    rows = run.embed_fn(state.variables, run.records["test"].image)
    trunk, projector = (twins.unit(rows[name]) for name in ("trunk", "projector"))
    label = run.records["test"].label
    similarity = trunk @ trunk.T + projector @ projector.T
    expected = []
    for query in range(len(label)):
        others = np.arange(len(label)) != query
        expected.append(average_precision_score(label[others] == label[query], similarity[query, others]))
    assert got["map"] == pytest.approx(np.mean(expected), abs=1e-5) and "projector/map" not in got


def test_the_crop_of_test_images_does_not_change_the_initial_memory():
    whole, centre = (
        experiment.load(small_config("grafit", **options))
        for options in ({}, {"eval.crop": "centre", "eval.resize": 12})
    )
    state = restore.initial_state(whole)
    memories = [restore.initial_memory(run, state).embedding for run in (whole, centre)]
    np.testing.assert_array_equal(*memories)
    # The evaluated crop is the central 8 of 12 pixels per side.
    image = np.zeros((1, 12, 12, 1), np.uint8)
    image[:, 2:10, 2:10] = 255
    white = np.full((1, 8, 8, 1), 255, np.uint8)
    variables = state.variables
    seen = centre.embed_fn(variables, image)["trunk"]
    np.testing.assert_allclose(seen, whole.embed_fn(variables, white)["trunk"], atol=1e-5)
    assert np.abs(seen - whole.embed_fn(variables, image)["trunk"]).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "size", "resize"),
    [
        ({}, 8, 0), ({"eval.size": 16}, 16, 0),
        ({"eval.crop": "centre"}, 8, 9), ({"eval.crop": "centre", "eval.size": 224}, 224, 256),
        ({"eval.crop": "centre", "eval.size": 16, "eval.resize": 16}, 16, 16),
    ],
)  # fmt: skip
def test_size_crop_and_resize_of_test_images(options, size, resize):
    views = experiment.load(small_config("grafit", **options)).eval_views
    assert (views.size, views.resize) == (size, resize)
