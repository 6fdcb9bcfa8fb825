"""What retrieval and k-NN classification are judged by: pure functions of embeddings and labels."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from grafit_jax.cosine import matmul, unit
from grafit_jax.neighbors import map_blocks

# Queries scored at a time in `average_precision`: a block holds [block, N] similarities.
_QUERY_BLOCK = 64


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
        raise ValueError(f"recall@k for k = {tuple(ks)} needs k in 1..{hits.shape[1]}, the neighbours at hand.")
    return {k: hits[:, :k].any(axis=1).astype(jnp.float32) for k in ks}


def knn_classify(
    neighbor_labels: ArrayLike, similarity: ArrayLike, num_classes: int, temperature: float = 0.05
) -> Array:
    """The class with the largest sum of exp(similarity / temperature) over the neighbours (SNCA).

    Args:
      neighbor_labels: int [Q, k] in 0..num_classes-1.
      similarity: float [Q, k], cosines.
      num_classes: C.
      temperature: sigma.

    Returns:
      int32 [Q]; ties go to the lower label.
    """
    similarity = jnp.asarray(similarity, jnp.float32)
    # Shifted by the best neighbour, which changes no ranking and cannot overflow.
    vote = jnp.exp((similarity - similarity.max(axis=1, keepdims=True)) / temperature)
    rows = jnp.arange(len(similarity))[:, None]
    votes = jnp.zeros((len(similarity), num_classes)).at[rows, jnp.asarray(neighbor_labels)].add(vote)
    return jnp.argmax(votes, axis=1).astype(jnp.int32)


def average_precision(
    queries: ArrayLike,
    labels: ArrayLike,
    gallery: ArrayLike,
    gallery_labels: ArrayLike,
    *,
    query_ids: ArrayLike | None = None,
    gallery_ids: ArrayLike | None = None,
) -> tuple[Array, Array]:
    """Average precision of each query over the whole ranking of the gallery by cosine.

    AP = mean over the positives p of (positives ranked at or above p) / (rank of p), which is
    `sklearn.metrics.average_precision_score` where no two similarities are equal; equal ones rank the lower gallery
    index first. Only the positives' ranks are computed: the ranking is never sorted.

    Args:
      queries: float [Q, D].
      labels: int [Q], >= 0.
      gallery: float [N, D].
      gallery_labels: int [N], >= 0.
      query_ids: int [Q]; a gallery row with the query's id is left out of its ranking. Together with `gallery_ids`.
      gallery_ids: int [N].

    Returns:
      float32 [Q], 0 for a query without positives, and int32 [Q], the number of positives.
    """
    labels, gallery_labels = np.asarray(labels), np.asarray(gallery_labels)
    if query_ids is None or gallery_ids is None:
        query_ids, gallery_ids = np.full(len(labels), -1), np.arange(len(gallery_labels))
    members = _class_members(gallery_labels, num_classes=max(labels.max(), gallery_labels.max()) + 1)
    return _average_precision(
        jnp.asarray(queries), jnp.asarray(gallery), labels, members, jnp.asarray(query_ids), jnp.asarray(gallery_ids)
    )


def _class_members(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """int32 [num_classes, P]: the rows of each class in order, padded with -1 to the size of the largest class."""
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=num_classes)
    column = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    members = np.full((num_classes, counts.max()), -1, np.int32)
    members[labels[order], column] = order
    return members


@functools.partial(jax.jit)
def _average_precision(queries, gallery, labels, members, query_ids, gallery_ids):
    gallery = unit(gallery)
    index = jnp.arange(len(gallery))

    def one_query(similarity, label, query_id):
        similarity = jnp.where(gallery_ids == query_id, -jnp.inf, similarity)
        member = members[label]
        positive = (member >= 0) & (gallery_ids[member] != query_id)
        own = similarity[member][:, None]
        # The rows that come before each positive, and the positives among them; equal rows come in index order.
        before = (similarity > own) | ((similarity == own) & (index < member[:, None]))
        rank = 1 + jnp.sum(before, axis=1)
        rank = jnp.sort(jnp.where(positive, rank, len(gallery) + 1))
        count = jnp.sum(positive)
        # The i-th positive in the ranking has i positives at or above it.
        nth = 1 + jnp.arange(len(rank))
        precision = jnp.where(nth <= count, nth / rank, 0.0)
        return jnp.sum(precision) / jnp.maximum(count, 1), count

    def block(rows):
        query, label, query_id = rows
        return jax.vmap(one_query)(matmul(query, gallery.T), label, query_id)

    ap, count = map_blocks(block, (unit(queries), labels, query_ids), _QUERY_BLOCK)
    return ap.astype(jnp.float32), count.astype(jnp.int32)
