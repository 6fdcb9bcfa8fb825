"""What retrieval and k-NN classification are judged by: functions of embeddings and labels."""

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

# Queries whose neighbours vote at a time: k^2 values each.
_VOTERS = 256


def recall_at_k(neighbor_labels: ArrayLike, labels: ArrayLike, ks: Sequence[int]) -> dict[int, Array]:
    """Whether a query has an image of its own class among its k nearest, for every k.

    Args:
      neighbor_labels: int [Q, K], the labels of the neighbours, nearest first (self already left out).
      labels: int [Q].
      ks: each in 1..K.

    Returns:
      k -> float32 [Q], 1 or 0; their mean is recall@k.
    """
    hits = jnp.asarray(neighbor_labels) == jnp.asarray(labels)[:, None]
    if min(ks) < 1 or max(ks) > hits.shape[1]:
        raise UserError(f"recall@k for k = {tuple(ks)} needs k in 1..{hits.shape[1]}, the neighbours at hand.")
    return {k: hits[:, :k].any(axis=1).astype(jnp.float32) for k in ks}


@jax.jit
def knn_classify(neighbor_labels: ArrayLike, similarity: ArrayLike, temperature: float = 0.05) -> Array:
    """The class with the largest sum of exp(similarity / temperature) over the neighbours (SNCA).

    Args:
      neighbor_labels: int [Q, k].
      similarity: float [Q, k], cosines.
      temperature: sigma.

    Returns:
      int32 [Q]; ties go to the lower label.
    """

    def winner(neighbors_of_query):
        label, similarity = neighbors_of_query
        # Shifted by the best neighbour, which changes no ranking and cannot overflow.
        vote = jnp.exp((similarity - similarity.max()) / temperature)
        votes = jnp.sum(jnp.where(label[:, None] == label, vote, 0.0), axis=1)  # for each neighbour, those of its class
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
    """Average precision of each query over the whole ranking of the gallery by cosine.

    AP = mean over the positives p of (positives at least as near as p) / (rows at least as near as p), which is
    `sklearn.metrics.average_precision_score`, with ties as there: rows whose float32 similarities are equal count
    together, so that their order in the gallery makes no difference.

    Args:
      queries: float [Q, D].
      labels: [Q], integers or strings.
      gallery: float [N, D].
      gallery_labels: [N].
      query_ids: int [Q]; a gallery row with the query's id is left out of its ranking. Together with `gallery_ids`.
      gallery_ids: int [N], none twice.

    Returns:
      float64 [Q], 0 for a query without positives, and int64 [Q], the number of positives.

    Raises:
      UserError (a ValueError): as `neighbors.search`, or labels of another length or kind.
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
    """All metrics of embeddings, from one pass over their similarities.

    Args:
      queries: float [Q, D].
      labels: level -> [Q], integers or strings: {"": fine, "coarse": coarse}, or any levels of a hierarchy.
      gallery: float [N, D], or None: the queries are each other's gallery, and each is left out of its own neighbours.
      gallery_labels: level -> [N]; only levels on both sides are scored.
      query_ids: int [Q], with `gallery_ids`: rows that are left out, see `neighbors.search`.
      gallery_ids: int [N].
      ks: of recall@k.
      knn_k: how many neighbours vote; all, where there are fewer; 0 for no vote.
      knn_temperature: sigma of their votes.

    Returns:
      For every level, with "level/" before all names but those of level "":
      recall@k for every k, map: means over the queries that have a positive, 0 if none has one.
      knn_top1: the share of queries that get their own label by the vote of their neighbours.
      queries_without_positive: how many queries recall@k and map leave out.

    Raises:
      UserError (a ValueError): as `neighbors.search`, or labels of another length or kind.
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
    """The labels of one level as codes from 0, and the average precision of the queries seen so far."""

    def __init__(self, labels: ArrayLike, gallery_labels: ArrayLike, num_queries: int, num_rows: int):
        sides = np.asarray(labels), np.asarray(gallery_labels)
        for side, given, wanted in zip(("queries", "gallery"), sides, (num_queries, num_rows), strict=True):
            if given.shape != (wanted,):
                raise UserError(f"labels of the {side} have shape {given.shape}: want one for every row, ({wanted},).")
            if given.dtype.kind not in "biuUS":
                raise UserError(f"labels of the {side} are {given.dtype}: want integers or strings.")
        if (sides[0].dtype.kind in "US") != (sides[1].dtype.kind in "US"):
            raise UserError(
                f"labels of the queries are {sides[0].dtype} and those of the gallery {sides[1].dtype}: want the same "
                "kind, integers or strings on both sides."
            )
        code = np.unique(np.concatenate(sides), return_inverse=True)[1]
        self.labels, self.gallery_labels = code[:num_queries], code[num_queries:]
        order = np.argsort(self.gallery_labels, kind="stable")
        bounds = np.searchsorted(self.gallery_labels[order], np.arange(self.labels.max() + 2))
        self._members = [order[a:b] for a, b in itertools.pairwise(bounds)]
        self.precision = np.zeros(num_queries)
        self.positives = np.zeros(num_queries, np.int64)

    def score(self, query: int, similarity: np.ndarray, ranked: np.ndarray, own: int) -> None:
        """`similarity` [N] of the query to all rows, `ranked` the same in ascending order."""
        members = self._members[self.labels[query]]
        positive = np.sort(similarity[members[members != own]])
        self.positives[query] = len(positive)
        if len(positive):
            near = len(ranked) - np.searchsorted(ranked, positive)  # how many are at least as near
            if own >= 0:
                near -= similarity[own] >= positive
            near_positive = len(positive) - np.searchsorted(positive, positive)
            self.precision[query] = np.mean(near_positive / near)


def _one_pass(queries, labels, gallery, gallery_labels, query_ids, gallery_ids, *, k: int):
    """The k nearest, similarity and index [Q, k], and the scored levels that both sides have, by name."""
    neighbors.check(queries, gallery, k, query_ids, gallery_ids)
    sizes = len(np.asarray(queries)), len(np.asarray(gallery))
    levels = {name: _Level(labels[name], gallery_labels[name], *sizes) for name in labels if name in gallery_labels}
    near = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy sorts without the interpreter's lock
        for block in neighbors.blocks(queries, gallery, k, query_ids=query_ids, gallery_ids=gallery_ids, whole=True):
            near.append(block.near)
            assert block.similarity is not None
            ranked = pool.map(np.sort, block.similarity)
            for query, *row in zip(itertools.count(block.queries.start), block.similarity, ranked, block.own):
                for level in levels.values():
                    level.score(query, *row)
    return *(np.concatenate(x) for x in zip(*near, strict=True)), levels
