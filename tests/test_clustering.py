"""k-means against scikit-learn from the same centres and by hand, on one and on eight devices."""

import jax
import numpy as np
import pytest
from sklearn.cluster import KMeans

from grafit_jax import parallel
from grafit_jax.errors import UserError
from grafit_jax.retrieval import clustering as kmeans_lib
from grafit_jax.retrieval.clustering import kmeans
from helpers import twins
from helpers.devices import use_devices


def groups(n=2500, k=12, dim=6, apart=2.0, seed=0):
    """Rows around k points far from the origin, where float32 products lose the differences between rows."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, k, n)
    return (rng.normal(size=(n, dim)) + apart * rng.normal(size=(k, dim))[truth] + 1000).astype(np.float32), truth


def kmeans_from(rows, centres, *, cosine=False, **limits):
    """Runs `kmeans` from the given centres; `limits` are `tolerance` and `max_iterations`."""
    rows, start = np.asarray(rows, np.float32), np.asarray(centres, np.float32)
    start = twins.unit(start).astype(np.float32) if cosine else start - rows.mean(0, dtype=float).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kmeans_lib, "_seeded", lambda *_: start)
        for name, limit in limits.items():
            patch.setattr(kmeans_lib, f"_{name.upper()}", limit)
        return kmeans(rows, len(start), cosine=cosine)


def scikit_learn(rows, centres, **options):
    """Lloyd's algorithm in float64."""
    model = KMeans(len(centres), init=centres.astype(np.float64), n_init=1, algorithm="lloyd", **options)
    return model.fit(rows.astype(np.float64))


@pytest.mark.parametrize("tolerance", [0.0, 1e-2])
def test_scikit_learn_finds_the_same_clusters_from_the_same_centres(tolerance):
    rows, _ = groups()
    got = kmeans_from(rows, rows[:12], tolerance=tolerance, max_iterations=300)
    expected = scikit_learn(rows, rows[:12], tol=tolerance, max_iter=300)
    np.testing.assert_array_equal(got.label, expected.labels_)
    np.testing.assert_allclose(got.centre, expected.cluster_centers_, atol=2e-4)
    assert got.inertia == pytest.approx(expected.inertia_, rel=1e-6)
    assert got.iterations == expected.n_iter_ > 3
    assert got.label.dtype == np.int32 and got.centre.dtype == np.float32


def test_golden():
    # From 0 and 3: {0, 1} and {3, 4, 11}; centres 0.5 and 6. Then 3 joins 0.5 (6.25 against 9) and 4 stays (12.25
    # against 4): 4/3 and 7.5. Then 4 joins too (7.1 against 12.25): 2 and 11.
    rows = np.array([[0], [1], [3], [4], [11]], np.float32)
    got = kmeans_from(rows, [[0], [3]], tolerance=0.0)
    np.testing.assert_array_equal(got.label, [0, 0, 0, 0, 1])
    np.testing.assert_allclose(got.centre, [[2], [11]], atol=1e-6)
    assert (got.inertia, got.iterations) == (pytest.approx(4 + 1 + 1 + 4), 4)


def test_labels_are_assignments_to_the_returned_centres():
    rows, _ = groups(n=300)
    got = kmeans_from(rows, rows[:12], max_iterations=2)
    distance = np.sum((rows[:, None].astype(np.float64) - got.centre) ** 2, axis=2)
    assert got.iterations == 2
    np.testing.assert_array_equal(got.label, distance.argmin(1))
    assert got.inertia == pytest.approx(distance.min(1).sum(), rel=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_seeding_chooses_the_drawn_row_with_the_smallest_remaining_distance(seed):
    # Greedy k-means++ in float64 with the same draws. The last block is only partly filled.
    rows = np.random.default_rng(seed).normal(size=(150, 3)).astype(np.float32)
    rng, k = np.random.default_rng(seed + 10), 8
    chosen = [int(rng.integers(150))]
    square = np.sum((rows[:, None].astype(float) - rows) ** 2, axis=2)
    while len(chosen) < k:
        nearest = square[chosen].min(0)
        drawn = np.searchsorted(np.cumsum(nearest), rng.random(2 + int(np.log(k))) * nearest.sum(), side="right")
        left = np.minimum(square[drawn], nearest).sum(1)
        chosen.append(int(drawn[left.argmin()]))
    got = kmeans_lib._seeded(rows, parallel.in_blocks(rows, k), k, np.random.default_rng(seed + 10), np.full(150, True))
    np.testing.assert_array_equal(got, rows[chosen])


def test_seeding_has_the_inertia_of_scikit_learn(monkeypatch):
    monkeypatch.setattr(kmeans_lib, "_MAX_ITERATIONS", 1)
    rows, _ = groups(k=40, apart=1.0)
    ours = [kmeans(rows, 40, seed=seed).inertia for seed in range(4)]
    theirs = [KMeans(40, n_init=1, max_iter=1, random_state=seed).fit(rows - 1000).inertia_ for seed in range(4)]
    assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.03)
    # Random initialisation is worse.
    plain = [
        KMeans(40, init="random", n_init=1, max_iter=1, random_state=seed).fit(rows - 1000).inertia_
        for seed in range(4)
    ]
    assert np.mean(plain) > np.mean(theirs) * 1.03


