"""What float32 cannot tell, settled in float64 on the host: the order of neighbours that are almost equally near.

Candidates farther apart than twice the error are in their true order; the others are compared in float64. A query whose
last candidate is not clearly behind its k-th neighbour, as where embeddings have collapsed, is compared with all rows.
"""

import functools

import numpy as np

# Candidates beyond the k asked for: where the last of them is clearly behind the k-th, the k nearest are among them.
SPARE = 8
_PAIRS = 2**16
_QUERIES = 32


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
        unsettled = np.flatnonzero(similarity[:, -1] >= similarity[:, k - 1] - apart)
        if index.shape[1] == len(self._gallery):
            unsettled = unsettled[:0]
        similarity, index = similarity[:, :k].astype(np.float32), index[:, :k].astype(np.int32)
        for first in range(0, len(unsettled), _QUERIES):
            rows = unsettled[first : first + _QUERIES]
            similarity[rows], index[rows] = self._among_all(part.start + rows)
        return similarity, index

    def _cosine(self, query, row) -> np.ndarray:
        # Row by row: equal vectors give equal bits, wherever they stand, which a product of matrices does not promise.
        values = np.empty(len(row))
        for first in range(0, len(row), _PAIRS):
            pairs = slice(first, first + _PAIRS)
            a, b = self._queries[query[pairs]].astype(np.float64), self._gallery[row[pairs]].astype(np.float64)
            squares = np.einsum("nd,nd->n", a, a) * np.einsum("nd,nd->n", b, b)
            values[pairs] = np.einsum("nd,nd->n", a, b) / np.sqrt(squares)
        return values

    @functools.cached_property
    def _distinct(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The distinct rows [U, D], their squares [U], and [N] which of them a row is: equal rows tie exactly."""
        rows, inverse = np.unique(self._gallery, axis=0, return_inverse=True)
        rows = rows.astype(np.float64)
        return rows, np.einsum("nd,nd->n", rows, rows), inverse.reshape(-1)

    def _among_all(self, query) -> tuple[np.ndarray, np.ndarray]:
        rows, squares, inverse = self._distinct
        queries = self._queries[query].astype(np.float64)
        own_squares = np.einsum("nd,nd->n", queries, queries)
        similarity = (queries @ rows.T / np.sqrt(own_squares[:, None] * squares))[:, inverse]
        own = self._own[query]
        similarity[np.flatnonzero(own >= 0), own[own >= 0]] = -np.inf
        order = np.lexsort((np.broadcast_to(self._tie_order, similarity.shape), -similarity))[:, : self._k]
        return np.take_along_axis(similarity, order, axis=1), order


def _error(dim: int) -> float:
    """A bound of the error of a float32 cosine among the cosines of one query.

    Whatever the order of summation, the product of D components is off by D roundings at most, and the square of the
    gallery row's length by as many, its length by half of them (Higham, Accuracy and Stability of Numerical Algorithms,
    section 3.1); a few more come from scaling. The query's own length is the same for all.
    """
    return (1.5 * dim + 8) * 2.0**-24
