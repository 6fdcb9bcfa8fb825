"""Exact nearest neighbours by cosine, in blocks.

The device does the work in float32: a block of similarities by one product, the maxima of groups of gallery rows, the k
best groups, the k best rows inside of them. The host then settles what float32 cannot tell: neighbours closer to each
other than the rounding error are compared in float64, so that the result is that of a float64 brute force.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from grafit_jax import parallel, pulse
from grafit_jax.errors import UserError
from grafit_jax.retrieval import rerank
from grafit_jax.similarity import matmul, unit

# Similarities a device holds at a time: 30 MB stay in a processor's cache, and more would be new pages in every call.
_BLOCK = 30 * 2**18
_MAX_QUERIES = 256
# A gallery larger than the first is cut into parts of the second: more queries at a time for the same similarities.
_MAX_ROWS = 7 * 2**13
_PART = 3 * 2**13
_GROUP = 32


def search(
    queries: ArrayLike,
    gallery: ArrayLike,
    k: int,
    *,
    query_ids: ArrayLike | None = None,
    gallery_ids: ArrayLike | None = None,
    axis_name: str | None = None,
) -> tuple[Any, Any]:
    """The k gallery rows with the highest cosine to each query, best first.

    Ties go to the lower gallery id; without ids, to the lower row. A row that has the query's own id is left out: by
    id, never by rank, which goes wrong where another row is just as near.

    Outside of jit the queries are spread over all local devices, and neighbours and ties are those of float64. Inside
    of jit or pmap they are those of float32, where similarities within some 1e-6 may change places, and ties go to the
    lower row.

    Args:
      queries: float [Q, D], any length but zero.
      gallery: float [N, D]. With `axis_name`, this device's N rows of it, and all devices ask the same queries.
      k: how many.
      query_ids: int [Q]; given together with `gallery_ids`, or neither.
      gallery_ids: int [N], none twice.
      axis_name: a mapped device axis over which the gallery is sharded: local top-k, gather, second top-k.

    Returns:
      similarity float32 [Q, k] and index int32 [Q, k] into the gallery (of all devices, in device order); NumPy arrays
      outside of jit.

    Raises:
      UserError (a ValueError): k < 1 or more than the gallery holds, other dimensions, ids for one side only or twice,
        and, where the values are at hand, embeddings that are zero or not finite.
    """
    check(queries, gallery, k, query_ids, gallery_ids, axis_name)
    if axis_name is not None or any(map(_is_traced, (queries, gallery, query_ids, gallery_ids))):
        return _search_inside_jit(queries, gallery, k, query_ids, gallery_ids, axis_name)
    near = [b.near for b in blocks(queries, gallery, k, query_ids=query_ids, gallery_ids=gallery_ids)]
    similarity, index = zip(*near, strict=True)
    return np.concatenate(similarity), np.concatenate(index)


class Block(NamedTuple):
    """What a block of b queries gives."""

    queries: slice  # which of the queries
    near: tuple[np.ndarray, np.ndarray]  # similarity float32 [b, k] and index int32 [b, k], as `search` gives them
    own: np.ndarray  # int [b], the row that is left out of a query's neighbours, or -1
    similarity: np.ndarray | None  # float32 [b, N], with that row; None where it was not asked for


def blocks(
    queries: ArrayLike,
    gallery: ArrayLike,
    k: int,
    *,
    query_ids: ArrayLike | None = None,
    gallery_ids: ArrayLike | None = None,
    whole: bool = False,
) -> Iterator[Block]:
    """`search`, a block of queries at a time; with `whole`, a block carries all of its similarities.

    The arguments are those of `search` and have passed `check`. The devices are a step ahead of the host.
    """
    query, rows = np.asarray(queries, np.float32), np.asarray(gallery, np.float32)
    own = _own_rows(query_ids, gallery_ids, len(query), np)
    settle = rerank.Settle(query, rows, own, k, tie_order=None if gallery_ids is None else np.asarray(gallery_ids))
    rows_of_part = len(rows) if whole or len(rows) <= _MAX_ROWS else _PART
    parts = [slice(i, min(i + rows_of_part, len(rows))) for i in range(0, len(rows), rows_of_part)]
    num_devices = parallel.num_devices()
    size = num_devices * _queries_of_block(_bucket(rows_of_part), -(-len(query) // num_devices))
    query_blocks = [slice(i, min(i + size, len(query))) for i in range(0, len(query), size)]
    wanted, on_host = k + rerank.SPARE, whole or _picks_on_host()
    call = parallel.pmap(_of_block(None if on_host else wanted), in_axes=(0, 0, None, None))

    def steps():
        """All queries against one part of the gallery after the other: one at a time lies on the devices."""
        for part in parts:
            gallery_part = parallel.replicate(_unit(_padded(rows[part], np)))
            for block in query_blocks:
                padding = size - (block.stop - block.start)
                in_part = (own[block] >= part.start) & (own[block] < part.stop)
                own_column = np.where(in_part, own[block] - part.start, -1)
                arguments = (
                    np.pad(query[block], ((0, padding), (0, 0))).reshape(num_devices, -1, query.shape[1]),
                    np.pad(own_column, (0, padding)).reshape(num_devices, -1),
                )
                results = call(*parallel.shard(arguments), gallery_part, np.int32(part.stop - part.start))
                yield block, part, own_column, results

    best: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    ahead = itertools.pairwise(itertools.chain(steps(), [None]))
    for ready, _ in pulse.parts(ahead, "searching neighbours", len(parts) * len(query_blocks)):
        block, part, own_column, results = ready
        value, index = (np.asarray(x).reshape(-1, x.shape[-1])[: block.stop - block.start] for x in results)
        similarity, known = value[:, : len(rows)] if whole else None, best.pop(block.start, None)
        if on_host:
            # Once there are as many as wanted, only what is at least as near as the last of them matters.
            num_groups = None
            if known and known[0].shape[1] == wanted:
                num_groups = max(1, int(np.sum(index >= known[0].min(axis=1, keepdims=True), axis=1).max()))
            value, index = _top_k(value, index, wanted, own_column, part.stop - part.start, num_groups=num_groups)
        # What is left out, at minus infinity, may be a column past the end.
        found = value, np.minimum(index + part.start, part.stop - 1)
        if known:
            value, index = (np.concatenate(pair, axis=1) for pair in zip(known, found, strict=True))
            place = _largest(value, min(wanted, value.shape[1]))
            found = np.take_along_axis(value, place, axis=1), np.take_along_axis(index, place, axis=1)
        if part is parts[-1]:
            yield Block(block, settle(block, *found), own[block], similarity)
        else:
            best[block.start] = found
    settle.warn()


def _picks_on_host() -> bool:
    # On CPU what the host would fetch is there already, and NumPy's partition is several times faster than XLA's top_k.
    return jax.default_backend() == "cpu"


def _own_rows(query_ids, gallery_ids, num_queries: int, xp):
    """int32 [Q]: the gallery row with the query's id, or -1."""
    if query_ids is None:
        return xp.full(num_queries, -1, xp.int32)
    query_ids, gallery_ids = xp.asarray(query_ids), xp.asarray(gallery_ids)
    order = xp.argsort(gallery_ids)
    place = order[xp.searchsorted(gallery_ids, query_ids, sorter=order).clip(max=len(order) - 1)]
    return xp.where(gallery_ids[place] == query_ids, place, -1).astype(xp.int32)


