"""Search and metrics on random embeddings, against faiss and scikit-learn."""

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import timing
from benchmarks.growth import growth
from grafit_jax.retrieval import embeddings, metrics, neighbors
from grafit_jax.retrieval.evaluate import Embedded, evaluate

_DIM = 128


def _random(n: int, seed: int, clusters: int = 0) -> np.ndarray:
    """Returns unit vectors [n, 128], in clusters like those of the classes of a trained network if `clusters` > 0."""
    rng = np.random.default_rng(seed)
    if clusters:
        centre = np.random.default_rng(0).standard_normal((clusters, _DIM), np.float32)
        x = centre[rng.integers(0, clusters, n)] + 0.3 * rng.standard_normal((n, _DIM), np.float32)
    else:
        x = rng.standard_normal((n, _DIM), np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


# Takes queries [Q, D] and k, and returns their nearest rows of a gallery, int [Q, k].
Search = Callable[[np.ndarray, int], np.ndarray]


def with_faiss(gallery: np.ndarray) -> Search:
    """Returns a search in unit vectors [N, D]."""
    import faiss

    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(gallery)
    return lambda queries, k: index.search(queries, k)[1]


def search(
    num_queries: int, num_rows: int, k: int, goal: float | None = None, clusters: int = 0, rounds: int = 3,
    peer_name: str = "faiss IndexFlatIP", peer: Callable[[np.ndarray], Search] = with_faiss,
) -> dict[str, Any]:  # fmt: skip
    queries, gallery = _random(num_queries, 1, clusters), _random(num_rows, 2, clusters)
    work = f"{num_queries} x {num_rows} x {_DIM}, k = {k}" + (f", in {clusters} clusters" if clusters else "")
    timing.reset_peak()
    before = timing.gigabytes("VmRSS")

    def ours():
        return neighbors.search(queries, gallery, k)

    facts: dict[str, Any] = {"first_call_s": timing.seconds(ours), "peak_gigabytes": timing.gigabytes("VmHWM")}
    facts["gigabytes_over_data"] = facts["peak_gigabytes"] - before
    try:
        theirs = peer(gallery)
    except ImportError:
        [seconds] = timing.best([ours], rounds)
        return timing.line(work, seconds, f"{peer_name}: not installed", **facts)
    facts["queries_where_the_peer_differs"] = int(np.sum(np.any(theirs(queries, k) != ours()[1], axis=1)))
    seconds, peer_seconds = timing.best([ours, lambda: theirs(queries, k)], rounds)
    return timing.line(work, seconds, peer_name, peer_seconds, goal=goal, **facts)


def search_file(num_queries: int, num_rows: int, dim: int, k: int) -> dict[str, Any]:
    """Measures a search in a memory-mapped .npy file of bfloat16, its memory, and its recall of the float32 result.

    The queries differ from a gallery row each by noise, as a photo from another of its class.
    """
    rng, part_rows = np.random.default_rng(2), 2**18
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "gallery.npy")
        shape = num_rows, dim
        gallery = np.lib.format.open_memmap(path, "w+", np.dtype("V2"), shape)
        queries, best = np.empty((0, dim), np.float32), np.empty((num_queries, 0))
        nearest = np.empty((num_queries, 0), int)
        for first in range(0, num_rows, part_rows):
            part = rng.standard_normal((min(part_rows, num_rows - first), dim), np.float32)
            if not first:
                queries = part[:num_queries] + 2 * rng.standard_normal((num_queries, dim), np.float32)
                queries /= np.linalg.norm(queries, axis=1, keepdims=True)
            part /= np.linalg.norm(part, axis=1, keepdims=True)
            gallery[first : first + len(part)] = part.astype(embeddings.DTYPES["bfloat16"]).view("V2")
            similarity, index = neighbors.search(queries, part, k)
            best, nearest = np.hstack([best, similarity]), np.hstack([nearest, index + first])
            order = np.argsort(-best, axis=1)[:, :k]
            best, nearest = np.take_along_axis(best, order, axis=1), np.take_along_axis(nearest, order, axis=1)
        gallery.flush()
        del gallery, part
        loaded = embeddings.load(path).embedding
        neighbors.search(queries, loaded[:part_rows], k)  # compiles
        found = []
        with timing.PeakOfOwnMemory() as peak:
            seconds = timing.seconds(lambda: found.append(neighbors.search(queries, loaded, k)[1]))
    recall = float(np.mean([len(set(a) & set(b)) / k for a, b in zip(nearest, found[0], strict=True)]))
    same = float(np.mean(nearest[:, 0] == found[0][:, 0]))
    work = f"{num_queries} x {num_rows} x {dim}, k = {k}, a memory-mapped file of bfloat16"
    return timing.line(
        work, seconds, f"the float32 vectors, of whose neighbours it finds {100 * recall:.1f} %",
        peak_gigabytes=peak.gigabytes, recall_of_float32=recall, same_first=same,
    )  # fmt: skip


