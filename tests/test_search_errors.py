"""Errors of the search: each invalid argument is one line with what was found."""

import numpy as np
import pytest

from grafit_jax.errors import UserError
from grafit_jax.retrieval import neighbors, rerank


def points(n, dim, seed=0):
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


@pytest.mark.parametrize(
    "case, numbers",
    [
        ("k zero", ["0"]),
        ("k negative", ["-3"]),
        ("k above the gallery", ["12", "11"]),
        ("k leaves no room for self", ["11", "10"]),
        ("dimensions", ["5", "6"]),
        ("query not finite", ["1"]),
        ("gallery not finite", ["1"]),
        ("ids for one side only", []),
        ("zero query", ["1"]),
        ("zero gallery row", ["1"]),
        ("ids twice", ["2", "3"]),
        ("ids of another length", ["3", "4"]),
        ("not a matrix", ["5"]),
        ("empty", ["0", "5"]),
    ],
)
def test_errors_are_one_line_with_the_numbers_found(case, numbers):
    queries, gallery, k, ids = points(3, 5), points(11, 5, seed=17), 4, {}
    match case:
        case "k zero":
            k = 0
        case "k negative":
            k = -3
        case "k above the gallery":
            k = 12
        case "k leaves no room for self":
            k, ids = 11, {"query_ids": np.array([0, 1, 2]), "gallery_ids": np.arange(11)}
        case "dimensions":
            gallery = points(11, 6)
        case "query not finite":
            queries[2, 1] = np.nan
        case "gallery not finite":
            gallery[10, 0] = np.inf
        case "ids for one side only":
            ids = {"query_ids": np.array([0, 1, 2])}
        case "zero query":
            queries[1] = 0
        case "zero gallery row":
            gallery[9] = 0
        case "ids twice":
            ids = {"query_ids": np.array([0, 1, 2]), "gallery_ids": np.array([4, 4, 0, 1, 2, 3, 3, 5, 6, 7, 8])}
        case "ids of another length":
            ids = {"query_ids": np.array([0, 1, 2, 3]), "gallery_ids": np.arange(11)}
        case "not a matrix":
            queries = queries[0]
        case "empty":
            queries = queries[:0]
    with pytest.raises(UserError) as caught:
        neighbors.search(queries, gallery, k, **ids)
    message = str(caught.value)
    assert "\n" not in message
    for number in numbers:
        assert number in message, message


def test_invalid_rows_are_counted_over_all_parts(monkeypatch):
    monkeypatch.setattr(rerank, "_VALUES", 3 * 5)
    rows = np.ones((12, 5), np.float32)
    rows[[4, 10]], rows[7, 2], rows[8] = 0, np.nan, 1e-30
    with pytest.raises(UserError, match=r"x: found 1 rows with NaN or infinite values, first row 7;"):
        neighbors.check_embeddings("x", rows)
    rows[7] = 1
    with pytest.raises(UserError, match=r"x: found 2 zero vectors, first row 4;"):
        neighbors.check_embeddings("x", rows)
