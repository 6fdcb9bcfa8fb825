"""Exact nearest neighbours by cosine, in blocks: no [Q, N] array is ever held."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from grafit_jax.cosine import matmul, unit
from grafit_jax.errors import UserError

_QUERY_BLOCK = 1024
_GALLERY_BLOCK = 8192


def search(
    queries: ArrayLike,
    gallery: ArrayLike,
    k: int,
    *,
    query_ids: ArrayLike | None = None,
    gallery_ids: ArrayLike | None = None,
    axis_name: str | None = None,
) -> tuple[Array, Array]:
    """The k gallery rows with the highest cosine to each query, best first.

    Ties go to the lower gallery index. A row that has the query's own id is left out: by id, never by rank, which goes
    wrong where another row is just as near.

    Args:
      queries: float [Q, D], any length but zero.
      gallery: float [N, D]. With `axis_name`, this device's N rows of it, and all devices ask the same queries.
      k: how many.
      query_ids: int [Q]; given together with `gallery_ids`, or neither.
      gallery_ids: int [N].
      axis_name: a mapped device axis over which the gallery is sharded: local top-k, gather, second top-k.

    Returns:
      similarity float32 [Q, k] and index int32 [Q, k] into the gallery (of all devices, in device order).

    Raises:
      UserError: k < 1 or more than the gallery holds, other dimensions, ids for one side only, and, where the values
        are at hand (outside jit), embeddings that are zero or not finite.
    """
    queries, gallery = jnp.asarray(queries), jnp.asarray(gallery)
    _check(queries, gallery, k, query_ids, gallery_ids, axis_name)
    if query_ids is None:  # ids that never meet
        query_ids, gallery_ids = np.full(len(queries), -1), np.arange(len(gallery))
    query_ids, gallery_ids = jnp.asarray(query_ids, jnp.int32), jnp.asarray(gallery_ids, jnp.int32)
    if axis_name is None:
        return _search(queries, gallery, query_ids, gallery_ids, k)
    local_k = min(k, len(gallery))
    similarity, index = _search(queries, gallery, query_ids, gallery_ids, local_k)
    index = index + lax.axis_index(axis_name) * len(gallery)
    # Candidates stand in device order, so that the second top-k still gives ties to the lower index.
    similarity, index = (lax.all_gather(x, axis_name, axis=1, tiled=True) for x in (similarity, index))
    best, place = lax.top_k(similarity, k)
    return best, jnp.take_along_axis(index, place, axis=1)


def check_embeddings(name: str, embeddings: ArrayLike) -> None:
    """Raises UserError unless `embeddings` is [n, D] with n >= 1, finite, and without zero vectors."""
    if np.ndim(embeddings) != 2 or 0 in np.shape(embeddings):
        raise UserError(f"{name} has shape {np.shape(embeddings)}: want [n, D] with at least one row and column.")
    if isinstance(embeddings, jax.core.Tracer):
        return
    norm = np.linalg.norm(np.asarray(embeddings, np.float64), axis=1)
    if not np.isfinite(norm).all():
        rows = np.flatnonzero(~np.isfinite(norm))
        raise UserError(
            f"{name} has {len(rows)} rows with NaN or infinite values, the first is row {rows[0]}: "
            "the network that made them has diverged; use an earlier checkpoint or remove these rows."
        )
    if not norm.all():
        rows = np.flatnonzero(norm == 0)
        raise UserError(
            f"{name} has {len(rows)} zero vectors, the first is row {rows[0]}: their cosine is undefined; remove them."
        )


def _check(queries, gallery, k, query_ids, gallery_ids, axis_name):
    check_embeddings("queries", queries)
    check_embeddings("gallery", gallery)
    if queries.shape[1] != gallery.shape[1]:
        raise UserError(
            f"queries have {queries.shape[1]} dimensions and the gallery {gallery.shape[1]}: want embeddings of the "
            "same network and layer."
        )
    if (query_ids is None) != (gallery_ids is None):
        raise UserError("found ids for one of queries and gallery: give query_ids and gallery_ids, or neither.")
    for name, ids, rows in (("query_ids", query_ids, queries), ("gallery_ids", gallery_ids, gallery)):
        if ids is not None and np.shape(ids) != (len(rows),):
            raise UserError(f"{name} has shape {np.shape(ids)}: want one id a row, ({len(rows)},).")
    if k < 1:
        raise UserError(f"k must be at least 1, found {k}.")
    at_hand = len(gallery) * (1 if axis_name is None else lax.axis_size(axis_name))
    if query_ids is not None and not any(isinstance(i, jax.core.Tracer) for i in (query_ids, gallery_ids)):
        ids, counts = np.unique(gallery_ids, return_counts=True)
        at_hand -= counts[np.isin(ids, query_ids)].max(initial=0)
    if k > at_hand:
        raise UserError(
            f"k = {k} neighbours asked of a gallery with {at_hand} rows (the query itself not counted): "
            "lower k or enlarge the gallery."
        )


@functools.partial(jax.jit, static_argnames="k")
def _search(queries, gallery, query_ids, gallery_ids, k):
    num_rows = len(gallery)
    gallery = unit(gallery)
    block = max(min(_GALLERY_BLOCK, num_rows), k)
    padding = -num_rows % block
    gallery = jnp.pad(gallery, ((0, padding), (0, 0))).reshape(-1, block, gallery.shape[1])
    gallery_ids = jnp.pad(gallery_ids, (0, padding)).reshape(-1, block)
    first = jnp.arange(len(gallery)) * block

    def search_block(block_of_queries):
        query, ids = block_of_queries

        def merge(best, rows):
            row, row_ids, first_row = rows
            index = first_row + jnp.arange(block)
            left_out = (row_ids == ids[:, None]) | (index >= num_rows)
            similarity = jnp.where(left_out, -jnp.inf, matmul(query, row.T))
            block_best, place = lax.top_k(similarity, k)
            # The best so far come first: they have the lower indices, and top_k keeps the order of ties.
            candidates = [jnp.concatenate(pair, axis=1) for pair in zip(best, (block_best, index[place]), strict=True)]
            similarity, place = lax.top_k(candidates[0], k)
            return (similarity, jnp.take_along_axis(candidates[1], place, axis=1)), None

        nothing = (jnp.full((len(query), k), -jnp.inf), jnp.full((len(query), k), num_rows, jnp.int32))
        return lax.scan(merge, nothing, (gallery, gallery_ids, first))[0]

    similarity, index = map_blocks(search_block, (unit(queries), query_ids), _QUERY_BLOCK)
    return similarity, index


def map_blocks(function, arrays, block: int):
    """`function` over blocks of the rows of `arrays` (a tuple, [Q, ...] each), one after the other; rows of the result.

    The last block is padded with copies of row 0, and what comes of them is cut off.
    """
    num_rows = len(arrays[0])
    block = min(block, num_rows)
    padding = -num_rows % block
    blocks = tuple(
        jnp.concatenate([x, jnp.broadcast_to(x[:1], (padding, *x.shape[1:]))]).reshape(-1, block, *x.shape[1:])
        for x in arrays
    )
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num_rows], lax.map(function, blocks))
