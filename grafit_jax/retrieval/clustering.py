"""k-means over the embeddings of a whole training set: on all devices, and the same on any number of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grafit_jax import parallel, pulse
from grafit_jax.errors import UserError, warn
from grafit_jax.retrieval import neighbors
from grafit_jax.similarity import matmul

_MAX_ITERATIONS = 100
_TOLERANCE = 1e-4  # for the sum of squared moves of the centres, as a share of the mean variance of the D columns


class Clusters(NamedTuple):
    """What k-means found."""

    centre: np.ndarray  # float32 [k, D]
    label: np.ndarray  # int32 [N], the nearest centre of every row, ties to the lower number
    inertia: float  # the sum over rows of the squared distance to that centre
    iterations: int  # how often the centres were moved


def kmeans(embeddings: np.ndarray, k: int, *, seed: int = 0, cosine: bool = False) -> Clusters:
    """Lloyd's k-means from centres of greedy k-means++, both as in scikit-learn.

    A cluster without rows takes the row that is farthest from its centre, out of a cluster that has others.

    Args:
      embeddings: float [N, D].
      k: how many clusters. Fewer distinct rows give fewer clusters, and a warning.
      seed: of the first centres; the same seed gives the same clusters.
      cosine: by cosine (spherical k-means): rows and centres are brought to unit length. Else Euclidean.

    Raises:
      UserError: k < 1 or k > N; embeddings that are not [N, D], not finite or, by cosine, zero.
    """
    rows = np.asarray(embeddings, np.float32)
    neighbors.check_embeddings("embeddings", rows, zeros=not cosine)
    if not 1 <= k <= len(rows):
        raise UserError(f"k = {k} clusters of {len(rows)} embeddings: want at least 1, and at most one for each.")
    origin = 0 if cosine else rows.mean(axis=0, dtype=float).astype("f4")  # products would lose what all rows share
    rows = _unit(rows) if cosine else rows - origin
    square, mean = np.einsum("nd,nd->", rows, rows, dtype=np.float64), np.mean(rows, axis=0, dtype=np.float64)
    tolerance = _TOLERANCE * (square / rows.size - np.mean(mean**2))
    blocks = parallel.in_blocks(rows, k)
    centre = _seeded(rows, blocks, k, np.random.default_rng(seed))
    if len(centre) < k:
        warn(f"found {len(centre)} distinct embeddings for k = {k} clusters: going on with {len(centre)} clusters.")
    iterations, shift = 0, np.inf
    while True:
        pulse.beat()
        with jax.enable_x64(True):
            *of_rows, total = map(np.asarray, parallel.pmap(_assign, in_axes=(0, None))(blocks, centre))
        label, distance = (x.ravel()[: len(rows)] for x in of_rows)
        if iterations == _MAX_ITERATIONS or shift <= tolerance:
            return Clusters(centre + origin, label, float(np.sum(distance, dtype=np.float64)), iterations)
        moved = _moved(rows, label, distance, total.sum(axis=0), centre, cosine)
        shift = np.sum(np.subtract(moved, centre, dtype=np.float64) ** 2)
        centre, iterations = moved, iterations + 1


def _unit(rows: np.ndarray) -> np.ndarray:
    length = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64)).astype(np.float32)
    return rows / np.where(length > 0, length, 1)[:, None]


def _seeded(rows: np.ndarray, blocks: jax.Array, k: int, rng: np.random.Generator) -> np.ndarray:
    """Centres of greedy k-means++, which tries a few rows for each: as many as there are distinct rows, k at most."""
    nearest = parallel.in_blocks(np.full(len(rows), np.inf, np.float32), k)
    chosen = [int(rng.integers(len(rows)))]
    while True:
        pulse.beat()
        nearest = _nearer(blocks, nearest, rows[chosen[-1]])
        drawn = np.cumsum(np.asarray(nearest).ravel()[: len(rows)], dtype=np.float64)
        if len(chosen) == k or not drawn[-1] > 0:
            return rows[chosen]
        candidates = np.searchsorted(drawn, rng.random(2 + int(np.log(k))) * drawn[-1], side="right")
        left = np.asarray(_left_by(blocks, nearest, rows[candidates])).sum(axis=(0, 1), dtype=np.float64)
        chosen.append(int(candidates[np.argmin(left)]))


# By differences: of the row itself and all that are equal to it zero, so that none of them is chosen again.
_nearer = jax.jit(lambda blocks, nearest, row: jnp.minimum(nearest, jnp.sum(jnp.square(blocks - row), axis=-1)))


@jax.jit
def _left_by(blocks, nearest, candidates):
    """What the sum of `nearest` would be with each of the candidates [C, D] as one more centre, by block: [n, M, C]."""
    square = jnp.sum(jnp.square(blocks), axis=-1, keepdims=True) + jnp.sum(jnp.square(candidates), axis=-1)
    return jnp.sum(jnp.clip(square - 2 * matmul(blocks, candidates.T), 0.0, nearest[..., None]), axis=2)


# Of rows [M, B, D] the clusters, int32 [M, B], and squared distances to their centres; of clusters the sums [k, D].
def _assign(blocks, centre):
    def of_block(total, rows):
        label = jnp.argmin(0.5 * jnp.sum(jnp.square(centre), axis=1) - matmul(rows, centre.T), axis=1)
        distance = jnp.sum(jnp.square(rows - centre[label]), axis=1)
        # A product, since sums by index come in no fixed order on GPUs. In float64 the blocks' order is no matter.
        members = (label == jnp.arange(len(centre))[:, None]).astype(jnp.float32)
        return total + matmul(members, rows), (label.astype(jnp.int32), distance)

    total, (label, distance) = jax.lax.scan(of_block, jnp.zeros(centre.shape, jnp.float64), blocks)
    return label, distance, total


def _moved(rows, label, distance, total, centre, cosine: bool) -> np.ndarray:
    """The centres [k, D] of the clusters, float32; one that cannot be filled stays where it is. Changes `total`."""
    count = np.bincount(label, minlength=len(centre))
    order = np.arange(0) if count.all() else np.argsort(-distance, kind="stable")
    far = (row for row in order if distance[row] > 0 and count[label[row]] > 1)
    for cluster, row in zip(np.flatnonzero(count == 0), far, strict=False):
        total[[label[row], cluster]] += (-rows[row], rows[row])
        count[[label[row], cluster]] += (-1, 1)
    moved = (total / np.maximum(count, 1)[:, None]).astype(np.float32)
    moved = _unit(moved) if cosine else moved
    return np.where(((count == 0) | (cosine & ~moved.any(axis=1)))[:, None], centre, moved)  # rows may cancel out
