"""Recall@k, the k-NN vote and average precision against hand-computed values, the twins and scikit-learn."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from grafit_jax.errors import UserError
from grafit_jax.retrieval import metrics
from helpers import twins
from helpers.devices import use_devices


def embeddings(n, dim, seed):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, dim)) * rng.uniform(0.1, 10, size=(n, 1))).astype(np.float32)


def at_angles(degrees, lengths=1.0):
    radians = np.deg2rad(degrees)
    return (np.stack([np.cos(radians), np.sin(radians)], axis=1) * lengths).astype(np.float32)


# Recall@k


def test_recall_golden():
    # First hits: label 7 at rank 2, label 1 at rank 3, label 4 never, label 2 at rank 1.
    neighbor_labels = np.array([[3, 7, 7], [0, 2, 1], [1, 2, 3], [2, 2, 0]])
    got = metrics.recall_at_k(neighbor_labels, np.array([7, 1, 4, 2]), (1, 2, 3))
    assert set(got) == {1, 2, 3}
    np.testing.assert_array_equal(got[1], [0, 0, 0, 1])
    np.testing.assert_array_equal(got[2], [1, 0, 0, 1])
    np.testing.assert_array_equal(got[3], [1, 1, 0, 1])


# The k-NN vote


def test_vote_golden():
    # Cosines 0.9 (label 0), 0.8, 0.8 (label 1). sigma = 0.05: e^18 = 6.6e7 against 2 e^16 = 1.8e7: label 0.
    # sigma = 1: e^0.9 = 2.46 against 2 e^0.8 = 4.45: label 1, the majority.
    neighbor_labels, similarity = np.array([[0, 1, 1]]), np.array([[0.9, 0.8, 0.8]], np.float32)
    np.testing.assert_array_equal(metrics.knn_classify(neighbor_labels, similarity), [0])
    np.testing.assert_array_equal(metrics.knn_classify(neighbor_labels, similarity, temperature=0.05), [0])
    np.testing.assert_array_equal(metrics.knn_classify(neighbor_labels, similarity, temperature=1.0), [1])


def test_vote_ties_go_to_the_lower_label():
    # Labels 2 and 1 have one vote of equal weight each, in either order; label 0 has none.
    same = np.array([[0.5, 0.5], [0.5, 0.5]], np.float32)
    np.testing.assert_array_equal(metrics.knn_classify(np.array([[2, 1], [1, 2]]), same), [1, 1])


def test_vote_is_finite_at_temperature_one_hundredth():
    # e^100 against 2 e^99: the first wins by e / 2, although neither fits into float32.
    got = metrics.knn_classify(np.array([[3, 1, 1]]), np.array([[1.0, 0.99, 0.99]], np.float32), temperature=0.01)
    np.testing.assert_array_equal(got, [3])
    # All far away: e^-194 underflows, and the nearest still wins.
    got = metrics.knn_classify(np.array([[3, 1, 1]]), np.array([[-0.97, -0.98, -0.98]], np.float32), temperature=0.005)
    np.testing.assert_array_equal(got, [3])


@pytest.mark.parametrize("queries, k, classes", [(1, 1, 1), (40, 30, 100), (33, 7, 5)])
def test_vote_equals_the_twin(queries, k, classes):
    rng = np.random.default_rng(1)
    neighbor_labels = rng.integers(0, classes, (queries, k))
    similarity = -np.sort(-rng.uniform(-1, 1, (queries, k)).astype(np.float32))
    for temperature in (0.05, 0.5):
        got = metrics.knn_classify(neighbor_labels, similarity, temperature)
        np.testing.assert_array_equal(got, twins.knn_classify(neighbor_labels, similarity, classes, temperature))


# Average precision


def test_average_precision_golden():
    # Query at 0 degrees, label 1; gallery at 50, 10, 30, 20, 40 degrees with labels 0, 1, 1, 0, 0. In the order of the
    # angles: 1, 0, 1, 0, 0; positives at ranks 1 and 3: (1/1 + 2/3) / 2 = 0.8333333.
    gallery = at_angles([50, 10, 30, 20, 40], np.array([[9.0], [1.0], [0.2], [5.0], [1.0]]))
    ap, positives = metrics.average_precision(at_angles([0]), np.array([1]), gallery, np.array([0, 1, 1, 0, 0]))
    np.testing.assert_allclose(ap, [5 / 6], rtol=1e-6)
    np.testing.assert_array_equal(positives, [2])


def test_average_precision_golden_excludes_the_query_by_id():
    # The same with the query itself at rank 1, id 42. Including it gives (1 + 2/2 + 3/4) / 3 = 0.9166667.
    gallery = at_angles([50, 10, 0, 30, 20, 40])
    labels = np.array([0, 1, 1, 1, 0, 0])
    ids = np.array([7, 3, 42, 9, 1, 0])
    args = (at_angles([0]), np.array([1]), gallery, labels)
    ap, positives = metrics.average_precision(*args, query_ids=np.array([42]), gallery_ids=ids)
    np.testing.assert_allclose(ap, [5 / 6], rtol=1e-6)
    np.testing.assert_array_equal(positives, [2])
    ap, positives = metrics.average_precision(*args)
    np.testing.assert_allclose(ap, [11 / 12], rtol=1e-6)
    np.testing.assert_array_equal(positives, [3])


@pytest.mark.parametrize("labels", [[1, 0, 0], [0, 1, 0], [0, 0, 1]])
def test_average_precision_counts_ties_together(labels):
    # Three equal rows, one of them positive: 1/3 for each position, as in scikit-learn.
    ap, _ = metrics.average_precision(at_angles([20]), np.array([1]), at_angles([70, 70, 70]), np.array(labels))
    np.testing.assert_allclose(ap, [1 / 3], rtol=1e-6)
    assert average_precision_score(np.array(labels), [0.5, 0.5, 0.5]) == pytest.approx(1 / 3)


def test_average_precision_of_a_query_without_positives_is_zero():
    # Label 5 is not in the gallery, and label 2 only at the query itself. The third query, at 30 degrees, is scored as
    # usual: without itself, 0 degrees (negative) ranks before 80 (positive): 1/2.
    gallery, labels, ids = at_angles([0, 30, 80]), np.array([2, 1, 0]), np.arange(3)
    ap, positives = metrics.average_precision(
        at_angles([10, 0, 30]), np.array([5, 2, 0]), gallery, labels, query_ids=np.array([9, 0, 1]), gallery_ids=ids
    )
    np.testing.assert_array_equal(positives, [0, 0, 1])
    np.testing.assert_allclose(ap, [0, 0, 0.5], rtol=1e-6)


@pytest.mark.parametrize("queries, gallery, dim", [(1, 1, 3), (5, 7, 5), (20, 333, 17), (3, 4097, 5)])
def test_average_precision_equals_scikit_learn(queries, gallery, dim):
    q, g = embeddings(queries, dim, seed=2), embeddings(gallery, dim, seed=3)
    rng = np.random.default_rng(4)
    # One class holds most of the gallery, many have a few rows, so the numbers of positives differ by a factor of 100s.
    labels = rng.integers(0, 4, queries)
    gallery_labels = np.where(rng.random(gallery) < 0.7, 0, rng.integers(1, 40, gallery))
    ap, positives = metrics.average_precision(q, labels, g, gallery_labels)
    assert np.shape(ap) == np.shape(positives) == (queries,)
    cosines = twins.unit(q) @ twins.unit(g).T
    for i in range(queries):
        relevant = gallery_labels == labels[i]
        assert positives[i] == relevant.sum()
        expected = average_precision_score(relevant, cosines[i]) if relevant.any() else 0.0
        np.testing.assert_allclose(ap[i], expected, rtol=2e-5, err_msg=f"query {i}")


def test_average_precision_within_a_split_equals_scikit_learn_without_the_query():
    x = embeddings(300, 9, seed=5)
    labels = np.random.default_rng(6).integers(0, 12, 300)
    ids = np.random.default_rng(7).permutation(10_000)[:300]
    ap, positives = metrics.average_precision(x, labels, x, labels, query_ids=ids, gallery_ids=ids)
    cosines = twins.unit(x) @ twins.unit(x).T
    for i in range(300):
        others = np.arange(300) != i
        expected = average_precision_score((labels == labels[i])[others], cosines[i][others])
        np.testing.assert_allclose(ap[i], expected, rtol=2e-5, err_msg=f"query {i}")
        assert positives[i] == (labels == labels[i]).sum() - 1


def test_average_precision_equals_scikit_learn_on_thousands_of_ties():
    # Rows of +-1 in four dimensions: five distinct cosines, exact in float32.
    rng = np.random.default_rng(8)
    gallery = rng.choice([-1.0, 1.0], size=(700, 4)).astype(np.float32)
    labels, ids = rng.integers(0, 5, 700), rng.permutation(700)
    some = np.array([0, 1, 350, 698, 699])
    args = (gallery[some], labels[some], gallery, labels)
    ap, positives = metrics.average_precision(*args, query_ids=ids[some], gallery_ids=ids)
    expected, expected_positives = twins.average_precision(*args, query_ids=ids[some], gallery_ids=ids)
    np.testing.assert_allclose(ap, expected, rtol=1e-12)
    np.testing.assert_array_equal(positives, expected_positives)
    for query, value in zip(some, ap, strict=True):
        others = np.arange(700) != query
        cosines = (gallery @ gallery[query] / 4)[others]
        assert value == pytest.approx(average_precision_score((labels == labels[query])[others], cosines))


def test_average_precision_of_duplicates_with_other_labels():
    # 50 pairs of equal images, one labelled 0 and one 1. A query's duplicate, a negative, always comes first, and every
    # positive ties with its own duplicate: the n-th has 2 n + 1 rows at least as near, n of them positive.
    base = embeddings(50, 16, seed=9)
    x = np.concatenate([base, base])
    labels = np.concatenate([np.zeros(50, int), np.ones(50, int)])
    ids = np.arange(100)
    ap, positives = metrics.average_precision(x, labels, x, labels, query_ids=ids, gallery_ids=ids)
    np.testing.assert_array_equal(positives, np.full(100, 49))
    n = np.arange(1, 50)
    np.testing.assert_allclose(ap, np.mean(n / (2 * n + 1)), rtol=1e-5)


def test_collapsed_embeddings_score_the_share_of_their_class():
    # All rows are equal, so the AP of a query is the share of positives among the other rows.
    x, labels = np.tile(np.array([[0.3, -1.7, 2.9]], np.float32), (60, 1)), np.arange(60) % 3
    result = metrics.retrieval_metrics(x, {"": labels})
    assert result["map"] == pytest.approx(19 / 59)
    # The nearest is image 0 of label 0 (for image 0 itself, image 1 of label 1), a hit for the other 19 of label 0.
    assert result["recall@1"] == pytest.approx(19 / 60)


def test_jax_arrays_give_the_same_average_precision():
    x, labels = embeddings(40, 5, seed=10), np.random.default_rng(11).integers(0, 3, 40)
    expected = metrics.average_precision(x[:7], labels[:7], x, labels)
    got = metrics.average_precision(jnp.asarray(x[:7]), jnp.asarray(labels[:7]), jnp.asarray(x), jnp.asarray(labels))
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])


# All metrics in one pass


def by_hand(x, labels, gallery, gallery_labels, ks, knn_k, temperature, **ids):
    """Metrics of one level from the twins, with label codes in sorted order."""
    names = sorted({*labels, *gallery_labels})
    y, gallery_y = (np.array([names.index(label) for label in side]) for side in (labels, gallery_labels))
    similarity, index = twins.search(x, gallery, max(*ks, knn_k), **ids)
    ap, positives = twins.average_precision(x, y, gallery, gallery_y, **ids)
    counted = positives > 0
    hits = twins.recall_at_k(gallery_y[index], y, ks)
    vote = twins.knn_classify(gallery_y[index][:, :knn_k], similarity[:, :knn_k], len(names), temperature)
    return {f"recall@{k}": hits[k][counted].mean() for k in ks} | {
        "map": ap[counted].mean(),
        "knn_top1": np.mean(vote == y),
        "queries_without_positive": int(np.sum(~counted)),
    }


def test_all_metrics_of_a_split_equal_the_twins_at_every_level():
    x = embeddings(90, 7, seed=14)
    rng = np.random.default_rng(15)
    fine = np.array(["wren", "owl", "adder", "newt", "toad"])[rng.integers(0, 5, 90)]
    fine[[3, 50]] = "heron", "stork"  # single images: no positive
    labels = {"": fine, "class": np.where(np.isin(fine, ["newt", "toad"]), 7, -2)}
    got = metrics.retrieval_metrics(x, labels, ks=(1, 3), knn_k=9, knn_temperature=0.1)
    ids = {"query_ids": np.arange(90), "gallery_ids": np.arange(90)}
    expected = by_hand(x, fine, x, fine, (1, 3), 9, 0.1, **ids)
    expected |= {
        f"class/{k}": v for k, v in by_hand(x, labels["class"], x, labels["class"], (1, 3), 9, 0.1, **ids).items()
    }
    assert got.keys() == expected.keys()
    assert got["queries_without_positive"] == 2
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-6), name


def test_all_metrics_against_a_gallery_equal_the_twins():
    x, gallery = embeddings(21, 5, seed=16), embeddings(100, 5, seed=17)
    rng = np.random.default_rng(18)
    labels, gallery_labels = rng.integers(0, 6, 21), rng.integers(1, 9, 100)
    got = metrics.retrieval_metrics(
        x, {"": labels, "only here": labels}, gallery, {"": gallery_labels}, ks=(1, 5), knn_k=20
    )
    expected = by_hand(x, labels, gallery, gallery_labels, (1, 5), 20, 0.05)
    assert got.keys() == expected.keys() and got["queries_without_positive"] == np.sum(labels == 0) > 0
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.quick
def test_one_device_gives_the_metrics_of_eight(monkeypatch, eight_devices):
    x, labels = embeddings(333, 9, seed=19), np.random.default_rng(20).integers(0, 30, 333)
    eight = metrics.retrieval_metrics(x, {"": labels})
    use_devices(monkeypatch, 1)
    assert metrics.retrieval_metrics(x, {"": labels}) == eight


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(9, int), r"labels of the queries: found shape \(9,\); expected \(10,\)"),
        (np.zeros(10), r"labels of the queries: found dtype float64; expected integers or strings"),
    ],
)
def test_labels_of_the_wrong_shape_or_dtype_are_refused(labels, message):
    with pytest.raises(UserError, match=message):
        metrics.retrieval_metrics(embeddings(10, 3, seed=21), {"": labels}, ks=(1,))


def test_labels_of_different_types_are_refused():
    x = embeddings(10, 3, seed=21)
    with pytest.raises(
        UserError, match=r"labels: found dtype int64 for the queries and <U1 for the gallery; expected integers on both"
    ):
        metrics.average_precision(x, np.zeros(10, int), x, np.array(list("aabbccddee")))
