"""Exact neighbours against float64 brute force: order, ties and exclusion by id."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grafit_jax.retrieval import clustering, neighbors, probe, rerank
from helpers import twins


def points(n, dim, seed=0):
    """Random vectors of random lengths, so that inner products and cosines rank them differently."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, dim)) * rng.uniform(0.1, 10, size=(n, 1))).astype(np.float32)


def assert_search(queries, gallery, k, **ids):
    similarity, index = neighbors.search(queries, gallery, k, **ids)
    expected, expected_index = twins.search(queries, gallery, k, **ids)
    assert np.shape(index) == (len(queries), k)
    assert similarity.dtype == np.float32
    assert index.dtype == np.int32
    np.testing.assert_array_equal(index, expected_index)
    np.testing.assert_allclose(similarity, expected, atol=2e-6)


# Golden


def test_golden_angles():
    # Gallery at 0, 30, 60 and 180 degrees with lengths 1, 2, 10 and 1; query at 50. Angles 50, 20, 10 and 130, so the
    # order is 2, 1, 0, 3 with cosines 0.9848078, 0.9396926, 0.6427876, -0.6427876.
    angles = np.deg2rad([0, 30, 60, 180])
    gallery = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.array([[1], [2], [10], [1]])
    query = 7 * np.array([[np.cos(np.deg2rad(50)), np.sin(np.deg2rad(50))]])
    similarity, index = neighbors.search(query.astype(np.float32), gallery.astype(np.float32), 4)
    np.testing.assert_array_equal(index, [[2, 1, 0, 3]])
    np.testing.assert_allclose(similarity, [[0.9848078, 0.9396926, 0.6427876, -0.6427876]], atol=1e-6)


# Against brute force


@pytest.mark.parametrize(
    "queries, gallery, dim, k",
    [
        (1, 1, 3, 1),
        (1, 7, 5, 7),  # k = all
        (3, 33, 17, 10),
        (2, 65, 5, 64),  # more neighbours than groups
        (3, 500, 3, 500),  # k = all, more than the columns of a group
        (5, 1000, 2, 3),
        (2, 4097, 17, 30),  # one row more than a power of two
        (9, 5000, 17, 5),
        (2, 8193, 5, 40),
    ],
)
def test_random_embeddings(queries, gallery, dim, k):
    assert_search(points(queries, dim, seed=1), points(gallery, dim, seed=2), k)


def test_more_queries_than_a_block():
    rng = np.random.default_rng(3)
    gallery, queries = points(40, 5, seed=4), points(4099, 5, seed=5)
    _, index = neighbors.search(queries, gallery, 3)
    some = np.concatenate([[0, 1, 4095, 4096, 4097, 4098], rng.integers(0, 4099, 20)])
    np.testing.assert_array_equal(np.asarray(index)[some], twins.search(queries[some], gallery, 3)[1])


def test_contiguous_neighbours():
    # The k best rows are contiguous, as in a data set sorted by class. A search that keeps one candidate per group
    # would lose nearly all of them.
    gallery = points(2000, 9, seed=6)
    query = points(1, 9, seed=7)
    near = np.random.default_rng(8).normal(size=(60, 9))
    gallery[640:700] = twins.unit(query) + 0.1 * near
    assert_search(query, gallery, 40)
    assert set(np.asarray(neighbors.search(query, gallery, 40)[1])[0]) <= set(range(640, 700))


@pytest.mark.parametrize("n, k", [(300, 50), (4097, 10), (8200, 700)])
def test_ties_go_to_the_lower_index(n, k):
    # Rows of +-1 in four dimensions: 16 distinct vectors with cosines in {-1, -0.5, 0, 0.5, 1}, exact in float32 for
    # any summation order. There are thousands of ties and one right answer.
    rng = np.random.default_rng(9)
    gallery = rng.choice([-1.0, 1.0], size=(n, 4)).astype(np.float32)
    queries = np.concatenate([gallery[[0, n - 1]], [[1, 0, 0, 0], [1, 1, 0, 0]]]).astype(np.float32)
    assert_search(queries, gallery, k)
    ids = np.arange(n)
    assert_search(queries[:2], gallery, k, query_ids=np.array([0, n - 1]), gallery_ids=ids)


