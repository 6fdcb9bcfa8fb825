"""Re-ranks float32 neighbours in float64 on the host.

Candidates whose similarities differ by more than twice the float32 error are in the right order; the others are
compared in float64. If the last candidate is not clearly behind the k-th neighbour (as with collapsed embeddings), the
query is compared with the whole gallery. The number of such queries is limited; the rest keep their float32 neighbours,
and a warning gives their number.
"""

import functools
import math

import numpy as np

from grafit_jax import parallel, pulse
from grafit_jax.errors import warn

# Extra candidates beyond k. If the last is clearly behind the k-th, the k nearest are among the candidates.
SPARE = 24
# Multiplications per search for comparisons with the whole gallery: about a minute on two cores.
_PRODUCTS = 10**12
# Largest float64 array, in values: 64 MB.
_VALUES = 2**23
# Rounding errors are modelled as independent; a sum is assumed to stay within this many standard deviations.
_DEVIATIONS = 10


def slices(number: int, dim: int) -> list[slice]:
    """Splits `number` vectors of `dim` values into slices of at most 64 MB in float64."""
    size = max(1, _VALUES // dim)
    return [slice(i, min(i + size, number)) for i in range(0, number, size)]


class Settle:
    """Selects the k nearest neighbours in float64 from float32 candidates.

    Args:
      queries: float32 [Q, D].
      gallery: [N, D] of 16- or 32-bit floats, perhaps memory-mapped.
      own: int [Q], the gallery row excluded for each query, or -1.
      k: number of neighbours.
      tie_order: [N], sort key of rows with equal similarity, lowest first; None for the row number.
    """

    def __init__(self, queries, gallery, own, k: int, *, tie_order=None):
        self._queries, self._gallery, self._own, self._k = queries, gallery, own, k
        self._tie_order = np.arange(len(gallery)) if tie_order is None else tie_order
        # Queries that may still be compared with the whole gallery, and those that exceeded the limit.
        # A pass over the gallery for a few queries is bound by reading it and costs as much as one for 32.
        self._together = max(1, _VALUES // len(gallery))
        self._left, self._unsettled = max(1, _PRODUCTS * min(self._together, 32) // (32 * gallery.size)), 0

    def __call__(self, part: slice, similarity: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns similarity and index [b, k] of the queries of `part` from their candidates [b, c], in any order."""
        k, queries = self._k, self._queries[part]
        apart = 2 * _error(queries.shape[1])
        similarity, index = ordered(np.argsort(-similarity, axis=1), similarity, index)
        gap = np.full((len(index), index.shape[1] + 1), np.inf)
        with np.errstate(invalid="ignore"):  # excluded entries are -inf
            np.subtract(similarity[:, :-1], similarity[:, 1:], out=gap[:, 1:-1])
        row, column = np.nonzero((gap[:, :-1] <= apart) | (gap[:, 1:] <= apart))
        if len(row):
            value = similarity.astype(np.float64)
            value[row, column] = self._cosine(part.start + row, index[row, column])
            similarity, index = ordered(np.argsort(-value, axis=1), value, index)
            tied = np.flatnonzero((similarity[:, :-1] == similarity[:, 1:]).any(axis=1))  # only these need two keys
            order = np.lexsort((self._tie_order[index[tied]], -similarity[tied]))
            similarity[tied], index[tied] = ordered(order, similarity[tied], index[tied])
        # If the last candidate is not clearly behind the k-th, an equally near row may not be a candidate.
        doubtful = np.flatnonzero(similarity[:, -1] >= similarity[:, k - 1] - apart)
        if index.shape[1] == len(self._gallery):
            doubtful = doubtful[:0]
        similarity, index = similarity[:, :k].astype(np.float32), index[:, :k].astype(np.int32)
        settled = doubtful[: self._left]
        self._left -= len(settled)
        self._unsettled += len(doubtful) - len(settled)
        for first in range(0, len(settled), self._together):
            rows = settled[first : first + self._together]
            similarity[rows], index[rows] = self._among_all(part.start + rows)
        return similarity, index

    def warn(self) -> None:
        """Warns about the queries that kept their float32 neighbours."""
        if self._unsettled and parallel.is_first():
            warn(
                f"search: found {self._unsettled} of {len(self._queries)} queries with many rows as near as neighbour "
                f"{self._k} within float32 precision; their neighbours are exact in float32 only. Have the embeddings "
                "collapsed?"
            )

    def _cosine(self, query, row) -> np.ndarray:
        # Row by row, so that equal vectors give equal bits; a matmul does not guarantee that.
        values = np.empty(len(row))
        for pairs in slices(len(row), self._gallery.shape[1]):
            a, b = self._queries[query[pairs]].astype(np.float64), self._gallery[row[pairs]].astype(np.float64)
            squares = np.einsum("nd,nd->n", a, a) * np.einsum("nd,nd->n", b, b)
            values[pairs] = np.einsum("nd,nd->n", a, b) / np.sqrt(squares)
        return values

    @functools.cached_property
    def _first_alike(self) -> np.ndarray:
        """int [N], the first row with the same bits as each row (up to hash collisions)."""
        odd = np.random.default_rng(0).integers(2**63, size=self._gallery.shape[1], dtype=np.uint64) | np.uint64(1)
        code = np.empty(len(self._gallery), np.uint64)
        for rows in slices(*self._gallery.shape):
            part = np.ascontiguousarray(self._gallery[rows])
            bits = part.view(f"u{part.itemsize}")
            code[rows] = (bits * odd).sum(axis=1, dtype=np.uint64)  # modulo 2^64, so independent of the order
        _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
        return first[inverse.reshape(-1)]

    def _among_all(self, query) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k nearest of all rows: by a float64 matmul, and row by row where that is ambiguous."""
        queries = self._queries[query].astype(np.float64)
        queries /= np.sqrt(np.einsum("nd,nd->n", queries, queries))[:, None]
        similarity = np.empty((len(query), len(self._gallery)))
        for rows in slices(*self._gallery.shape):
            pulse.beat()
            gallery = self._gallery[rows].astype(np.float64)
            similarity[:, rows] = queries @ gallery.T / np.sqrt(np.einsum("nd,nd->n", gallery, gallery))
        own = self._own[query]
        similarity[np.flatnonzero(own >= 0), own[own >= 0]] = -np.inf
        found = [self._nearest(q, values) for q, values in zip(query, similarity, strict=True)]
        value, index = zip(*found, strict=True)
        return np.stack(value), np.stack(index)

    def _nearest(self, query: int, similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k nearest rows from float64 similarities [N], which may be off by the float64 rounding error."""
        k, apart = self._k, 2 * _error(self._gallery.shape[1], 2.0**-53)
        near = np.flatnonzero(similarity >= np.partition(similarity, -k)[-k] - apart)
        distinct, inverse = np.unique(self._first_alike[near], return_inverse=True)
        value = self._cosine(np.full(len(distinct), query), distinct)[inverse.reshape(-1)]
        kth = np.partition(value, -k)[-k]
        nearer, equal = np.flatnonzero(value > kth), np.flatnonzero(value == kth)
        ties = equal[np.argsort(self._tie_order[near[equal]])[: k - len(nearer)]]
        chosen = np.concatenate([nearer, ties])
        order = chosen[np.lexsort((self._tie_order[near[chosen]], -value[chosen]))]
        return value[order], near[order]


def ordered(order: np.ndarray, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Takes the columns `order` [b, c] of each row of arrays [b, n]."""
    return tuple(np.take_along_axis(x, order, axis=1) for x in arrays)


def _error(dim: int, unit_roundoff: float = 2.0**-24) -> float:
    """Returns a bound on the error of a cosine relative to the other cosines of the query, for any summation order.

    A dot product of D terms has at most D rounding errors, the squared norm of the gallery row as many, and its square
    root half of them (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1); scaling adds a few. The
    norm of the query is common to all. For independent rounding errors of mean zero, 10 √D replaces D with probability
    1 - 2 D exp(-10² / 2), that is 1 - 8e-19 at D = 2048 (Higham and Mary, A new approach to probabilistic rounding
    error analysis, SIAM J. Sci. Comput. 41, 2019, theorem 2.4).
    """
    return (1.5 * min(dim, _DEVIATIONS * math.sqrt(dim)) + 8) * unit_roundoff
