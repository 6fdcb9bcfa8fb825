"""What is told of embeddings beyond their metrics: R@1 by class, what is taken for what, a map. Pure."""

import numpy as np


def recall_by_class(
    label: np.ndarray, nearest: np.ndarray, group: np.ndarray, num_groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """R@1 by group, as the two counts that it is the ratio of.

    Args:
      label: int [N], what a query and its nearest image have to share.
      nearest: int [N], the row of each query's nearest other image.
      group: int [N], below `num_groups`: what the queries are counted by, such as `label` itself.
      num_groups: G.

    Returns:
      int [G] right ones and int [G] queries, of which those without another image of their label are left out, as
      recall@1 leaves them out.
    """
    counted = np.bincount(label)[label] > 1
    right = counted & (label[nearest] == label)
    return np.bincount(group[right], minlength=num_groups), np.bincount(group[counted], minlength=num_groups)


def confusion(label: np.ndarray, nearest: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """How often an image of one class has one of another class for its nearest.

    Args:
      label: int [N].
      nearest: int [N], as for `recall_by_class`.
      classes: int [m], those that are compared, none twice.

    Returns:
      int [m, m + 1]: a row for every class; the last column counts nearest images of classes that are not compared.
    """
    place = np.full(max(label.max(), classes.max()) + 1, len(classes))
    place[classes] = np.arange(len(classes))
    row, column = place[label], place[label[nearest]]
    inside = row < len(classes)
    counts = np.zeros((len(classes), len(classes) + 1), np.int64)
    np.add.at(counts, (row[inside], column[inside]), 1)
    return counts


def sample(n: int, most: int, seed: int) -> np.ndarray:
    """At most `most` of n rows, ascending, drawn by the seed."""
    return np.sort(np.random.default_rng(seed).permutation(n)[:most])


def plane(embedding: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two directions of unit-length embeddings along which they differ most (principal components).

    Args:
      embedding: float [N, D], any length but zero.

    Returns:
      float64 [N, 2], 0 where there is no second direction, and float64 [2], the shares of the variance along them. The
      entry of largest magnitude along each is positive, so that a map does not flip from one machine to another.
    """
    unit = embedding.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    unit -= unit.mean(axis=0)
    wide = unit.shape[1] > len(unit)  # the smaller of two matrices with the same variances
    variance, axes = np.linalg.eigh(unit @ unit.T if wide else unit.T @ unit)
    variance, axes = variance[:-3:-1].clip(0), axes[:, :-3:-1]
    found = len(variance)
    points, shares = np.zeros((len(unit), 2)), np.zeros(2)
    points[:, :found] = axes * np.sqrt(variance) if wide else unit @ axes
    if total := np.sum(unit**2):
        shares[:found] = variance / total
    largest = points[np.abs(points).argmax(axis=0), range(2)]
    return points * np.where(largest < 0, -1, 1), shares
