"""Metrics of retrieval and k-NN classification, as pure functions of embeddings and labels."""

import concurrent.futures
import itertools
import os
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from grafit_jax.errors import UserError
from grafit_jax.retrieval import neighbors

# Queries per batch of the k-NN vote, which needs k^2 values per query.
_VOTERS = 256


def recall_at_k(neighbor_labels: ArrayLike, labels: ArrayLike, ks: Sequence[int]) -> dict[int, Array]:
    """Returns whether each query has an image of its class among its k nearest neighbours, for each k.

    Args:
      neighbor_labels: int [Q, K], labels of the neighbours, nearest first, without the query itself.
      labels: int [Q].
      ks: values of k, each in 1..K.

    Returns:
      A dict k -> float32 [Q] of 0 and 1; its mean is recall@k.

    Raises:
      UserError: a k outside 1..K.
    """
    hits = jnp.asarray(neighbor_labels) == jnp.asarray(labels)[:, None]
    if min(ks) < 1 or max(ks) > hits.shape[1]:
        raise UserError(
            f"recall@k: found k = {tuple(ks)}; expected k from 1 to {hits.shape[1]}, the number of neighbours."
        )
    return {k: hits[:, :k].any(axis=1).astype(jnp.float32) for k in ks}


@jax.jit
def knn_classify(neighbor_labels: ArrayLike, similarity: ArrayLike, temperature: float = 0.05) -> Array:
    """Returns the class with the largest sum of exp(similarity / temperature) over the neighbours, as in SNCA.

    Args:
      neighbor_labels: int [Q, k], labels of the neighbours.
      similarity: float [Q, k], their cosine similarities.
      temperature: temperature sigma.

    Returns:
      int32 [Q]; ties go to the lower label.
    """

    def winner(neighbors_of_query):
        label, similarity = neighbors_of_query
        # Subtracting the maximum keeps the ranking and avoids overflow.
        vote = jnp.exp((similarity - similarity.max()) / temperature)
        votes = jnp.sum(jnp.where(label[:, None] == label, vote, 0.0), axis=1)  # votes of each neighbour's class
        return jnp.min(jnp.where(votes == votes.max(), label, jnp.iinfo(jnp.int32).max))

    labels = jnp.asarray(neighbor_labels, jnp.int32)
    return lax.map(winner, (labels, jnp.asarray(similarity, jnp.float32)), batch_size=_VOTERS)


