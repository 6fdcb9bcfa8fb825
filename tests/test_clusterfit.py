"""ClusterFit: trains on clusters of another run's features, evaluates on true labels, and clusters only once."""

import json
import shutil

import numpy as np
import pytest

from grafit_jax import config_checks, experiment, restore
from grafit_jax.commands import training
from grafit_jax.errors import UserError
from grafit_jax.retrieval.clustering import kmeans
from grafit_jax.retrieval.evaluate import Embedded, evaluate
from grafit_jax.runs import clusterfit, workdir
from helpers.runs import interrupted_in_the_second_epoch, small_config, split_features

K = 7


def config_of(trained_once, method="clusterfit", **overrides):
    overrides = {
        "clusterfit.source": str(trained_once),
        "clusterfit.num_clusters": K,
        "checkpoint.every_epochs": 1,
    } | overrides
    return small_config(method, **overrides)


def test_training_labels_are_clusters_of_the_sources_features_and_evaluation_uses_true_labels(trained_once):
    run = restore.load(config_of(trained_once, seed=3))
    features = split_features(*restore.newest(trained_once), "train").embedding
    expected = kmeans(features, K, seed=3, cosine=True)
    np.testing.assert_array_equal(run.clusters.label, expected.label)
    # Every image belongs to the centre with the highest cosine.
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    np.testing.assert_array_equal((unit(features) @ unit(run.clusters.centre).T).argmax(1), run.clusters.label)
    assert np.bincount(run.clusters.label, minlength=K).all()

    true = experiment.load(small_config("baseline")).records["train"]
    np.testing.assert_array_equal(run.records["train"].train_label, true.train_label)
    np.testing.assert_array_equal(run.training.train_label, run.clusters.label)
    np.testing.assert_array_equal(run.training.label, true.label)
    assert run.training.image is run.records["train"].image and len(run.training.train_names) == K
    data, _ = next(iter(experiment.make_feed(run).epoch(0)))
    np.testing.assert_array_equal(data["label"], run.clusters.label)  # the labels of batches

    state, memory = restore.initial(run)
    assert memory is None and not state.target_params
    got = experiment.evaluate(run, state)
    embedded = {split: run.embed_fn(state.variables, r.image)["trunk"] for split, r in run.records.items()}
    test = run.records["test"]
    expected = evaluate(
        Embedded(embedded["test"], {"": test.label, "coarse": test.train_label}),
        Embedded(embedded["train"], {"": true.label, "coarse": true.train_label}),
        ks=(1,), knn_k=30, knn_temperature=0.05,
    )  # fmt: skip
    assert {k: got[k] for k in expected} == expected
    assert not {"top1", "coarse/top1"} & got.keys()  # the classifier predicts clusters


def test_clusterfit_spherical_false_gives_euclidean_clusters(trained_once):
    run = restore.load(config_of(trained_once, **{"clusterfit.spherical": False}))
    features = split_features(*restore.newest(trained_once), "train").embedding
    np.testing.assert_array_equal(run.clusters.label, kmeans(features, K).label)


@pytest.mark.parametrize(("method", "parts"), [("clusterfit", {"trunk"}), ("clusterfit_plus", {"trunk", "projector"})])
def test_the_classifier_of_clusters_is_on_the_features_or_on_the_projection(trained_once, method, parts):
    run = restore.load(config_of(trained_once, method))
    state = restore.initial_state(run)
    assert set(state.params) == parts | {"classifier"}
    width = 16 if "projector" in parts else run.embed_fn(state.variables, run.records["test"].image[:1])[
        "trunk"
    ].shape[1]  # fmt: skip
    assert state.params["classifier"]["kernel"].shape == (width, K)