@pytest.mark.quick
def test_the_result_depends_on_the_seed_and_not_on_the_number_of_devices(monkeypatch, eight_devices):
    rows, _ = groups(n=9000)
    assert parallel.num_devices() == 8
    eight = kmeans(rows, 12, seed=3)
    use_devices(monkeypatch, 1)
    one, again, other = (kmeans(rows, 12, seed=seed) for seed in (3, 3, 4))
    for found in (again, eight):
        np.testing.assert_array_equal(found.label, one.label)
        np.testing.assert_array_equal(found.centre, one.centre)
        assert (found.inertia, found.iterations) == (one.inertia, one.iterations)
    assert (other.label != one.label).any()


def test_by_cosine():
    # Spherical k-means in float64 on rows of different lengths.
    rng = np.random.default_rng(1)
    rows = ((rng.normal(size=(500, 8)) + 1) * rng.uniform(0.1, 10, size=(500, 1))).astype(np.float32)
    unit, centre, label = twins.unit(rows), twins.unit(rows[:5]), None
    for _ in range(200):
        old, label = label, (unit @ centre.T).argmax(1)
        centre = twins.unit([unit[label == c].sum(0) for c in range(5)])
        if np.array_equal(old, label):
            break
    got = kmeans_from(rows, 3 * rows[:5], cosine=True, tolerance=0.0, max_iterations=200)
    np.testing.assert_array_equal(got.label, label)
    np.testing.assert_allclose(got.centre, centre, atol=1e-5)
    assert got.inertia == pytest.approx(np.sum(2 - 2 * (unit * centre[label]).sum(1)), rel=1e-5)
    seeded = kmeans(rows, 5, cosine=True)
    assert seeded.inertia == pytest.approx(got.inertia, rel=0.1)
    np.testing.assert_allclose(np.linalg.norm(seeded.centre, axis=1), 1, atol=1e-6)


# Corner cases


def test_an_empty_cluster_takes_the_row_farthest_from_its_centre():
    # From 0, 11 and 500: {0, 3}, {10, 12} and an empty cluster. 3 is farthest from its centre (9 against 0, 1, 1).
    rows = np.array([[0], [3], [10], [12]], np.float32)
    got = kmeans_from(rows, [[0], [11], [500]])
    np.testing.assert_array_equal(got.label, [0, 2, 1, 1])
    np.testing.assert_allclose(got.centre, [[0], [11], [3]], atol=1e-6)
    assert got.inertia == pytest.approx(2)
    expected = scikit_learn(rows, np.array([[0], [11], [500]]))
    np.testing.assert_array_equal(got.label, expected.labels_)


def test_several_empty_clusters_take_one_row_each_and_empty_no_other():
    # All rows start in one cluster; the other centres are far away.
    rows, _ = groups(n=200, k=4)
    centres = np.concatenate([rows[:1], rows[:3] + 1e4])
    got = kmeans_from(rows, centres, tolerance=0.0)
    expected = scikit_learn(rows, centres, tol=0.0)
    assert np.bincount(got.label, minlength=4).all()
    assert got.inertia == pytest.approx(expected.inertia_, rel=1e-6)
    # The only row of a cluster stays there: taking 50, the farthest, would empty its cluster.
    separate = kmeans_from([[0.0], [2.0], [50.0]], [[0.0], [20.0], [900.0]], max_iterations=1)
    assert sorted(separate.label) == [0, 1, 2] and separate.inertia == 0


def test_one_cluster_is_the_mean_and_n_clusters_are_the_rows():
    rows, _ = groups(n=40, dim=3)
    one = kmeans(rows, 1)
    np.testing.assert_allclose(one.centre[0], rows.mean(0, dtype=np.float64), rtol=1e-6)
    assert one.inertia == pytest.approx(np.sum((rows - rows.mean(0, dtype=np.float64)) ** 2), rel=1e-5)
    every = kmeans(rows, 40)
    assert every.inertia == 0 and sorted(every.label) == list(range(40))
    np.testing.assert_allclose(every.centre[every.label], rows, atol=1e-4)