def average_precision(
    queries: ArrayLike,
    labels: ArrayLike,
    gallery: ArrayLike,
    gallery_labels: ArrayLike,
    *,
    query_ids: ArrayLike | None = None,
    gallery_ids: ArrayLike | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Computes the average precision of each query over the whole gallery, ranked by cosine similarity.

    AP is the mean over the positives p of (positives at least as near as p) / (rows at least as near as p), as in
    `sklearn.metrics.average_precision_score`. Rows with equal float32 similarity share a rank, so the order of the
    gallery does not matter.

    Args:
      queries: float [Q, D].
      labels: [Q], integers or strings.
      gallery: float [N, D].
      gallery_labels: [N].
      query_ids: int [Q]; the gallery row with the query's id is excluded. Requires `gallery_ids`.
      gallery_ids: int [N], unique.

    Returns:
      The average precision float64 [Q], 0 for queries without positives, and the number of positives int64 [Q].

    Raises:
      UserError: labels of the wrong length or type, or an error of `neighbors.search`.
    """
    *_, levels = _one_pass(queries, {"": labels}, gallery, {"": gallery_labels}, query_ids, gallery_ids, k=1)
    return levels[""].precision, levels[""].positives


def retrieval_metrics(
    queries: ArrayLike,
    labels: Mapping[str, ArrayLike],
    gallery: ArrayLike | None = None,
    gallery_labels: Mapping[str, ArrayLike] | None = None,
    *,
    query_ids: ArrayLike | None = None,
    gallery_ids: ArrayLike | None = None,
    ks: Sequence[int] = (1, 2, 5, 10),
    knn_k: int = 30,
    knn_temperature: float = 0.05,
) -> dict[str, float]:
    """Computes all retrieval metrics in one pass over the similarities.

    Args:
      queries: float [Q, D].
      labels: level -> [Q], integers or strings: {"": fine, "coarse": coarse}, or any levels of a hierarchy.
      gallery: float [N, D]. With None the queries are the gallery, and each is excluded from its own neighbours.
      gallery_labels: level -> [N]; only levels on both sides are scored.
      query_ids: int [Q]; the gallery row with the query's id is excluded. Requires `gallery_ids`.
      gallery_ids: int [N], unique.
      ks: values of k of recall@k.
      knn_k: number of neighbours that vote, at most the size of the gallery; 0 disables `knn_top1`.
      knn_temperature: temperature sigma of the votes.

    Returns:
      A dict of metrics, as fractions. Names have the prefix "LEVEL/", except for level "".

      - recall@k and map: means over the queries that have a positive; 0 if there are none.
      - knn_top1: accuracy of the k-NN vote over all queries.
      - queries_without_positive: number of queries excluded from recall@k and map.

    Raises:
      UserError: labels of the wrong length or type, or an error of `neighbors.search`.
    """
    if gallery is None:
        gallery, gallery_labels = queries, labels
        query_ids = gallery_ids = np.arange(len(np.asarray(queries)))
    others = len(np.asarray(gallery)) - neighbors.has_own_row(query_ids, gallery_ids)
    k = max(*ks, min(knn_k, others))
    similarity, index, levels = _one_pass(queries, labels, gallery, gallery_labels or {}, query_ids, gallery_ids, k=k)
    result = {}
    for name, level in levels.items():
        prefix = f"{name}/" if name else ""
        counted = level.positives > 0
        near_labels = level.gallery_labels[index]
        for size, hit in recall_at_k(near_labels, level.labels, ks).items():
            result[f"{prefix}recall@{size}"] = _mean(np.asarray(hit)[counted])
        result[f"{prefix}map"] = _mean(level.precision[counted])
        if knn_k:
            vote = knn_classify(near_labels[:, :knn_k], similarity[:, :knn_k], knn_temperature)
            result[f"{prefix}knn_top1"] = _mean(np.asarray(vote) == level.labels)
        result[f"{prefix}queries_without_positive"] = int(np.sum(~counted))
    return result


def _mean(per_query: np.ndarray) -> float:
    return float(np.mean(per_query, dtype=np.float64)) if len(per_query) else 0.0


class _Level:
    """Labels of one level as integer codes, and the average precision of the queries scored so far."""

    def __init__(self, labels: ArrayLike, gallery_labels: ArrayLike, num_queries: int, num_rows: int):
        sides = np.asarray(labels), np.asarray(gallery_labels)
        for side, given, number in zip(("queries", "gallery"), sides, (num_queries, num_rows), strict=True):
            if given.shape != (number,):
                raise UserError(f"labels of the {side}: found shape {given.shape}; expected ({number},).")
            if given.dtype.kind not in "biuUS":
                raise UserError(f"labels of the {side}: found dtype {given.dtype}; expected integers or strings.")
        if (sides[0].dtype.kind in "US") != (sides[1].dtype.kind in "US"):
            raise UserError(
                f"labels: found dtype {sides[0].dtype} for the queries and {sides[1].dtype} for the gallery; expected "
                "integers on both sides or strings on both sides."
            )
        code = np.unique(np.concatenate(sides), return_inverse=True)[1]
        self.labels, self.gallery_labels = code[:num_queries], code[num_queries:]
        order = np.argsort(self.gallery_labels, kind="stable")
        bounds = np.searchsorted(self.gallery_labels[order], np.arange(np.max(self.labels) + 2))
        self._members = [order[a:b] for a, b in itertools.pairwise(bounds)]
        self.precision = np.zeros(num_queries)
        self.positives = np.zeros(num_queries, np.int64)

    def score(self, query: int, similarity: np.ndarray, ranked: np.ndarray, own: int) -> None:
        """Scores a query from its similarities [N] to the gallery, unsorted and sorted in ascending order."""
        members = self._members[self.labels[query]]
        positive = np.sort(similarity[members[members != own]])
        self.positives[query] = len(positive)
        if len(positive):
            near = len(ranked) - np.searchsorted(ranked, positive)  # number of rows at least as near
            if own >= 0:
                near -= similarity[own] >= positive
            near_positive = len(positive) - np.searchsorted(positive, positive)
            self.precision[query] = np.mean(near_positive / near)


def _one_pass(queries, labels, gallery, gallery_labels, query_ids, gallery_ids, *, k: int):
    """Returns similarity and index [Q, k] of the k nearest rows, and the scored common levels by name."""
    neighbors.check(queries, gallery, k, query_ids, gallery_ids)
    sizes = len(np.asarray(queries)), len(np.asarray(gallery))
    levels = {name: _Level(labels[name], gallery_labels[name], *sizes) for name in labels if name in gallery_labels}
    near = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy sorts without the GIL
        for block in neighbors.blocks(queries, gallery, k, query_ids=query_ids, gallery_ids=gallery_ids, whole=True):
            near.append(block.near)
            assert block.similarity is not None
            ranked = pool.map(np.sort, block.similarity)
            for query, *row in zip(itertools.count(block.queries.start), block.similarity, ranked, block.own):
                for level in levels.values():
                    level.score(query, *row)
    return *(np.concatenate(x) for x in zip(*near, strict=True)), levels
