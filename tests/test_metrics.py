"""Recall@k, the k-NN vote and average precision: by hand, by their twins, and scikit-learn's average precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

import twins
from grafit_jax import metrics


def embeddings(n, dim, seed):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, dim)) * rng.uniform(0.1, 10, size=(n, 1))).astype(np.float32)


def at_angles(degrees, lengths=1.0):
    radians = np.deg2rad(degrees)
    return (np.stack([np.cos(radians), np.sin(radians)], axis=1) * lengths).astype(np.float32)


# Recall@k


def test_recall_golden():
    # Label 7: first among the two nearest. Label 1: third. Label 4: nowhere. Label 2: first, and twice.
    neighbor_labels = np.array([[3, 7, 7], [0, 2, 1], [1, 2, 3], [2, 2, 0]])
    got = metrics.recall_at_k(neighbor_labels, np.array([7, 1, 4, 2]), (1, 2, 3))
    assert set(got) == {1, 2, 3}
    np.testing.assert_array_equal(got[1], [0, 0, 0, 1])
    np.testing.assert_array_equal(got[2], [1, 0, 0, 1])
    np.testing.assert_array_equal(got[3], [1, 1, 0, 1])


def test_recall_equals_the_twin():
    rng = np.random.default_rng(0)
    neighbor_labels, labels = rng.integers(0, 30, (57, 20)), rng.integers(0, 30, 57)
    ks = (1, 2, 5, 10, 20)
    got, expected = metrics.recall_at_k(neighbor_labels, labels, ks), twins.recall_at_k(neighbor_labels, labels, ks)
    for k in ks:
        np.testing.assert_array_equal(got[k], expected[k])
    assert 0 < np.mean(expected[1]) < np.mean(expected[20]) < 1


# The k-NN vote


def test_vote_golden():
    # Cosines 0.9 (label 0), 0.8, 0.8 (label 1). sigma = 0.05: e^18 = 6.6e7 against 2 e^16 = 1.8e7: label 0.
    # sigma = 1: e^0.9 = 2.46 against 2 e^0.8 = 4.45: label 1, the majority.
    neighbor_labels, similarity = np.array([[0, 1, 1]]), np.array([[0.9, 0.8, 0.8]], np.float32)
    np.testing.assert_array_equal(metrics.knn_classify(neighbor_labels, similarity, 3), [0])
    np.testing.assert_array_equal(metrics.knn_classify(neighbor_labels, similarity, 3, temperature=0.05), [0])
    np.testing.assert_array_equal(metrics.knn_classify(neighbor_labels, similarity, 3, temperature=1.0), [1])


def test_vote_ties_go_to_the_lower_label():
    # 2 and 1 have one vote of the same weight each, whichever comes first; 0 has none.
    same = np.array([[0.5, 0.5], [0.5, 0.5]], np.float32)
    np.testing.assert_array_equal(metrics.knn_classify(np.array([[2, 1], [1, 2]]), same, 4), [1, 1])


def test_vote_is_finite_at_temperature_one_hundredth():
    # e^100 against 2 e^99: the first wins by e / 2 although neither is a float32.
    got = metrics.knn_classify(np.array([[3, 1, 1]]), np.array([[1.0, 0.99, 0.99]], np.float32), 4, temperature=0.01)
    np.testing.assert_array_equal(got, [3])
    # All far away: e^-90 underflows, the nearest still wins.
    got = metrics.knn_classify(
        np.array([[3, 1, 1]]), np.array([[-0.97, -0.98, -0.98]], np.float32), 4, temperature=0.005
    )
    np.testing.assert_array_equal(got, [3])


@pytest.mark.parametrize("queries, k, classes", [(1, 1, 1), (40, 30, 100), (33, 7, 5)])
def test_vote_equals_the_twin(queries, k, classes):
    rng = np.random.default_rng(1)
    neighbor_labels = rng.integers(0, classes, (queries, k))
    similarity = -np.sort(-rng.uniform(-1, 1, (queries, k)).astype(np.float32))
    for temperature in (0.05, 0.5):
        got = metrics.knn_classify(neighbor_labels, similarity, classes, temperature)
        np.testing.assert_array_equal(got, twins.knn_classify(neighbor_labels, similarity, classes, temperature))


# Average precision


def test_average_precision_golden():
    # Query at 0 degrees, label 1; gallery at 50, 10, 30, 20, 40 degrees with labels 0, 1, 1, 0, 0. In the order of the
    # angles: 1, 0, 1, 0, 0; positives at ranks 1 and 3: (1/1 + 2/3) / 2 = 0.8333333.
    gallery = at_angles([50, 10, 30, 20, 40], np.array([[9.0], [1.0], [0.2], [5.0], [1.0]]))
    ap, positives = metrics.average_precision(at_angles([0]), np.array([1]), gallery, np.array([0, 1, 1, 0, 0]))
    np.testing.assert_allclose(ap, [5 / 6], rtol=1e-6)
    np.testing.assert_array_equal(positives, [2])


def test_average_precision_golden_leaves_self_out_by_id():
    # The same, the query itself at rank 1 with id 42. Counted, it would give (1 + 2/2 + 3/4) / 3 = 0.9166667.
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


@pytest.mark.parametrize("labels, expected", [([1, 0, 0], 1.0), ([0, 1, 0], 1 / 2), ([0, 0, 1], 1 / 3)])
def test_average_precision_ranks_the_lower_index_first_in_a_tie(labels, expected):
    # Three equal rows; scikit-learn, which sees no order inside a tie, would say 1/3 each time.
    ap, _ = metrics.average_precision(at_angles([20]), np.array([1]), at_angles([70, 70, 70]), np.array(labels))
    np.testing.assert_allclose(ap, [expected], rtol=1e-6)


def test_average_precision_of_a_query_without_positives_is_zero():
    # Label 5 is nowhere, label 2 only at the query itself; the third query shows that the others count as ever: at 30
    # degrees, itself left out, 0 degrees (wrong) ranks before 80 (right): 1/2.
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
    # One class with most of the gallery, many with a few rows: the counts of positives differ by a factor of hundreds.
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


def test_average_precision_within_a_split_equals_scikit_learn_without_self():
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


def test_average_precision_equals_the_twin_on_thousands_of_ties():
    # Rows of +-1 in four dimensions: five different cosines, exact in float32; ids repeat every 100 rows.
    rng = np.random.default_rng(8)
    gallery = rng.choice([-1.0, 1.0], size=(700, 4)).astype(np.float32)
    labels, ids = rng.integers(0, 5, 700), np.arange(700) % 100
    some = np.array([0, 1, 350, 698, 699])
    got = metrics.average_precision(gallery[some], labels[some], gallery, labels, query_ids=ids[some], gallery_ids=ids)
    expected = twins.average_precision(
        gallery[some], labels[some], gallery, labels, query_ids=ids[some], gallery_ids=ids
    )
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
    np.testing.assert_array_equal(got[1], expected[1])


def test_average_precision_of_duplicates_with_other_labels():
    # 50 pairs of equal images, one labelled 0 and one 1. A query's twin, which is wrong, always ranks first.
    base = embeddings(50, 16, seed=9)
    x = np.concatenate([base, base])
    labels = np.concatenate([np.zeros(50, int), np.ones(50, int)])
    ids = np.arange(100)
    ap, positives = metrics.average_precision(x, labels, x, labels, query_ids=ids, gallery_ids=ids)
    np.testing.assert_array_equal(positives, np.full(100, 49))
    # After the wrong twin, the ranking is in pairs of equals, 0 before 1 by index. Label 0: positives at ranks 2, 4 ...
    # 98, precision 1/2 each. Label 1: at ranks 3, 5 ... 99, the mean of n / (2n + 1) over n = 1..49.
    n = np.arange(1, 50)
    np.testing.assert_allclose(np.asarray(ap)[:50], 0.5, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(ap)[50:], np.mean(n / (2 * n + 1)), rtol=1e-5)


def test_average_precision_matmuls_ask_for_full_float32():
    # An accelerator's default (TF32, bfloat16) reorders cosines nearer than 1e-3, and with them the ranks.
    labels, gallery_labels = np.array([0, 1, 2]), np.arange(40) % 3
    jaxpr = jax.make_jaxpr(lambda q, g: metrics.average_precision(q, labels, g, gallery_labels))(
        embeddings(3, 7, seed=12), embeddings(40, 7, seed=13)
    )
    assert twins.matmul_precisions(jaxpr.jaxpr) == {jax.lax.Precision.HIGHEST}


def test_average_precision_is_the_same_on_jax_arrays():
    x, labels = embeddings(40, 5, seed=10), np.random.default_rng(11).integers(0, 3, 40)
    expected = metrics.average_precision(x[:7], labels[:7], x, labels)
    got = metrics.average_precision(jnp.asarray(x[:7]), jnp.asarray(labels[:7]), jnp.asarray(x), jnp.asarray(labels))
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])