# Shapes. Each compiles once, so they come in buckets.


def _bucket(n: int) -> int:
    """The next of 16 to 32 sizes an octave, each a multiple of the group."""
    step = max(_GROUP, 2 ** (n.bit_length() - 5))
    return -(-n // step) * step


def _queries_of_block(num_rows: int, wanted: int) -> int:
    largest = min(_MAX_QUERIES, _BLOCK // num_rows)
    return 2 ** max(3, min(largest.bit_length() - 1, (wanted - 1).bit_length()))


def _padded(gallery, xp):
    """[S, D]; the rows past the end are copies of the last, so that a group's maximum is that of its own rows."""
    padding = _bucket(len(gallery)) - len(gallery)
    return xp.pad(gallery, ((0, padding), (0, 0)), mode="edge") if padding else gallery


@jax.jit
def _unit(x):
    # By their largest component first: squares of what is very small or large leave float32.
    x = jnp.asarray(x, jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    return unit(x / jnp.where(largest > 0, largest, 1.0))


@functools.cache
def _of_block(k: int | None):
    """On a device, the k nearest of a block of queries, or with None all similarities and the maxima of their groups.

    A function of its own for each k: what it compiles to is kept with it.
    """

    def of_block(query, own, gallery, num_rows):
        similarity = matmul(_unit(query), gallery.T)
        largest = jnp.max(similarity.reshape(len(query), -1, _GROUP), axis=2)
        # Of a group that is cut by the end, the columns past it are copies of the last one before it: see `_padded`.
        largest = jnp.where(jnp.arange(largest.shape[1]) * _GROUP < num_rows, largest, -jnp.inf)
        return (similarity, largest) if k is None else _top_k(similarity, largest, k, own, num_rows)

    return of_block


def _top_k(x, largest, k: int, own, num_columns, *, num_groups: int | None = None):
    """The k largest of [B, S] and their columns, without column `own` [B], or -1, and all from num_columns on.

    What is left out is at minus infinity. By JAX they are in order, ties to the lower column; by NumPy in none.
    A member of the top k lies in one of the k groups with the largest maxima, `largest` [B, S / _GROUP], or of k + 1 if
    a column is left out: so x is gone through once, for the maxima. `num_groups` says that fewer groups are enough.
    """
    xp = np if isinstance(x, np.ndarray) else jnp
    best = _largest(largest, min(k + 1, num_groups or largest.shape[1], largest.shape[1])).astype(xp.int32)
    best = xp.sort(best, axis=1)  # so that ties still go to the lower column
    column = best[:, :, None] * _GROUP + xp.arange(_GROUP, dtype=xp.int32)
    left_out = (column == own[:, None, None]) | (column >= num_columns)
    value = xp.take(x.reshape(-1, _GROUP), xp.arange(len(x))[:, None] * largest.shape[1] + best, axis=0, mode="clip")
    if xp is np:
        value[left_out] = -np.inf  # ten times as fast as `where`
    else:
        value = jnp.where(left_out, -jnp.inf, value)
    value, column = value.reshape(len(x), -1), column.reshape(len(x), -1)
    place = _largest(value, min(k, value.shape[1]))
    return xp.take_along_axis(value, place, axis=1), xp.take_along_axis(column, place, axis=1)


def _largest(x, k: int):
    """The places [B, k] of the k largest of every row."""
    return np.argpartition(x, -k, axis=1)[:, -k:] if isinstance(x, np.ndarray) else lax.top_k(x, k)[1]


def _search_inside_jit(queries, gallery, k, query_ids, gallery_ids, axis_name):
    num_queries, num_rows = len(queries), len(gallery)
    own = _own_rows(query_ids, gallery_ids, num_queries, jnp)
    gallery, of_block = _unit(_padded(jnp.asarray(gallery), jnp)), _of_block(min(k, num_rows))
    size = min(num_queries, _queries_of_block(len(gallery), num_queries))
    padding = -num_queries % size
    query_blocks = jnp.pad(jnp.asarray(queries), ((0, padding), (0, 0))).reshape(-1, size, queries.shape[1])
    own_blocks = jnp.pad(own, (0, padding)).reshape(-1, size)
    near = lax.map(lambda block: of_block(*block, gallery, num_rows), (query_blocks, own_blocks))
    similarity, index = (x.reshape(-1, x.shape[2])[:num_queries] for x in near)
    if axis_name is None:
        return similarity, index
    index = index + lax.axis_index(axis_name) * num_rows
    # Candidates stand in device order, so that the second top-k still gives ties to the lower index.
    similarity, index = (lax.all_gather(x, axis_name, axis=1, tiled=True) for x in (similarity, index))
    best, place = lax.top_k(similarity, k)
    return best, jnp.take_along_axis(index, place, axis=1)


# What the user can have got wrong.


def check(
    queries: ArrayLike,
    gallery: ArrayLike,
    k: int,
    query_ids: ArrayLike | None = None,
    gallery_ids: ArrayLike | None = None,
    axis_name: str | None = None,
) -> None:
    """Raises UserError unless `search` can work with these."""
    check_embeddings("queries", queries)
    if gallery is not queries:
        check_embeddings("gallery", gallery)
    if np.shape(queries)[1] != np.shape(gallery)[1]:
        raise UserError(
            f"queries have {np.shape(queries)[1]} dimensions and the gallery {np.shape(gallery)[1]}: want embeddings "
            "of the same network and layer."
        )
    if (query_ids is None) != (gallery_ids is None):
        raise UserError("found ids for one of queries and gallery: give query_ids and gallery_ids, or neither.")
    for name, ids, rows in (("query_ids", query_ids, queries), ("gallery_ids", gallery_ids, gallery)):
        if ids is not None and np.shape(ids) != np.shape(rows)[:1]:
            raise UserError(f"{name} has shape {np.shape(ids)}: want one id a row, {np.shape(rows)[:1]}.")
    if k < 1:
        raise UserError(f"k must be at least 1, found {k}.")
    others = np.shape(gallery)[0] * (1 if axis_name is None else lax.axis_size(axis_name))
    if gallery_ids is not None and not _is_traced(gallery_ids) and not _is_traced(query_ids):
        check_ids("gallery_ids", gallery_ids)
        others -= has_own_row(query_ids, gallery_ids)
    if k > others:
        raise UserError(
            f"k = {k} neighbours asked of a gallery with {others} rows (the query itself not counted): "
            "lower k or enlarge the gallery."
        )


def has_own_row(query_ids: ArrayLike | None, gallery_ids: ArrayLike | None) -> bool:
    """Whether a row is left out of the neighbours of some query."""
    return query_ids is not None and bool(np.any(np.isin(np.asarray(gallery_ids), np.asarray(query_ids))))


def check_embeddings(name: str, embeddings: ArrayLike, *, zeros: bool = False, remedy: str = "") -> None:
    """Raises UserError unless `embeddings` is [n, D] with n >= 1, finite, and without zero vectors or with `zeros`.

    `remedy`: what to do about rows that are not finite or zero, in place of removing them.
    """
    if np.ndim(embeddings) != 2 or 0 in np.shape(embeddings):
        raise UserError(f"{name} has shape {np.shape(embeddings)}: want [n, D] with at least one row and column.")
    if _is_traced(embeddings):
        return
    with np.errstate(all="ignore"):
        values = np.asarray(embeddings, np.float32)
        squares = np.einsum("nd,nd->n", values, values)
    # One fast pass finds most rows right. A closer look at the others: wrong, or too long or short for their squares.
    doubtful = np.flatnonzero(~((squares > 1e-30) & (squares < np.inf)))
    finite = np.isfinite(values[doubtful]).all(axis=1)
    if not finite.all():
        rows = doubtful[~finite]
        raise UserError(
            f"{name} has {len(rows)} rows with NaN or infinite values, the first is row {rows[0]}: "
            f"the network that made them has diverged; {remedy or 'use an earlier checkpoint or remove these rows'}."
        )
    rows = doubtful[~values[doubtful].any(axis=1)]
    if len(rows) and not zeros:
        raise UserError(
            f"{name} has {len(rows)} zero vectors, the first is row {rows[0]}: their cosine is undefined; "
            f"{remedy or 'remove them'}."
        )


def check_ids(name: str, ids: ArrayLike) -> None:
    """Raises UserError if an id is there twice."""
    values, counts = np.unique(ids, return_counts=True)
    if len(values) < len(np.asarray(ids)):
        raise UserError(
            f"{name} has {int(np.sum(counts > 1))} ids more than once, the first is {values[counts > 1][0]}: want one "
            "id for every image, since a query is left out of its own neighbours by its id."
        )


def _is_traced(x) -> bool:
    return isinstance(x, jax.core.Tracer)