@pytest.mark.parametrize("vector", [[3.0, 4.0, 0.0], [0.3, -1.7, 2.9]])
@pytest.mark.parametrize("n", [7, 1000, 8200])
def test_all_equal_embeddings(n, vector):
    gallery = np.tile(np.array(vector, np.float32), (n, 1))
    query_ids = np.array([0, 3, n - 1])
    _, index = neighbors.search(gallery[query_ids], gallery, 5, query_ids=query_ids, gallery_ids=np.arange(n))
    # The lowest indices without the query's own; for n = 7 the last query is 6.
    np.testing.assert_array_equal(index, [[1, 2, 3, 4, 5], [0, 1, 2, 4, 5], [0, 1, 2, 3, 4]])


def test_duplicated_embeddings():
    # Each row occurs four times. The copies come first, in the order of their indices.
    base = points(300, 17, seed=10)
    gallery = np.tile(base, (4, 1))
    _, index = neighbors.search(base[:20], gallery, 4)
    np.testing.assert_array_equal(index, np.arange(20)[:, None] + np.array([[0, 300, 600, 900]]))
    ids = np.arange(1200)
    _, index = neighbors.search(gallery[600:620], gallery, 3, query_ids=ids[600:620], gallery_ids=ids)
    np.testing.assert_array_equal(index, np.arange(20)[:, None] + np.array([[0, 300, 900]]))


def test_tight_embeddings_of_many_dimensions_are_settled_among_the_candidates(monkeypatch):
    # Cosines of 0.993 with a deviation of 0.004, as of a network close to collapse. The float32 error is below the gaps
    # between candidates, so no query is compared with the whole gallery, which takes ten times as long.
    rng = np.random.default_rng(12)
    low = rng.normal(size=(8, 1024))
    gallery, queries = (1 + 0.03 * rng.normal(size=(n, 8)) @ low for n in (6000, 20))
    monkeypatch.delattr(rerank.Settle, "_among_all")
    assert_search(queries.astype(np.float32), gallery.astype(np.float32), 30)


def test_a_limited_number_of_queries_on_collapsed_embeddings_is_exact_and_the_rest_is_warned_about(monkeypatch, capsys):
    # Rows that differ in their last bits only, each of them twice; float32 cannot distinguish them.
    rng = np.random.default_rng(13)
    distinct = (1 + 1e-6 * rng.normal(size=(200, 40))).astype(np.float32)
    gallery = np.concatenate([distinct, distinct])
    queries = (1 + 0.3 * rng.normal(size=(50, 40))).astype(np.float32)
    assert_search(queries, gallery, 5)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(rerank, "_PRODUCTS", 33 * gallery.size)
    index = neighbors.search(queries, gallery, 5)[1]
    np.testing.assert_array_equal(index[:33], twins.search(queries[:33], gallery, 5)[1])
    assert capsys.readouterr().err == (
        "warning: search: found 17 of 50 queries with many rows as near as neighbour 5 within float32 precision; their "
        "neighbours are exact in float32 only. Have the embeddings collapsed?\n"
    )


# Exclusion by id


def test_self_is_left_out_wherever_it_ranks():
    # The query with id 2 is NOT the embedding stored under id 2, which ranks third. That row is still excluded.
    gallery = np.array([[1, 0], [0.9, 0.1], [0.5, 0.5], [0, 1]], np.float32)
    _, index = neighbors.search(gallery[:1], gallery, 3, query_ids=np.array([2]), gallery_ids=np.arange(4))
    np.testing.assert_array_equal(index, [[0, 1, 3]])