def test_resuming_and_evaluating_need_neither_the_source_nor_another_clustering(
    trained_once, tmp_path, monkeypatch, trains
):
    source, path = tmp_path / "baseline", tmp_path / "clusterfit"
    shutil.copytree(trained_once, source)
    config = config_of(source)
    interrupted_in_the_second_epoch(config, path)
    started, written = clusterfit.load(path, 899), (path / "clusters.npz").read_bytes()
    assert started.centre.shape[0] == K and len(started.label) == 899
    data = json.loads((path / "data.json").read_text())
    assert data.keys() == {"train", "test", "clusters"}
    assert {k: data[k] for k in ("train", "test")} == json.loads((source / "data.json").read_text())

    monkeypatch.setattr(restore, "kmeans", None)
    shutil.rmtree(source)
    metrics = trains(config, path)
    assert metrics["step"] == 28 and (path / "clusters.npz").read_bytes() == written
    log = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert "cluster_accuracy" in log[0] and "coarse_accuracy" not in log[0]
    assert experiment.evaluate(*restore.newest(path)) == metrics
    assert trains(config, path) == metrics

    # Changed clusters are changed labels.
    moved = kmeans_like(started, np.roll(started.label, 1))
    clusterfit.save(path, moved)
    for again in (lambda: trains(config, path), lambda: restore.newest(path)):
        with pytest.raises(UserError, match=r"other images or labels than when the run started \(split clusters\)"):
            again()
    (path / "clusters.npz").write_bytes(written[:100])
    with pytest.raises(
        UserError, match=r"clusters\.npz cannot be read \(.*\); remove the file to compute the clusters again"
    ):
        trains(config, path)


def kmeans_like(clusters, label):
    return type(clusters)(clusters.centre, label, clusters.inertia, clusters.iterations)


def test_an_unsuitable_workdir_is_refused_before_clustering(trained_once, tmp_path, monkeypatch):
    monkeypatch.setattr(restore, "newest", None)
    workdir.claim(tmp_path / "run", config_of(trained_once))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("")
    for path, message in (
        (tmp_path / "run", r"another config \(clusterfit\.num_clusters: 7 -> 8\)"),
        (tmp_path / "thesis", r"thesis: found unrelated files \(chapter1\.tex"),
        (
            tmp_path / "thesis" / "chapter1.tex" / "run",
            r"cannot write to the workdir .*; free disk space, make it writable or use another --w",
        ),
    ):
        with pytest.raises(UserError, match=message):
            training.train(config_of(trained_once, **{"clusterfit.num_clusters": 8}), path)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["config.json"]
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]


def test_an_unsuitable_source_is_refused_before_anything_is_written(trained_once, tmp_path, monkeypatch):
    path = tmp_path / "run"
    unfinished = tmp_path / "unfinished"
    shutil.copytree(trained_once, unfinished)
    (unfinished / "metrics.json").unlink()
    older = tmp_path / "older"
    shutil.copytree(trained_once, older)
    (older / "data.json").unlink()
    monkeypatch.setenv("HOME", str(tmp_path))
    for overrides, message in (
        (
            {"clusterfit.source": str(tmp_path / "none")},
            r"clusterfit\.source = .*none: found no run \(no config\.json\); expected the workdir of a finished base",
        ),
        ({"clusterfit.source": str(unfinished)}, r"unfinished: found an unfinished run \(no metrics\.json\); let"),
        ({"clusterfit.source": "~/unfinished"}, rf"{tmp_path}/unfinished: found an unfinished run"),
        ({"clusterfit.source": str(older)}, r"older: found an unfinished run \(no data\.json\); let"),
        ({"data.train_level": "fine"}, r"found a run trained on level coarse; expected level fine; use a run with"),
        ({"data.holdout": 0.2}, r"found a run on other images or labels \(split test, train\); expected the same data"),
        ({"clusterfit.num_clusters": 900}, r"clusterfit\.num_clusters = 900; expected at most 899, the number of"),
        ({"clusterfit.num_clusters": 1}, r"clusterfit\.num_clusters = 1; expected at least 2 clusters"),
        ({"clusterfit.source": ""}, r"clusterfit\.source = ''; expected the workdir of a finished baseline"),
    ):
        with pytest.raises(UserError, match=message):
            training.train(config_of(trained_once, **overrides), path)
        assert not path.exists()
    # Other methods need no source.
    config_checks.validate(small_config("baseline"), num_devices=1)
