"""Search and metrics of random embeddings, against faiss and scikit-learn."""

import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from grafit_jax import metrics, neighbors

_ROUNDS = 5
_DIM = 128


def _random(n: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((n, _DIM), np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _clustered(n: int, seed: int) -> np.ndarray:
    """100 classes, as a trained network has them: neighbours are near, and near to each other."""
    centre = np.random.default_rng(0).standard_normal((100, _DIM), np.float32)
    rng = np.random.default_rng(seed)
    x = centre[rng.integers(0, 100, n)] + 0.3 * rng.standard_normal((n, _DIM), np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _search(
    num_queries: int, num_rows: int, k: int, goal: float, make=_random, rounds: int = _ROUNDS
) -> dict[str, Any]:
    queries, gallery = make(num_queries, 1), make(num_rows, 2)
    before = _peak_gigabytes()
    first = _seconds(lambda: neighbors.search(queries, gallery, k))
    result: dict[str, Any] = {"work": f"{num_queries} x {num_rows} x {_DIM}, k = {k}", "first_call_s": first}
    result["gigabytes_over_data"] = _peak_gigabytes() - before
    try:
        import faiss
    except ImportError:
        return result | {"seconds": min(_seconds(lambda: neighbors.search(queries, gallery, k)) for _ in range(rounds)),
                         "peer": "faiss IndexFlatIP: not installed"}  # fmt: skip
    index = faiss.IndexFlatIP(_DIM)
    index.add(gallery)
    index.search(queries[:100], k)
    pairs = [
        (_seconds(lambda: neighbors.search(queries, gallery, k)), _seconds(lambda: index.search(queries, k)))
        for _ in range(rounds)
    ]
    ours, theirs = (min(side) for side in zip(*pairs, strict=True))
    different = np.any(index.search(queries, k)[1] != neighbors.search(queries, gallery, k)[1], axis=1)
    return result | {
        "seconds": ours, "peer": "faiss IndexFlatIP", "peer_seconds": theirs, "ratio": ours / theirs, "goal": goal,
        "queries_where_faiss_differs": int(np.sum(different)),
    }  # fmt: skip


def _map(num_queries: int, num_rows: int, num_classes: int, goal: float | None, sample: int) -> dict[str, Any]:
    """Exact mAP; scikit-learn scores `sample` queries, given our similarities for nothing, and is scaled up."""
    gallery = _random(num_rows, 2)
    labels = np.random.default_rng(3).permutation(np.arange(num_rows) % num_classes)
    within = num_queries == num_rows
    queries = gallery if within else _random(num_queries, 1)
    query_labels = labels if within else np.arange(num_queries) % num_classes
    ids = {"query_ids": np.arange(num_rows), "gallery_ids": np.arange(num_rows)} if within else {}

    def ours():
        return metrics.average_precision(queries, query_labels, gallery, labels, **ids)[0]

    first = _seconds(ours)
    seconds = min(_seconds(ours) for _ in range(2))
    peak = _peak_gigabytes()

    from sklearn.metrics import average_precision_score

    similarity = queries[:sample] @ gallery.T
    expected = np.zeros(sample)

    def theirs():
        for i in range(sample):
            other = np.arange(num_rows) != (i if within else -1)
            expected[i] = average_precision_score((labels == query_labels[i])[other], similarity[i][other])

    peer = _seconds(theirs) * num_queries / sample
    return {
        "work": f"mAP, {num_queries} x {num_rows} x {_DIM}, {num_rows // num_classes} positives"
        + (" with the query" if within else ""),
        "first_call_s": first, "seconds": seconds, "goal_s": goal, "peak_gigabytes": peak,
        "peer": f"scikit-learn, {sample} queries scaled, similarities given",
        "peer_seconds": peer, "ratio": seconds / peer,
        "largest_difference": float(np.max(np.abs(ours()[:sample] - expected))),
    }  # fmt: skip


def _one_pass() -> dict[str, Any]:
    """All metrics at two levels, against the search and the two mAP that they would be one by one."""
    x = _random(10_000, 1)
    labels = {"": np.arange(10_000) % 100, "coarse": np.arange(10_000) % 100 // 5}
    ids: dict[str, Any] = {"query_ids": np.arange(10_000), "gallery_ids": np.arange(10_000)}

    def one_by_one():
        neighbors.search(x, x, 30, **ids)
        for y in labels.values():
            metrics.average_precision(x, y, x, y, **ids)

    first = _seconds(lambda: metrics.retrieval_metrics(x, labels))
    one_by_one()
    pairs = [(_seconds(lambda: metrics.retrieval_metrics(x, labels)), _seconds(one_by_one)) for _ in range(3)]
    ours, apart = (min(side) for side in zip(*pairs, strict=True))
    return {"work": "all metrics at 2 levels, 10000 x 10000 x 128", "first_call_s": first, "seconds": ours,
            "peer": "the same functions one by one", "peer_seconds": apart, "ratio": ours / apart}  # fmt: skip


ENTRIES: dict[str, Callable[[], dict[str, Any]]] = {
    "search_k10": lambda: _search(10_000, 50_000, 10, goal=1.0),
    "search_k100": lambda: _search(10_000, 50_000, 100, goal=1.0),
    "search_k10_clustered": lambda: _search(10_000, 50_000, 10, goal=1.0, make=_clustered),
    "search_million": lambda: _search(1_000, 1_000_000, 100, goal=1.2, rounds=3),
    "map_500_positives": lambda: _map(10_000, 50_000, 100, goal=8.0, sample=100),
    "map_inaturalist_size": lambda: _map(24_426, 24_426, 8_142, goal=None, sample=100),
    "one_pass": _one_pass,
}