def test_fewer_distinct_rows_than_clusters(capsys):
    rows = np.repeat(np.array([[0, 1], [5, 5], [9, 0]], np.float32), (4, 3, 3), axis=0)
    got = kmeans(rows, 5)
    assert capsys.readouterr().err == (
        "warning: k-means: found 3 distinct embeddings; expected at least k = 5; using k = 3.\n"
    )
    assert got.centre.shape == (3, 2) and got.inertia < 1e-9
    assert len({*zip(got.label, map(tuple, rows), strict=True)}) == 3
    # With given centres, no row can fill the empty clusters, and their centres stay.
    given = kmeans_from(rows, [[0, 1], [5, 5], [9, 0], [70, 70], [80, 80]])
    np.testing.assert_array_equal(np.bincount(given.label, minlength=5), [4, 3, 3, 0, 0])
    np.testing.assert_allclose(given.centre[3:], [[70, 70], [80, 80]], atol=1e-4)
    same = kmeans(np.ones((6, 2), np.float32), 3)
    assert len(same.centre) == 1 and same.inertia == 0 and not same.label.any()


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (np.eye(3), {"k": 4}, r"k-means: found k = 4 for 3 embeddings; expected k from 1 to 3"),
        (np.eye(3), {"k": 0}, r"k-means: found k = 0 for 3 embeddings"),
        (np.eye(3) * np.nan, {"k": 2}, r"embeddings: found 3 rows with NaN or infinite values, first row 0"),
        (np.ones(3), {"k": 2}, r"embeddings: found shape \(3,\); expected \[n, D\]"),
        (np.diag([1.0, 0, 1]), {"k": 2, "cosine": True}, r"embeddings: found 1 zero vectors, first row 1"),
    ],
)
def test_errors(rows, options, message):
    with pytest.raises(UserError, match=message):
        kmeans(rows, **options)


def test_zero_rows_are_valid_for_euclidean_distances():
    assert kmeans(np.diag([1.0, 0, 5]), 3).inertia == 0


def test_no_array_of_all_rows_and_centres_is_allocated():
    rows, k = np.zeros((40_000, 4), np.float32), 300
    blocks = parallel.in_blocks(rows, k)[0]
    with jax.enable_x64(True):
        jaxpr = jax.make_jaxpr(kmeans_lib._assign)(
            blocks, np.zeros(blocks.shape[:2], np.int32), rows[:k], np.zeros(k, np.int32)
        )
    sizes = [v.aval.size for equation in twins.equations(jaxpr.jaxpr) for v in equation.outvars]
    assert 1024 * k in sizes and max(sizes) <= 1024 * k


# Groups


def test_groups_are_clustered_as_if_alone(monkeypatch):
    rows, _ = groups(n=900, k=9)
    of_row = np.random.default_rng(0).integers(0, 3, 900)
    ks = (4, 1, 3)
    starts = np.concatenate([rows[of_row == g][:k] for g, k in enumerate(ks)])
    origin = rows.mean(0, dtype=float).astype(np.float32)
    seeds = iter(np.split(starts - origin, np.cumsum(ks)[:-1]))
    monkeypatch.setattr(kmeans_lib, "_seeded", lambda *_: next(seeds))
    monkeypatch.setattr(kmeans_lib, "_TOLERANCE", 0.0)
    got = kmeans(rows, ks, groups=of_row)
    inertia = 0.0
    for g, (k, offset) in enumerate(zip(ks, (0, 4, 5), strict=True)):
        own = of_row == g
        expected = scikit_learn(rows[own], starts[offset : offset + k], tol=0.0)
        np.testing.assert_array_equal(got.label[own], expected.labels_ + offset)
        np.testing.assert_allclose(got.centre[offset : offset + k], expected.cluster_centers_, atol=2e-4)
        inertia += expected.inertia_
    assert got.inertia == pytest.approx(inertia, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_seeds_of_a_group_are_rows_of_it(monkeypatch, seed):
    monkeypatch.setattr(kmeans_lib, "_MAX_ITERATIONS", 0)
    rows, of_row = np.random.default_rng(seed).normal(size=(60, 2)).astype(np.float32), np.arange(60) % 3
    got = kmeans(rows, (5, 9, 20), groups=of_row, seed=seed)
    for g, centres in enumerate(np.split(got.centre, [5, 14])):
        near = [np.flatnonzero(np.all(np.abs(rows - centre) < 1e-5, axis=1)) for centre in centres]
        assert all(len(found) == 1 and of_row[found[0]] == g for found in near)
        assert len({int(found[0]) for found in near}) == len(centres)


def test_an_empty_cluster_of_a_group_takes_a_row_of_its_group(monkeypatch):
    # Group 0 has 0, 3 and 9 at one centre; 100 of group 1 is farther from its centre than 9 is.
    rows = np.array([[0], [3], [9], [100], [0]], np.float32)
    start = np.array([[0], [800], [0]], np.float32) - rows.mean(0)
    seeds = iter((start[:2], start[2:]))
    monkeypatch.setattr(kmeans_lib, "_seeded", lambda *_: next(seeds))
    got = kmeans(rows, (2, 1), groups=np.array([0, 0, 0, 1, 1]))
    np.testing.assert_array_equal(got.label, [0, 0, 1, 2, 2])
    np.testing.assert_allclose(got.centre, [[1.5], [9], [50]], atol=1e-4)


def test_a_group_with_fewer_distinct_rows(capsys):
    rows = np.array([[0], [0], [5], [6], [9]], np.float32)
    got = kmeans(rows, (2, 2), groups=np.array([0, 0, 1, 1, 1]))
    assert capsys.readouterr().err == "" and len(got.centre) == 3
    np.testing.assert_array_equal(got.label[:2], [0, 0])
    assert {*got.label[2:].tolist()} == {1, 2}
    with pytest.raises(UserError, match="found k = 3 for 2 embeddings; expected k from 1 to 2"):
        kmeans(rows, (3, 2), groups=np.array([0, 0, 1, 1, 1]))
