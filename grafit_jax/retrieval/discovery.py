"""Proposes finer classes: clusters of embeddings within each known class, their number chosen by the silhouette."""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from grafit_jax.errors import UserError, choose
from grafit_jax.retrieval.cluster_metrics import contingency, scores
from grafit_jax.retrieval.clustering import kmeans
from grafit_jax.retrieval.embeddings import Features, unit

# Name of the only group of embeddings without classes.
EVERYTHING = "all images"
# Name of the images without a class beside others.
UNLABELLED = "no class"
# Runs of k-means from other initialisations, of which the one with the least inertia is kept.
_RUNS = 3
# Classes that are clustered in one call. The cost of a call grows with the square of their number, and each call
# compiles anew.
_TOGETHER = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """The clusters of one known class, the largest first.

    Attributes:
      name: the class; EVERYTHING if none are known.
      rows: int [n], its images, as rows of the embeddings.
      cluster: int [n], their clusters from 0.
      similarity: float32 [n], their cosine similarity to the centre of their cluster.
      silhouette: number of clusters -> mean silhouette, for the numbers that were tried.
      label: [n], their finer classes where these are known, or None.
    """

    name: str
    rows: np.ndarray
    cluster: np.ndarray
    similarity: np.ndarray
    silhouette: Mapping[int, float]
    label: np.ndarray | None

    def __len__(self) -> int:
        return int(self.cluster.max()) + 1

    def members(self, cluster: int) -> np.ndarray:
        """Returns the positions within the group of a cluster's images, nearest to the centre first."""
        own = np.flatnonzero(self.cluster == cluster)
        return own[np.argsort(-self.similarity[own], kind="stable")]

    def proposed(self, cluster: int) -> str:
        """Returns the proposed name of a cluster, such as "Apple 1"."""
        return f"{self.name} {cluster + 1}"

    def majority(self, cluster: int) -> tuple[str, float]:
        """Returns the most frequent finer class of a cluster and its share, the purity; ("", 0) if none is known."""
        if self.label is None:
            return "", 0.0
        known = self.label[self.cluster == cluster].astype(str)
        names, counts = np.unique(known[known != ""], return_counts=True)
        return (str(names[np.argmax(counts)]), float(np.max(counts / np.sum(counts)))) if len(names) else ("", 0.0)

    @functools.cached_property
    def agreement(self) -> dict[str, float]:
        """Agreement with the finer classes where these are known; else empty.

        `classes`, their number; `largest`, the share of the largest one; `purity`, the share of images whose cluster
        has mostly their class; and the metrics of `cluster_metrics.scores`.
        """
        known = np.zeros(0, bool) if self.label is None else self.label.astype(str) != ""
        if self.label is None or not known.any():
            return {}
        label, cluster = self.label[known], self.cluster[known]
        table = contingency(label, cluster)
        largest, purity = (float(np.sum(x) / np.sum(table)) for x in (np.max(table.sum(axis=1)), np.max(table, axis=0)))
        return {"classes": len(table), "largest": largest, "purity": purity} | scores(label, cluster)


def discover(features: Features, *, within: str | None = None, k: int | None = None, most: int = 10) -> list[Group]:
    """Clusters the images of each known class by k-means of unit vectors.

    The known classes are those of the level above the finest, or of a single coarse level; without either, all images
    are one group. Without `k`, the number of clusters of each class is that of 2 to `most` with the largest mean
    silhouette of cosine distances. That cannot say that a class has no finer ones, so each is divided. A class of fewer
    than three images is one cluster.

    Args:
      features: the embeddings, with labels and file names where they are known.
      within: the name of one class, to cluster it only.
      k: number of clusters of each class, at most its number of images.
      most: largest number of clusters that is tried, at least 2.

    Returns:
      The groups, sorted by name.

    Raises:
      UserError: an unknown class, k < 1 or most < 2, or embeddings that are zero or not finite.
    """
    if k is not None and k < 1:
        raise UserError(f"found k = {k}; expected 1 or more clusters.")
    if most < 2:
        raise UserError(f"found at most {most} clusters; expected at least 2.")
    name, label = _levels(features)
    kept = np.arange(len(features))
    if within is not None:
        kept = np.flatnonzero(name == choose(within, "class", np.unique(name).tolist()))
    names, group = np.unique(name[kept], return_inverse=True)
    rows = unit(features.embedding[kept])
    found = []
    for first in range(0, len(names), _TOGETHER):
        part = np.flatnonzero((group >= first) & (group < first + _TOGETHER))
        for g, (cluster, silhouettes) in enumerate(_divided(rows[part], group[part] - first, k, most), first):
            own = group == g
            found.append(_group(str(names[g]), kept[own], cluster, rows[own], silhouettes, label))
    return found


