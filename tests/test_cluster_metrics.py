"""Agreement of clusters with classes, against scikit-learn, all permutations and by hand."""

import itertools

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.cluster import KMeans

from grafit_jax.retrieval import cluster_metrics
from grafit_jax.retrieval.cluster_metrics import clustering_metrics, scores
from grafit_jax.retrieval.clustering import Clusters
from helpers import twins


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("classes", "clusters"), [(4, 4), (5, 3), (2, 6), (1, 3), (3, 1)])
def test_scores_equal_those_of_scikit_learn_and_the_best_of_all_permutations(seed, classes, clusters):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, 60)
    cluster = np.where(rng.random(60) < 0.5, label % clusters, rng.integers(0, clusters, 60)) + 7
    got = scores(label, cluster)
    assert got["cluster_ari"] == pytest.approx(sk.adjusted_rand_score(label, cluster), abs=1e-12)
    assert got["cluster_nmi"] == pytest.approx(sk.normalized_mutual_info_score(label, cluster), abs=1e-12)
    size = max(classes, clusters)
    best = max(np.sum(np.array(p)[label] == cluster - 7) for p in itertools.permutations(range(size)))
    assert got["cluster_accuracy"] == pytest.approx(best / 60)


def test_golden():
    # a a a b b | clusters 0 0 1 1 1: a-0 and b-1 match 2 + 2 of 5. Pairs: together in both 1 + 1 = 2; of classes 3 + 1,
    # of clusters 1 + 3; expected 4·4/10 = 1.6; ARI = (2 - 1.6) / (4 - 1.6).
    got = scores(np.array(["a", "a", "a", "b", "b"]), np.array([0, 0, 1, 1, 1]))
    assert got["cluster_accuracy"] == 0.8
    assert got["cluster_ari"] == pytest.approx(1 / 6)
    equal = scores(np.array([3, 3, 1]), np.array([0, 0, 5]))
    assert [*equal.values()] == [1, 1, 1]
    assert [*scores(np.array([3]), np.array([0])).values()] == [1, 1, 1]


def hierarchy(seed=0, dim=8):
    """Three coarse classes with 3, 2 and 1 separate clusters of rows; a fifth of the fine labels is drawn at random."""
    rng = np.random.default_rng(seed)
    coarse = np.repeat([0, 1, 2], [90, 60, 40])
    cluster = np.concatenate([np.repeat([0, 1, 2], 30), np.repeat([3, 4], 30), np.full(40, 5)])
    rows = 6 * np.eye(dim)[cluster] + 0.5 * rng.normal(size=(190, dim))
    drawn = np.concatenate([rng.integers(0, 3, 90), rng.integers(3, 5, 60), np.full(40, 5)])
    fine = np.where(rng.random(190) < 0.2, drawn, cluster)
    return (rows * rng.uniform(0.1, 5, (190, 1))).astype(np.float32), fine, coarse


def test_clusters_are_those_of_k_means_on_unit_vectors():
    rows, fine, _ = hierarchy()
    got = clustering_metrics(rows, fine)
    expected = KMeans(6, n_init=20, random_state=0).fit(twins.unit(rows)).labels_
    assert 0.7 < got["cluster_ari"] < 0.9
    assert got == pytest.approx(scores(fine, expected), abs=1e-12)
    assert got == clustering_metrics(rows, np.array([f"class {n}" for n in fine]))


def test_within_is_the_mean_over_coarse_classes_with_several_classes_weighted_by_their_images():
    rows, fine, coarse = hierarchy()
    got = clustering_metrics(rows, fine, coarse)
    found = []
    for number, k in ((0, 3), (1, 2)):
        own = coarse == number
        cluster = KMeans(k, n_init=20, random_state=0).fit(twins.unit(rows[own])).labels_
        found.append([*scores(fine[own], cluster).values()])
    expected = np.average(found, axis=0, weights=[90, 60])
    assert 0.7 < expected[0] < 0.95
    np.testing.assert_allclose([got[f"within/cluster_{x}"] for x in ("accuracy", "ari", "nmi")], expected, atol=1e-12)


def test_metrics_are_means_over_runs_of_k_means(monkeypatch):
    rows, fine, _ = hierarchy()
    runs = [np.random.default_rng(seed).integers(0, 6, 190) for seed in range(5)]
    monkeypatch.setattr(cluster_metrics, "kmeans", lambda *_, seed, **__: Clusters(rows, runs[seed], 0.0, 0))
    got = clustering_metrics(rows, fine)
    assert got["cluster_nmi"] == pytest.approx(np.mean([sk.normalized_mutual_info_score(fine, run) for run in runs]))


def test_there_is_no_within_without_a_coarse_class_of_several_classes():
    rows, fine, _ = hierarchy()
    assert [*clustering_metrics(rows, fine, fine)] == ["cluster_accuracy", "cluster_ari", "cluster_nmi"]


def test_a_single_class_has_no_metrics():
    rows, fine, _ = hierarchy()
    assert clustering_metrics(rows, np.zeros_like(fine)) == {}


def test_contingency_counts_each_pair():
    got = cluster_metrics.contingency(np.array(["b", "a", "b", "b"]), np.array([9, 4, 4, 9]))
    np.testing.assert_array_equal(got, [[1, 0], [1, 2]])