def test_arbitrary_ids():
    # Ids are names, not positions: unsorted, with gaps. The returned index is the gallery row.
    rng = np.random.default_rng(12)
    gallery = points(333, 7, seed=13)
    gallery_ids = rng.permutation(1_000_000)[:333]
    chosen = np.array([332, 0, 17, 5])
    assert_search(gallery[chosen], gallery, 332, query_ids=gallery_ids[chosen], gallery_ids=gallery_ids)
    # A query id that is not in the gallery excludes nothing.
    assert_search(gallery[:2], gallery, 5, query_ids=np.array([1_000_001, 1_000_002]), gallery_ids=gallery_ids)


def test_ties_go_to_the_lower_id():
    # Equal rows with shuffled ids; 40 are more than the spare candidates, so the whole gallery is compared.
    for n in (5, 40):
        ids = np.random.default_rng(22).permutation(1000)[:n]
        gallery = np.tile(points(1, 6, seed=23), (n, 1))
        _, index = neighbors.search(gallery[:1], gallery, 3, query_ids=ids[:1], gallery_ids=ids)
        np.testing.assert_array_equal(np.sort(ids[1:])[:3], ids[index[0]])


def test_arguments_are_not_modified():
    queries, gallery = points(3, 5), points(20, 5, seed=16)
    before = queries.copy(), gallery.copy()
    neighbors.search(queries, gallery, 3)
    np.testing.assert_array_equal(queries, before[0])
    np.testing.assert_array_equal(gallery, before[1])


@pytest.mark.quick
def test_matmuls_request_full_float32(eight_devices):
    # The default precision of accelerators (TF32, bfloat16) reorders cosines closer than 1e-3.
    inside = jax.make_jaxpr(lambda q, g: neighbors.search(q, g, 3))(points(5, 7), points(40, 7)).jaxpr
    assert twins.matmul_precisions(inside) == {jax.lax.Precision.HIGHEST}
    args = np.zeros((8, 7), np.float32), np.zeros(8, np.int32), np.zeros((4096, 7), np.float32), 4000
    for k in (None, 3):
        step = jax.make_jaxpr(neighbors._of_block(k))(*args)
        assert twins.matmul_precisions(step.jaxpr) == {jax.lax.Precision.HIGHEST}


# Ties in float32