def _divided(
    rows: np.ndarray, group: np.ndarray, k: int | None, most: int
) -> list[tuple[np.ndarray, dict[int, float]]]:
    """Returns for each group the clusters of its rows, and the mean silhouette of each number that was tried."""
    size = np.bincount(group)
    own = [rows[group == g] for g in range(len(size))]
    candidates = [k] if k is not None else [*range(2, min(most, int(np.max(size)) - 1) + 1)] or [1]
    best = [np.zeros(n, int) for n in size]
    silhouettes: list[dict[int, float]] = [{} for _ in size]
    for number in candidates:
        ks = np.minimum(number, size) if k is not None else np.where(number < size, number, 1)
        for g, cluster in enumerate(_clustered(rows, ks, group)):
            found = len(np.unique(cluster))
            if 1 < found < size[g]:
                silhouettes[g][found] = float(np.mean(silhouette(own[g], cluster)))
            if k is not None or found == max(silhouettes[g], key=silhouettes[g].__getitem__, default=0):
                best[g] = cluster
    return [*zip(best, silhouettes, strict=True)]


def silhouette(rows: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Returns the silhouette of each row by cosine distance, float64 [n], as `sklearn.metrics.silhouette_samples`.

    Args:
      rows: float [n, D], unit length.
      cluster: int [n], of at least two values.
    """
    code, count, total = _sums(rows, cluster)
    distance = count - rows @ total.T  # sums of 1 - cosine to the rows of each cluster, 0 to a row itself
    own = np.arange(len(rows)), code
    inside = distance[own] / np.maximum(count[code] - 1, 1)
    distance /= count
    distance[own] = np.inf
    outside = distance.min(axis=1)
    larger = np.maximum(inside, outside)
    value = np.divide(outside - inside, larger, out=np.zeros(len(rows)), where=larger > 0)
    return np.where(count[code] == 1, 0.0, value)


def _sums(rows: np.ndarray, cluster: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the clusters numbered from 0, int [n], and the number [k] and sum [k, D] of their rows, in float64."""
    code, count = np.unique(cluster, return_inverse=True, return_counts=True)[1:]
    total = np.zeros((len(count), rows.shape[1]))
    np.add.at(total, code, rows.astype(np.float64))
    return code, count, total


def _levels(features: Features) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the names [N] of the known classes, and the labels [N] of the level below, if there is one."""
    known = [level for level in (features.coarse_label, *features.further.values()) if level is not None]
    if features.label is not None:
        known.append(features.label)
    if not known or (len(known) == 1 and features.label is not None):
        return np.full(len(features), EVERYTHING), known[0] if known else None
    above = [level.astype(str) for level in (known[:-1] if len(known) > 1 else known)]
    names = functools.reduce(lambda coarser, finer: np.where(finer == "", coarser, finer), above)
    return np.where(names == "", UNLABELLED, names), known[-1] if len(known) > 1 else None


def _clustered(rows: np.ndarray, ks: np.ndarray, group: np.ndarray) -> list[np.ndarray]:
    """Returns the clusters of each group, from the run of k-means with the least inertia in it."""
    best: list[tuple[float, np.ndarray]] = []
    for run in range(_RUNS):
        found = kmeans(rows, ks, groups=group, seed=run)
        square = np.sum(np.square(rows - found.centre[found.label]), axis=1, dtype=np.float64)
        inertia = np.bincount(group, square)
        mine = [(inertia[g], found.label[group == g]) for g in range(len(ks))]
        best = [min(pair, key=lambda each: each[0]) for pair in zip(best or mine, mine, strict=True)]
    return [label for _, label in best]


def _group(
    name: str,
    rows: np.ndarray,
    cluster: np.ndarray,
    vectors: np.ndarray,
    silhouettes: Mapping[int, float],
    label: np.ndarray | None,
) -> Group:
    code, count, total = _sums(vectors, cluster)
    rank = np.empty(len(count), int)
    rank[np.argsort(-count, kind="stable")] = np.arange(len(count))
    centre = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), np.finfo(float).tiny)
    similarity = np.sum(vectors * centre[code], axis=1).astype(np.float32)
    return Group(name, rows, rank[code], similarity, silhouettes, None if label is None else label[rows])
