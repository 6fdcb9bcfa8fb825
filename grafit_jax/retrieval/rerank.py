"""What float32 cannot tell, settled in float64 on the host: the order of neighbours that are almost equally near.

Candidates farther apart than twice the error are in their true order; the others are compared in float64. A query whose
last candidate is not clearly behind its k-th neighbour, as where embeddings have collapsed, is compared with all rows:
for as many queries as there is time for, and the others are counted.
"""

import functools
import math

import numpy as np

from grafit_jax import parallel, pulse
from grafit_jax.errors import warn

# Candidates beyond the k asked for: where the last of them is clearly behind the k-th, the k nearest are among them.
SPARE = 24
# Products that comparisons with all rows may take in a search: a minute of two cores.
_PRODUCTS = 10**12
# Float64 values at a time: 64 MB of a matrix.
_VALUES = 2**23
# Roundings of a sum are taken to be independent, and all of its terms to stay within this many of their deviations.
_DEVIATIONS = 10


class Settle:
    """`(part, similarity, index) -> (similarity, index)`: the k nearest of float64, from float32 candidates.

    Args:
      queries: float32 [Q, D].
      gallery: float32 [N, D].
      own: int [Q]: the row of the gallery that is left out, or -1.
      k: how many.
      tie_order: [N]; of equally near rows the lower comes first. None: the rows' own order.
    """

    def __init__(self, queries, gallery, own, k: int, *, tie_order=None):
        self._queries, self._gallery, self._own, self._k = queries, gallery, own, k
        self._tie_order = np.arange(len(gallery)) if tie_order is None else tie_order
        # Queries that there is time for to compare them with all rows, and those that there was none for.
        self._left, self._unsettled = max(1, _PRODUCTS // gallery.size), 0

    def __call__(self, part: slice, similarity: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For the queries of `part`: candidates [b, c], the c nearest in float32 in any order, in; [b, k] out."""
        k, queries = self._k, self._queries[part]
        apart = 2 * _error(queries.shape[1])
        order = np.argsort(-similarity, axis=1)
        similarity, index = (np.take_along_axis(x, order, axis=1) for x in (similarity, index))
        gap = np.full((len(index), index.shape[1] + 1), np.inf)
        with np.errstate(invalid="ignore"):  # of what is left out, at minus infinity
            np.subtract(similarity[:, :-1], similarity[:, 1:], out=gap[:, 1:-1])
        row, column = np.nonzero((gap[:, :-1] <= apart) | (gap[:, 1:] <= apart))
        if len(row):
            value = similarity.astype(np.float64)
            value[row, column] = self._cosine(part.start + row, index[row, column])
            order = np.lexsort((self._tie_order[index], -value))
            similarity, index = (np.take_along_axis(x, order, axis=1) for x in (value, index))
        # Where the last candidate is not clearly behind the k-th, something as near may not be a candidate.
        doubtful = np.flatnonzero(similarity[:, -1] >= similarity[:, k - 1] - apart)
        if index.shape[1] == len(self._gallery):
            doubtful = doubtful[:0]
        similarity, index = similarity[:, :k].astype(np.float32), index[:, :k].astype(np.int32)
        settled = doubtful[: self._left]
        self._left -= len(settled)
        self._unsettled += len(doubtful) - len(settled)
        number = max(1, _VALUES // len(self._gallery))
        for first in range(0, len(settled), number):
            rows = settled[first : first + number]
            similarity[rows], index[rows] = self._among_all(part.start + rows)
        return similarity, index

    def warn(self) -> None:
        """Tells of the queries that have not been settled: they have the neighbours of float32."""
        if self._unsettled and parallel.is_first():
            found = f"{self._unsettled} of {len(self._queries)} queries"
            warn(
                f"of {found} more rows are as near as the neighbour {self._k} than float32 can tell apart: these are "
                "exact in float32 only. Have the embeddings collapsed?"
            )

    def _cosine(self, query, row) -> np.ndarray:
        # Row by row: equal vectors give equal bits, wherever they stand, which a product of matrices does not promise.
        values = np.empty(len(row))
        for pairs in self._slices(len(row)):
            a, b = self._queries[query[pairs]].astype(np.float64), self._gallery[row[pairs]].astype(np.float64)
            squares = np.einsum("nd,nd->n", a, a) * np.einsum("nd,nd->n", b, b)
            values[pairs] = np.einsum("nd,nd->n", a, b) / np.sqrt(squares)
        return values

    @functools.cached_property
    def _first_alike(self) -> np.ndarray:
        """int [N]: the first row that equals a row bit by bit, or almost surely so; a collapsed gallery has few."""
        odd = np.random.default_rng(0).integers(2**63, size=self._gallery.shape[1], dtype=np.uint64) | np.uint64(1)
        code = np.empty(len(self._gallery), np.uint64)
        for rows in self._slices(len(self._gallery)):
            bits = np.ascontiguousarray(self._gallery[rows]).view(np.uint32)
            code[rows] = (bits * odd).sum(axis=1, dtype=np.uint64)  # modulo 2^64, so whatever the order
        _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
        return first[inverse.reshape(-1)]

    def _slices(self, number: int) -> list[slice]:
        """Slices of `number` vectors, none of more than `_VALUES` values."""
        size = max(1, _VALUES // self._gallery.shape[1])
        return [slice(i, i + size) for i in range(0, number, size)]

    def _among_all(self, query) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of all rows to a few queries: by a product in float64, and what it cannot tell row by row."""
        queries = self._queries[query].astype(np.float64)
        queries /= np.sqrt(np.einsum("nd,nd->n", queries, queries))[:, None]
        similarity = np.empty((len(query), len(self._gallery)))
        for rows in self._slices(len(self._gallery)):
            pulse.beat()
            gallery = self._gallery[rows].astype(np.float64)
            similarity[:, rows] = queries @ gallery.T / np.sqrt(np.einsum("nd,nd->n", gallery, gallery))
        own = self._own[query]
        similarity[np.flatnonzero(own >= 0), own[own >= 0]] = -np.inf
        found = [self._nearest(q, values) for q, values in zip(query, similarity, strict=True)]
        value, index = zip(*found, strict=True)
        return np.stack(value), np.stack(index)

    def _nearest(self, query: int, similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest by [N] similarities that are right but for float64's own error."""
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


def _error(dim: int, unit_roundoff: float = 2.0**-24) -> float:
    """A bound of the error of a cosine among the cosines of one query, as a sum of `dim` products in any order.

    The product of D components is off by D roundings at most, and the square of the gallery row's length by as many,
    its length by half of them (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1); a few more come
    from scaling. The query's own length is the same for all. Where roundings are independent of each other and zero in
    the mean, 10 √D takes the place of D for all but 2 D exp(-10² / 2) of all sums: 8e-19 at D = 2048 (Higham and Mary,
    A new approach to probabilistic rounding error analysis, SIAM J. Sci. Comput. 41, 2019, theorem 2.4).
    """
    return (1.5 * min(dim, _DEVIATIONS * math.sqrt(dim)) + 8) * unit_roundoff