def almost_equal(n, dim, seed, distance=1e-4):
    """n rows around one vector; their cosines differ in the 9th digit, beyond float32 precision."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(1, dim)) + distance * rng.normal(size=(n, dim))).astype(np.float32)


@pytest.mark.parametrize(
    ("n", "far", "k"),
    [
        (6, 500, 6),  # fewer than the spare candidates
        (12, 500, 9),
        (200, 500, 9),  # more, so the whole gallery is compared
        (200, 5000, 9),
        (300, 0, 299),
    ],
)
def test_neighbours_that_tie_in_float32_are_in_the_order_of_float64(n, far, k):
    gallery = np.concatenate([points(far, 24, seed=24), almost_equal(n, 24, seed=25)])
    queries = almost_equal(3, 24, seed=25, distance=2e-4)
    unit = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    by_float32 = np.argsort(-(queries @ unit.T), axis=1, kind="stable")[:, :k]
    exact = [x.astype(np.longdouble) for x in (queries, gallery)]
    cosines = exact[0] @ exact[1].T / np.sqrt(np.sum(exact[1] ** 2, axis=1))
    expected = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    assert not np.array_equal(by_float32, expected), "too easy"
    np.testing.assert_array_equal(neighbors.search(queries, gallery, k)[1], expected)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_lengths_whose_squares_overflow_or_underflow_float32(scale):
    gallery, queries = points(50, 5, seed=26), points(4, 5, seed=27)
    _, expected = neighbors.search(queries, gallery, 5)
    _, index = neighbors.search(queries * np.float32(scale), gallery * np.float32(scale), 5)
    np.testing.assert_array_equal(index, expected)
    inside = jax.jit(lambda q, g: neighbors.search(q, g, 5))(queries * np.float32(scale), gallery * np.float32(scale))
    np.testing.assert_array_equal(inside[1], expected)


# Blocks, on the host and on the device


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize(
    ("queries", "rows", "k"), [(1, 333, 3), (9, 1024, 1), (130, 1055, 7), (70, 4099, 20), (3, 90, 89)]
)
@pytest.mark.slow
def test_blocks_of_queries_and_gallery_lose_nothing_and_count_nothing_twice(monkeypatch, on_host, queries, rows, k):
    # Small blocks, so that there are many of both. All rows are opposite to the queries, so a zero padding would be
    # nearer than any of them.
    monkeypatch.setattr(neighbors, "_picks_on_host", lambda: on_host)
    monkeypatch.setattr(neighbors, "_MAX_ROWS", 700)
    monkeypatch.setattr(neighbors, "_PART", 512)
    monkeypatch.setattr(neighbors, "_BLOCK", 2**13)
    gallery = np.abs(points(rows, 6, seed=28))
    ids = np.random.default_rng(29).permutation(10 * rows)[:rows]
    chosen = np.random.default_rng(30).integers(0, rows, queries)
    assert_search(-gallery[chosen], gallery, k, query_ids=ids[chosen], gallery_ids=ids)


def test_a_gallery_sorted_by_similarity_in_parts_smaller_than_k(monkeypatch):
    # The rows of the first part are nearer than all that follow, but fewer than k.
    monkeypatch.setattr(neighbors, "_MAX_ROWS", 512)
    monkeypatch.setattr(neighbors, "_PART", 512)
    angle = np.linspace(0.1, 3, 2000)
    gallery = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    _, index = neighbors.search(np.array([[1.0, 0.0]], np.float32), gallery, 1200)
    np.testing.assert_array_equal(index, [np.arange(1200)])


@pytest.mark.parametrize("levels", [50, 2**20, 1])
@pytest.mark.parametrize("size", [2 * 5 * 32, 4096, 4100 // 32 * 32])
def test_grouped_top_k_is_top_k(size, levels):
    # 50 levels: many ties; 1: two values only.
    x = np.random.default_rng(31).integers(-levels, levels, (7, size)).astype(np.float32)
    own, num_columns = np.array([0, 5, size - 40, -1, 64, 65, 31]), size - 33
    own[6] = np.argmax(x[6])
    x[:, num_columns:] = x[:, [num_columns - 1]]
    largest = np.where(np.arange(0, size, 32) < num_columns, x.reshape(7, -1, 32).max(2), np.float32(-np.inf))
    value, index = neighbors._top_k(jnp.asarray(x), jnp.asarray(largest), 4, jnp.asarray(own), num_columns)
    on_host, at = neighbors._at_least(x, largest, 4, own, num_columns, -np.inf)
    at, found = np.where(np.isfinite(on_host), at, -2), np.isfinite(on_host)
    np.testing.assert_array_equal(on_host[found], np.take_along_axis(x, at, axis=1)[found])
    assert not np.any(at == own[:, None]) and at.max() < num_columns
    assert all(len(set(row[row >= 0])) == np.sum(row >= 0) for row in at)
    x[np.arange(7), own] = np.where(own >= 0, -np.inf, x[np.arange(7), own])
    x[:, num_columns:] = -np.inf
    expected = np.argsort(-x, axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(value, np.take_along_axis(x, expected, axis=1))
    np.testing.assert_array_equal(np.sort(on_host)[:, -4:], np.sort(value))


def test_on_the_host_the_own_row_displaces_no_group_of_many_equal_ones():
    # Every group of 32 has one 1, but that of the own row, which has a 2.
    x, own = np.zeros((3, 4096), np.float32), np.full(3, 70)
    x[:, ::32] = 1
    x[:, 64] = 0
    x[:, 70] = 2
    value, _ = neighbors._at_least(x, x.reshape(3, -1, 32).max(2), 4, own, 4096, -np.inf)
    np.testing.assert_array_equal(-np.sort(-value)[:, :4], 1)


def test_inside_jit_the_own_row_and_padding_displace_no_neighbour():
    # All cosines are negative. The nearest row is the query's own, in a group of far rows; the next is in another.
    # The last group is cut by the end of the gallery, where zero padding would be nearer than all rows.
    gallery = np.tile(np.array([[1.0, 0.0]], np.float32), (32 * 20 + 5, 1))
    gallery[100] = [0.1, 1.0]
    gallery[300] = [0.2, 1.0]
    search = jax.jit(lambda q, g, i, j: neighbors.search(q, g, 1, query_ids=i, gallery_ids=j))
    _, index = search(np.array([[-1.0, 0.0]], np.float32), gallery, np.array([100]), np.arange(len(gallery)))
    np.testing.assert_array_equal(index, [[300]])


def test_shapes_come_in_buckets():
    # 16 to 32 sizes per octave: at most a sixteenth is padding, and many gallery sizes share a compilation.
    sizes = np.arange(1, 70_000, 7)
    buckets = np.array([neighbors._bucket(int(n)) for n in sizes])
    assert np.all(buckets >= sizes) and np.all(buckets % neighbors._GROUP == 0)
    assert np.all(buckets[sizes > 512] <= sizes[sizes > 512] * 17 / 16)
    assert len(set(buckets)) < 200


def test_the_same_shapes_compile_once(caplog):
    # `parallel.pmap` is called in each search, k-means and fit; JAX must find the compiled function in its cache.
    x, label = points(300, 5), np.arange(300) % 2

    def everything():
        neighbors.search(x, x, 3)
        clustering.kmeans(x, 4)
        probe.fit(x, label, 2, 0.1)

    with jax.log_compiles():
        neighbors.search(points(9, 37), points(331, 37), 4)  # a shape of no other test
        assert "Compiling" in caplog.text
        everything()
        caplog.clear()
        everything()
    assert "Compiling" not in caplog.text


def test_the_largest_valid_k():
    gallery, ids = points(11, 5, seed=18), np.arange(11)
    assert_search(gallery, gallery, 11)
    assert_search(gallery, gallery, 10, query_ids=ids, gallery_ids=ids)


def test_jax_arrays_give_the_same_result():
    queries, gallery = points(3, 5), points(20, 5, seed=19)
    expected = neighbors.search(queries, gallery, 4)
    got = neighbors.search(jax.numpy.asarray(queries), jax.numpy.asarray(gallery), 4)
    np.testing.assert_array_equal(got[1], expected[1])
    np.testing.assert_array_equal(got[0], expected[0])


# Eight devices


@pytest.mark.parametrize("n, k", [(400, 1), (400, 49), (400, 50), (400, 60), (8, 3)])
@pytest.mark.quick
def test_eight_devices_find_what_one_device_finds(n, k, eight_devices):
    # The gallery is sharded over the devices in order, and all devices have the same queries. k may exceed the rows
    # of a device; ties across devices go to the lower row of the whole gallery.
    rng = np.random.default_rng(20)
    gallery = rng.choice([-1.0, 1.0], size=(n, 4)).astype(np.float32)
    ids, chosen = rng.permutation(1000)[:n], np.array([0, 3, n - 1])

    def search(queries, query_ids, rows, row_ids):
        return neighbors.search(queries, rows, k, query_ids=query_ids, gallery_ids=row_ids, axis_name="batch")

    similarity, index = jax.pmap(search, axis_name="batch", in_axes=(None, None, 0, 0))(
        gallery[chosen], ids[chosen], gallery.reshape(8, -1, 4), ids.reshape(8, -1)
    )
    expected, expected_index = twins.search(gallery[chosen], gallery, k, query_ids=ids[chosen], gallery_ids=ids)
    for device in range(8):
        np.testing.assert_array_equal(np.asarray(index)[device], expected_index)
        np.testing.assert_allclose(np.asarray(similarity)[device], expected, atol=1e-6)