def mean_average_precision(
    num_queries: int, num_rows: int, num_classes: int, goal: float | None = None, sample: int = 100
) -> dict[str, Any]:
    """Measures exact mAP. scikit-learn scores `sample` queries from given similarities, and its time is scaled."""
    from sklearn.metrics import average_precision_score

    gallery = _random(num_rows, 2)
    labels = np.random.default_rng(3).permutation(np.arange(num_rows) % num_classes)
    within = num_queries == num_rows
    queries = gallery if within else _random(num_queries, 1)
    query_labels = labels if within else np.arange(num_queries) % num_classes
    ids = {"query_ids": np.arange(num_rows), "gallery_ids": np.arange(num_rows)} if within else {}

    def ours():
        return metrics.average_precision(queries, query_labels, gallery, labels, **ids)[0]

    timing.reset_peak()
    facts: dict[str, Any] = {"first_call_s": timing.seconds(ours)}
    [seconds] = timing.best([ours], 1)
    facts |= {"goal_s": goal, "peak_gigabytes": timing.gigabytes("VmHWM")}
    similarity, expected = queries[:sample] @ gallery.T, np.zeros(sample)

    def theirs():
        for i in range(sample):
            other = np.arange(num_rows) != (i if within else -1)
            expected[i] = average_precision_score((labels == query_labels[i])[other], similarity[i][other])

    peer_seconds = timing.seconds(theirs) * num_queries / sample
    facts["largest_difference"] = float(np.max(np.abs(ours()[:sample] - expected)))
    work = f"mAP, {num_queries} x {num_rows} x {_DIM}, {num_rows // num_classes} positives"
    work += " with the query" if within else ""
    return timing.line(
        work, seconds, f"scikit-learn, {sample} queries scaled, similarities given", peer_seconds, **facts
    )


def one_pass() -> dict[str, Any]:
    """Measures all metrics at two levels in one pass, against the search and the two mAP one by one."""
    x = _random(10_000, 1)
    labels = {"": np.arange(10_000) % 100, "coarse": np.arange(10_000) % 100 // 5}
    ids: dict[str, Any] = {"query_ids": np.arange(10_000), "gallery_ids": np.arange(10_000)}

    def ours():
        return metrics.retrieval_metrics(x, labels)

    def one_by_one():
        neighbors.search(x, x, 30, **ids)
        for y in labels.values():
            metrics.average_precision(x, y, x, y, **ids)

    first = timing.seconds(ours)
    one_by_one()
    seconds, apart = timing.best([ours, one_by_one], 1)
    work, peak = "all metrics at 2 levels, 10000 x 10000 x 128", timing.gigabytes("VmHWM")
    peer = "the same functions one by one"
    return timing.line(work, seconds, peer, apart, first_call_s=first, peak_gigabytes=peak)


def evaluation(num_test: int, num_train: int, goal: float | None = None) -> dict[str, Any]:
    """Measures all metrics of an evaluation at two levels, as after an epoch."""
    sizes = {"test": num_test, "train": num_train}
    label = {split: np.arange(n) % 100 for split, n in sizes.items()}
    test, train = (
        Embedded(_random(n, seed, clusters=100), {"": label[split], "coarse": label[split] // 5})
        for seed, (split, n) in enumerate(sizes.items())
    )

    def ours():
        return evaluate(test, train, ks=(1, 2, 5, 10), knn_k=30, knn_temperature=0.07)

    first = timing.seconds(ours)
    [seconds] = timing.best([ours], 1)
    work = f"all metrics at 2 levels, {num_test} test and {num_train} training images, {_DIM} dimensions"
    return timing.line(work, seconds, goal_s=goal, first_call_s=first, peak_gigabytes=timing.gigabytes("VmHWM"))


def growth_of_gallery(num_queries: int, sizes: list[int]) -> dict[str, Any]:
    queries, gallery = _random(num_queries, 1), _random(sizes[-1], 2)

    def measure(size: int) -> float:
        neighbors.search(queries, gallery[:size], 10)
        return timing.best([lambda: neighbors.search(queries, gallery[:size], 10)], 1, 3 if size < sizes[-1] else 1)[0]

    return growth(f"gallery rows, {num_queries} queries", sizes, measure)


ENTRIES: dict[str, Callable[[], dict[str, Any]]] = {
    "search_k10": lambda: search(10_000, 50_000, 10, goal=1.0),
    "search_k100": lambda: search(10_000, 50_000, 100, goal=1.0),
    "search_k10_clustered": lambda: search(10_000, 50_000, 10, goal=1.0, clusters=100),
    "search_million": lambda: search(1_000, 1_000_000, 100, goal=1.2, rounds=1),
    "search_file_10m": lambda: search_file(1_000, 10_000_000, 256, 10),
    "map_500_positives": lambda: mean_average_precision(10_000, 50_000, 100, goal=8.0),
    "map_inaturalist_size": lambda: mean_average_precision(24_426, 24_426, 8_142),
    "one_pass": one_pass,
    "evaluation": lambda: evaluation(10_000, 50_000, goal=3.0),
    "growth": lambda: growth_of_gallery(1_000, [10_000, 100_000, 1_000_000, 10_000_000]),
}
