"""Exact nearest neighbours by cosine similarity, computed in blocks.

The device works in float32. It computes a block of similarities with one matmul, takes the maximum of each group of
gallery rows, selects the k best groups, then the k best rows of those groups. The host compares in float64 the
candidates that differ by less than the float32 rounding error, so the result equals a float64 brute-force search.
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

# Similarities per device at a time. 30 MB fit in a CPU cache; larger blocks allocate new pages in each call.
_BLOCK = 30 * 2**18
_MAX_QUERIES = 256
# A gallery of more than _MAX_ROWS rows is split into parts of _PART rows, which allows more queries per block.
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
    """Returns the k gallery rows with the highest cosine similarity to each query, nearest first.

    The gallery row with the query's id is excluded. It is found by id, not by rank, because a duplicate image may rank
    before it. Ties go to the lower gallery id, or to the lower row if there are no ids.

    Outside jit, the queries are sharded over all local devices, and order and ties are those of float64. Inside jit or
    pmap they are those of float32: similarities closer than about 1e-6 may swap, and ties go to the lower row.

    Args:
      queries: float [Q, D], non-zero vectors of any length.
      gallery: float [N, D], outside jit also a memory-mapped file, of which a part at a time is in memory. With
        `axis_name`, the N rows on this device; all devices pass the same queries.
      k: number of neighbours.
      query_ids: int [Q]; requires `gallery_ids`.
      gallery_ids: int [N], unique; requires `query_ids`.
      axis_name: mapped device axis over which the gallery is sharded. Each device takes its local top-k, the
        candidates are gathered, and a second top-k selects from them.

    Returns:
      similarity float32 [Q, k] and index int32 [Q, k] into the gallery (of all devices, in device order). NumPy arrays
      outside jit.

    Raises:
      UserError: k < 1 or larger than the gallery, different dimensions, ids for one side only or duplicate gallery
        ids, or (outside jit) embeddings that are zero or not finite. A UserError is a ValueError.
    """
    check(queries, gallery, k, query_ids, gallery_ids, axis_name)
    if axis_name is not None or any(map(_is_traced, (queries, gallery, query_ids, gallery_ids))):
        return _search_inside_jit(queries, gallery, k, query_ids, gallery_ids, axis_name)
    near = [b.near for b in blocks(queries, gallery, k, query_ids=query_ids, gallery_ids=gallery_ids)]
    similarity, index = zip(*near, strict=True)
    return np.concatenate(similarity), np.concatenate(index)


class Block(NamedTuple):
    """Search result of a block of b queries."""

    queries: slice  # rows of `queries`
    near: tuple[np.ndarray, np.ndarray]  # similarity float32 [b, k] and index int32 [b, k], as returned by `search`
    own: np.ndarray  # int [b], the gallery row excluded from the neighbours of each query, or -1
    similarity: np.ndarray | None  # float32 [b, N], including the excluded rows; None without `whole`


def blocks(
    queries: ArrayLike,
    gallery: ArrayLike,
    k: int,
    *,
    query_ids: ArrayLike | None = None,
    gallery_ids: ArrayLike | None = None,
    whole: bool = False,
) -> Iterator[Block]:
    """Yields the results of `search` one block of queries at a time.

    The arguments are those of `search` and must have passed `check`. With `whole`, a block includes its similarities to
    the whole gallery. The devices compute the next block while the host processes this one.
    """
    query, rows = np.asarray(queries, np.float32), in_parts(gallery)
    own = _own_rows(query_ids, gallery_ids, len(query), np)
    settle = rerank.Settle(query, rows, own, k, tie_order=None if gallery_ids is None else np.asarray(gallery_ids))
    rows_of_part = len(rows) if whole or len(rows) <= _MAX_ROWS else _PART
    parts = [slice(i, min(i + rows_of_part, len(rows))) for i in range(0, len(rows), rows_of_part)]
    num_devices = parallel.num_devices()
    size = num_devices * _queries_of_block(_bucket(rows_of_part), -(-len(query) // num_devices))
    query_blocks = [slice(i, min(i + size, len(query))) for i in range(0, len(query), size)]
    num_candidates, on_host = k + rerank.SPARE, whole or _picks_on_host()
    call = parallel.pmap(_of_block(None if on_host else num_candidates), in_axes=(0, 0, None, None))

    def steps():
        """Compares all queries with each part of the gallery in turn; the devices hold one part at a time."""
        for part in parts:
            gallery_part = parallel.replicate(_unit(_padded(np.asarray(rows[part], np.float32), np)))
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
            least = known[0].min(axis=1) if known else -np.inf
            value, index = _at_least(value, index, num_candidates, own_column, part.stop - part.start, least)
        # Excluded entries have similarity -inf and may have a column past the end.
        index = np.minimum(index + part.start, part.stop - 1)
        if known:
            value, index = np.concatenate([known[0], value], axis=1), np.concatenate([known[1], index], axis=1)
        if value.shape[1] > num_candidates:
            place = np.argpartition(value, -num_candidates, axis=1)[:, -num_candidates:]
            value, index = rerank.ordered(place, value, index)
        if part is parts[-1]:
            yield Block(block, settle(block, value, index), own[block], similarity)
        else:
            best[block.start] = value, index
    settle.warn()


def in_parts(rows: ArrayLike) -> np.ndarray:
    """Returns rows as an array that is read in parts: as they are if of 16- or 32-bit floats, otherwise as float32."""
    found = np.asarray(rows)
    if jnp.issubdtype(found.dtype, jnp.floating) and found.dtype.itemsize <= 4 and found.dtype.isnative:
        return found
    with np.errstate(over="ignore"):  # infinite values are refused later
        return found.astype(np.float32)


def _picks_on_host() -> bool:
    # On CPU there is no transfer to save, and NumPy's partition is several times faster than XLA's top_k.
    return jax.default_backend() == "cpu"


def _own_rows(query_ids, gallery_ids, num_queries: int, xp):
    """Returns int32 [Q], the gallery row with the id of each query, or -1."""
    if query_ids is None:
        return xp.full(num_queries, -1, xp.int32)
    query_ids, gallery_ids = xp.asarray(query_ids), xp.asarray(gallery_ids)
    order = xp.argsort(gallery_ids)
    place = order[xp.searchsorted(gallery_ids, query_ids, sorter=order).clip(max=len(order) - 1)]
    return xp.where(gallery_ids[place] == query_ids, place, -1).astype(xp.int32)


# Shapes are rounded up to a few sizes, because each new shape is compiled.


def _bucket(n: int) -> int:
    """Rounds up to a multiple of the group size with 16 to 32 sizes per octave."""
    step = max(_GROUP, 2 ** (n.bit_length() - 5))
    return -(-n // step) * step


def _queries_of_block(num_rows: int, num_queries: int) -> int:
    largest = min(_MAX_QUERIES, _BLOCK // num_rows)
    return 2 ** max(3, min(largest.bit_length() - 1, (num_queries - 1).bit_length()))


def _padded(gallery, xp):
    """Pads to [S, D] with copies of the last row, which do not change the maximum of its group."""
    padding = _bucket(len(gallery)) - len(gallery)
    return xp.pad(gallery, ((0, padding), (0, 0)), mode="edge") if padding else gallery


@jax.jit
def _unit(x):
    # Divides by the largest component first: squares of very small or large values under- or overflow float32.
    x = jnp.asarray(x, jnp.float32)
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    return unit(x / jnp.where(largest > 0, largest, 1.0))


@functools.cache
def _of_block(k: int | None):
    """Returns the device function for a block of queries: top k, or for None all similarities and group maxima.

    Cached, because JAX keeps compiled code per function object.
    """

    def of_block(query, own, gallery, num_rows):
        similarity = matmul(_unit(query), gallery.T)
        largest = jnp.max(similarity.reshape(len(query), -1, _GROUP), axis=2)
        # Masks groups that are all padding. A partly padded group repeats its last row, which is harmless.
        largest = jnp.where(jnp.arange(largest.shape[1]) * _GROUP < num_rows, largest, -jnp.inf)
        return (similarity, largest) if k is None else _top_k(similarity, largest, k, own, num_rows)

    return of_block


def _top_k(x, largest, k: int, own, num_columns):
    """Returns the k largest values of x [B, S] in order and their columns, without column `own` [B] (-1 for none).

    Columns from `num_columns` on are excluded, too. Excluded entries have the value -inf. Ties go to the lower column.

    Each member of the top k lies in one of the k groups with the largest maxima, `largest` [B, S / _GROUP] (k + 1 as a
    column may be excluded), so only these groups are searched.
    """
    best = lax.top_k(largest, min(k + 1, largest.shape[1]))[1]
    best = jnp.sort(best, axis=1)  # keeps ties at the lower column
    column = best[:, :, None] * _GROUP + jnp.arange(_GROUP, dtype=jnp.int32)
    left_out = (column == own[:, None, None]) | (column >= num_columns)
    groups = x.reshape(-1, _GROUP)
    value = jnp.take(groups, jnp.arange(len(x))[:, None] * largest.shape[1] + best, axis=0, mode="clip")
    value, column = jnp.where(left_out, -jnp.inf, value).reshape(len(x), -1), column.reshape(len(x), -1)
    value, place = lax.top_k(value, min(k, value.shape[1]))
    return value, jnp.take_along_axis(column, place, axis=1)


def _at_least(x: np.ndarray, largest: np.ndarray, k: int, own: np.ndarray, num_columns: int, least):
    """Returns the values of x [B, S] that may be among the k largest, and their columns, unordered; see `_top_k`.

    These are the values not below a bound: the (k + 1)-th largest of the maxima of merged groups, one more than k as a
    column may be excluded, or `least` ([B] or a number) if that is higher. Short rows end in entries of -inf.
    """
    coarse = largest
    while coarse.shape[1] >= 4 * (k + 1):  # merges groups; fewer are faster, and the bound stays nearly as high
        half = coarse.shape[1] // 2
        coarse = np.maximum(coarse[:, :half], coarse[:, half : 2 * half])
    if coarse.shape[1] > k:
        least = np.maximum(np.partition(coarse, -k - 1, axis=1)[:, -k - 1], least)
    least = np.broadcast_to(least, len(x))
    group = np.flatnonzero(largest >= least[:, None])  # counted over all rows of x
    if len(group) > 8 * len(x) * (k + 1):  # many equal values, as with collapsed embeddings
        best = np.argpartition(largest, -k - 1, axis=1)[:, -k - 1 :]
        group = (np.arange(len(x))[:, None] * largest.shape[1] + best).reshape(-1)
    row = group // largest.shape[1]
    values = x.reshape(-1, _GROUP).take(group, axis=0, mode="clip")  # twice as fast as indexing
    place = np.flatnonzero(values >= least[row, None])
    row, column = row[place // _GROUP], group[place // _GROUP] % largest.shape[1] * _GROUP + place % _GROUP
    kept = np.flatnonzero((column != own[row]) & (column < num_columns))
    row, column, place = row[kept], column[kept], place[kept]
    count = np.bincount(row, minlength=len(x))
    shape = len(x), max(k, int(np.max(count)))
    at = row, np.arange(len(row)) - (np.cumsum(count) - count)[row]
    value, index = np.full(shape, -np.inf, np.float32), np.zeros(shape, np.int32)
    value[at], index[at] = values.reshape(-1)[place], column
    return value, index


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
    # Candidates are in device order, so ties still go to the lower index.
    similarity, index = (lax.all_gather(x, axis_name, axis=1, tiled=True) for x in (similarity, index))
    best, place = lax.top_k(similarity, k)
    return best, jnp.take_along_axis(index, place, axis=1)


# Validation.


def check(
    queries: ArrayLike,
    gallery: ArrayLike,
    k: int,
    query_ids: ArrayLike | None = None,
    gallery_ids: ArrayLike | None = None,
    axis_name: str | None = None,
) -> None:
    """Raises UserError for invalid arguments of `search`."""
    check_embeddings("queries", queries)
    if gallery is not queries:
        check_embeddings("gallery", gallery)
    if np.shape(queries)[1] != np.shape(gallery)[1]:
        raise UserError(
            f"search: found queries with {np.shape(queries)[1]} dimensions and a gallery with {np.shape(gallery)[1]}; "
            "expected embeddings of the same network and layer."
        )
    if (query_ids is None) != (gallery_ids is None):
        raise UserError("search: found only one of query_ids and gallery_ids; expected both or neither.")
    for name, ids, rows in (("query_ids", query_ids, queries), ("gallery_ids", gallery_ids, gallery)):
        if ids is not None and np.shape(ids) != np.shape(rows)[:1]:
            raise UserError(f"{name}: found shape {np.shape(ids)}; expected {np.shape(rows)[:1]}, one id per row.")
    if k < 1:
        raise UserError(f"search: found k = {k}; expected at least 1.")
    others = np.shape(gallery)[0] * (1 if axis_name is None else lax.axis_size(axis_name))
    if gallery_ids is not None and not _is_traced(gallery_ids) and not _is_traced(query_ids):
        check_ids("gallery_ids", gallery_ids)
        others -= has_own_row(query_ids, gallery_ids)
    if k > others:
        raise UserError(
            f"search: found k = {k}; expected at most {others}, the number of gallery rows that a query can find; use "
            "a smaller k or a larger gallery."
        )


def has_own_row(query_ids: ArrayLike | None, gallery_ids: ArrayLike | None) -> bool:
    """Returns whether any query excludes a gallery row by its id."""
    return query_ids is not None and bool(np.any(np.isin(np.asarray(gallery_ids), np.asarray(query_ids))))


def check_embeddings(name: str, embeddings: ArrayLike, *, zeros: bool = False, remedy: str = "") -> None:
    """Raises UserError unless `embeddings` is a non-empty [n, D] array of finite, non-zero vectors.

    Args:
      name: name of the array in the message.
      embeddings: the array. Traced values are checked for their shape only.
      zeros: whether zero vectors are allowed.
      remedy: end of the message about non-finite or zero rows, instead of removing them.
    """
    if np.ndim(embeddings) != 2 or 0 in np.shape(embeddings):
        raise UserError(
            f"{name}: found shape {np.shape(embeddings)}; expected [n, D] with at least one row and column."
        )
    if _is_traced(embeddings):
        return
    values, odd, zero = in_parts(embeddings), [], []
    for rows in rerank.slices(*values.shape):
        part = np.asarray(values[rows], np.float32)
        with np.errstate(all="ignore"):
            squares = np.einsum("nd,nd->n", part, part)
        # One fast pass clears most rows. The others are invalid, or their squares under- or overflow float32.
        doubtful = np.flatnonzero(~((squares > 1e-30) & (squares < np.inf)))
        finite = np.isfinite(part[doubtful]).all(axis=1)
        odd += (rows.start + doubtful[~finite]).tolist()
        zero += (rows.start + doubtful[~part[doubtful].any(axis=1)]).tolist()
    if odd:
        raise UserError(
            f"{name}: found {len(odd)} rows with NaN or infinite values, first row {odd[0]}; expected finite values "
            f"(has the network diverged?); {remedy or 'use an earlier checkpoint or remove these rows'}."
        )
    if zero and not zeros:
        raise UserError(
            f"{name}: found {len(zero)} zero vectors, first row {zero[0]}; expected non-zero vectors, because their "
            f"cosine is undefined; {remedy or 'remove these rows'}."
        )


def check_ids(name: str, ids: ArrayLike) -> None:
    """Raises UserError for duplicate ids."""
    values, counts = np.unique(ids, return_counts=True)
    if len(values) < len(np.asarray(ids)):
        raise UserError(
            f"{name}: found {int(np.sum(counts > 1))} duplicate ids, first {values[counts > 1][0]}; expected unique "
            "ids, because a query is excluded from its own neighbours by its id."
        )


def _is_traced(x) -> bool:
    return isinstance(x, jax.core.Tracer)
