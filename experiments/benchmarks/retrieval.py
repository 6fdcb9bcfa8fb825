"""Search and metrics of random embeddings, against faiss and scikit-learn."""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import timing
from grafit_jax.retrieval import metrics, neighbors

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


def _search(num_queries: int, num_rows: int, k: int, goal: float, make=_random, rounds: int = 3) -> dict[str, Any]:
    queries, gallery = make(num_queries, 1), make(num_rows, 2)
    timing.reset_peak()
    before = timing.gigabytes("VmRSS")

    def ours():
        return neighbors.search(queries, gallery, k)

    first = timing.seconds(ours)
    result: dict[str, Any] = {"work": f"{num_queries} x {num_rows} x {_DIM}, k = {k}", "first_call_s": first}
    if make is _clustered:
        result["work"] += ", in 100 clusters"
    result |= {"peak_gigabytes": timing.gigabytes("VmHWM"), "gigabytes_over_data": timing.gigabytes("VmHWM") - before}
    try:
        import faiss
    except ImportError:
        return result | {"seconds": timing.best([ours], rounds)[0], "peer": "faiss IndexFlatIP: not installed"}
    index = faiss.IndexFlatIP(_DIM)
    index.add(gallery)
    seconds, peer = timing.best([ours, lambda: index.search(queries, k)], rounds)
    different = np.any(index.search(queries, k)[1] != ours()[1], axis=1)
    return result | {
        "seconds": seconds, "peer": "faiss IndexFlatIP", "peer_seconds": peer, "ratio": seconds / peer, "goal": goal,
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

    timing.reset_peak()
    first = timing.seconds(ours)
    [seconds] = timing.best([ours], 1)
    peak = timing.gigabytes("VmHWM")

    from sklearn.metrics import average_precision_score

    similarity = queries[:sample] @ gallery.T
    expected = np.zeros(sample)

    def theirs():
        for i in range(sample):
            other = np.arange(num_rows) != (i if within else -1)
            expected[i] = average_precision_score((labels == query_labels[i])[other], similarity[i][other])

    peer = timing.seconds(theirs) * num_queries / sample
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

    first = timing.seconds(lambda: metrics.retrieval_metrics(x, labels))
    one_by_one()
    ours, apart = timing.best([lambda: metrics.retrieval_metrics(x, labels), one_by_one], 1)
    return {"work": "all metrics at 2 levels, 10000 x 10000 x 128", "first_call_s": first, "seconds": ours,
            "peer": "the same functions one by one", "peer_seconds": apart, "ratio": ours / apart,
            "peak_gigabytes": timing.gigabytes("VmHWM")}  # fmt: skip


ENTRIES: dict[str, Callable[[], dict[str, Any]]] = {
    "search_k10": lambda: _search(10_000, 50_000, 10, goal=1.0),
    "search_k100": lambda: _search(10_000, 50_000, 100, goal=1.0),
    "search_k10_clustered": lambda: _search(10_000, 50_000, 10, goal=1.0, make=_clustered),
    "search_million": lambda: _search(1_000, 1_000_000, 100, goal=1.2, rounds=1),
    "map_500_positives": lambda: _map(10_000, 50_000, 100, goal=8.0, sample=100),
    "map_inaturalist_size": lambda: _map(24_426, 24_426, 8_142, goal=None, sample=100),
    "one_pass": _one_pass,
}
