"""k-means over the embeddings of a whole training set, in blocks on all devices.

The devices find the nearest centre of every row and sum the rows of each cluster, a block at a time; the host, in
float64, makes centres of the sums and deals with clusters that are empty. Blocks are the same on any number of devices,
and so is what comes out, up to the last bit of float32.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from grafit_jax import parallel, pulse
from grafit_jax.errors import UserError, warn
from grafit_jax.retrieval import neighbors
from grafit_jax.similarity import matmul


@dataclasses.dataclass(frozen=True, eq=False)
class Clusters:
    """What k-means found.

    Attributes:
      centre: float32 [k, D].
      label: int32 [N], the nearest centre of every row, ties to the lower number.
      inertia: the sum over rows of the squared distance to that centre.
      iterations: how often the centres were moved.
    """

    centre: np.ndarray
    label: np.ndarray
    inertia: float
    iterations: int


def kmeans(
    embeddings: ArrayLike,
    k: int,
    *,
    seed: int = 0,
    cosine: bool = False,
    centres: ArrayLike | None = None,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
) -> Clusters:
    """Lloyd's k-means from centres of greedy k-means++, both as in scikit-learn.

    A cluster without rows takes the row that is farthest from its centre, out of a cluster that has others. It ends
    when no row changes its cluster, or the centres move by no more than `tolerance`, or after `max_iterations`.

    Args:
      embeddings: float [N, D].
      k: how many clusters.
      seed: of the first centres; the same seed gives the same clusters.
      cosine: by cosine (spherical k-means): rows and centres are brought to unit length, and a squared distance is
        2 - 2 cos. Else Euclidean.
      centres: float [k, D] to start from, in place of k-means++.
      max_iterations: at least 1.
      tolerance: on the sum of squared moves of the centres, as a share of the mean variance of the D columns.

    Returns:
      k clusters; fewer, with a warning, if there are fewer distinct rows and no `centres`.

    Raises:
      UserError: k < 1 or k > N, embeddings that are not [N, D], not finite or, by cosine, zero; centres that do not
        fit.
    """
    rows = np.asarray(embeddings, np.float32)
    neighbors.check_embeddings("embeddings", rows, zeros=not cosine)
    if not 1 <= k <= len(rows):
        raise UserError(f"k = {k} clusters of {len(rows)} embeddings: want at least 1, and at most one for each.")
    # Distances are found by products, which lose what all rows have in common: it is taken away first.
    origin = np.zeros(rows.shape[1], np.float32) if cosine else np.mean(rows, axis=0, dtype=np.float64).astype("f4")
    rows = _unit(rows) if cosine else rows - origin
    mean_square = np.einsum("nd,nd->", rows, rows, dtype=np.float64) / rows.size
    spread = float(mean_square - np.mean(np.mean(rows, axis=0, dtype=np.float64) ** 2))

    # Padding is zero: it changes no sum, and nothing else of it is looked at.
    blocks = parallel.in_blocks(rows, k)
    if centres is None:
        centre = _seeded(rows, blocks, k, np.random.default_rng(seed))
        if len(centre) < k:
            warn(f"found {len(centre)} distinct embeddings for k = {k} clusters: going on with {len(centre)} clusters.")
    else:
        centre = np.asarray(centres, np.float32)
        if centre.shape != (k, rows.shape[1]):
            raise UserError(f"centres have shape {centre.shape}: want [k, D], {(k, rows.shape[1])}.")
        centre = _unit(centre) if cosine else centre - origin

    iterations = 0
    while iterations < max_iterations:
        pulse.beat()
        label, distance, total = _assigned(blocks, len(rows), centre)
        moved = _moved(rows, label, distance, total, centre, cosine=cosine)
        shift = float(np.sum(np.square(np.subtract(moved, centre, dtype=np.float64))))
        centre = moved
        iterations += 1
        if shift <= tolerance * spread:  # of 0, where no row has changed its cluster
            break
    label, distance, _ = _assigned(blocks, len(rows), centre)
    return Clusters(centre + origin, label, float(np.sum(distance, dtype=np.float64)), iterations)


def _unit(rows: np.ndarray) -> np.ndarray:
    """A zero row stays zero."""
    length = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    return rows / np.where(length > 0, length, 1).astype(np.float32)[:, None]


# The first centres.


def _seeded(rows: np.ndarray, blocks, k: int, rng: np.random.Generator) -> np.ndarray:
    """Greedy k-means++: of a few rows, drawn in proportion to the squared distance from the centres there are, the one
    that leaves the smallest sum of them. As many centres as there are distinct rows, k at most."""
    num_candidates = 2 + int(math.log(k))
    nearer, left_by = (_pmapped(function, (0, 0, None)) for function in (_nearer, _left_by))
    nearest = parallel.in_blocks(np.full(len(rows), np.inf, np.float32), k)
    chosen = [int(rng.integers(len(rows)))]
    while True:
        pulse.beat()
        # By differences: of the chosen rows and all that are equal to them it is zero, so that none is chosen again.
        nearest = nearer(blocks, nearest, rows[chosen[-1]])
        drawn = np.cumsum(_flat(nearest, len(rows)), dtype=np.float64)
        if len(chosen) == k or not drawn[-1] > 0:
            return rows[chosen]
        candidates = np.searchsorted(drawn, rng.random(num_candidates) * drawn[-1], side="right")
        left = np.sum(np.asarray(left_by(blocks, nearest, rows[candidates])), axis=(0, 1), dtype=np.float64)
        chosen.append(int(candidates[np.argmin(left)]))


def _nearer(blocks, nearest, row):
    """Squared distances from the nearest of the centres, [M, B], with one more centre [D]."""

    def body(block):
        rows, nearest = block
        return jnp.minimum(nearest, jnp.sum(jnp.square(rows - row), axis=1))

    return lax.map(body, (blocks, nearest))


def _left_by(blocks, nearest, candidates):
    """What the sum of `nearest` would be with each of the candidates [C, D] as one more centre, by block: [M, C]."""
    square = jnp.sum(jnp.square(candidates), axis=1)

    def body(block):
        rows, nearest = block
        product = matmul(rows, candidates.T)
        distance = jnp.sum(jnp.square(rows), axis=1, keepdims=True) - 2 * product + square
        return jnp.sum(jnp.clip(distance, 0.0, nearest[:, None]), axis=0)

    return lax.map(body, (blocks, nearest))


# One iteration.


def _assigned(blocks, num_rows: int, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every row its cluster int32 [N] and squared distance float32 [N]; of every cluster its sum float64 [k, D]."""
    label, distance, high, low = _pmapped(_assign, (0, None))(blocks, centre)
    total = np.zeros(centre.shape)
    for part in (high, low):
        for of_device in np.asarray(part):
            total += of_device
    return _flat(label, num_rows), _flat(distance, num_rows), total


def _assign(blocks, centre):
    half_square = 0.5 * jnp.sum(jnp.square(centre), axis=1)

    def body(total, rows):
        label = jnp.argmin(half_square - matmul(rows, centre.T), axis=1).astype(jnp.int32)
        distance = jnp.sum(jnp.square(rows - centre[label]), axis=1)
        # A product, since sums by index come in no fixed order on GPUs.
        members = label == jnp.arange(len(centre))[:, None]
        return _added(total, matmul(members.astype(jnp.float32), rows)), (label, distance)

    zero = jnp.zeros_like(centre)
    (high, low), (label, distance) = lax.scan(body, (zero, zero), blocks)
    return label, distance, high, low


def _added(sums: tuple[Array, Array], x: Array) -> tuple[Array, Array]:
    """high + low + x as a sum and what it lost by rounding (Knuth), so that the order of blocks does not matter."""
    high, low = sums
    total = high + x
    part = total - high
    return total, low + ((high - (total - part)) + (x - part))


def _moved(rows, label, distance, total, centre, *, cosine: bool) -> np.ndarray:
    """The centres [k, D] of the clusters, float32; one that cannot be filled stays where it is. Changes `total`."""
    count = np.bincount(label, minlength=len(centre))
    far = iter(np.argsort(-distance, kind="stable")) if not count.all() else iter(())
    for cluster in np.flatnonzero(count == 0):
        row = next((row for row in far if distance[row] > 0 and count[label[row]] > 1), None)
        if row is None:
            break
        total[label[row]] -= rows[row]
        total[cluster] = rows[row]
        count[[label[row], cluster]] += (-1, 1)
    moved = (total / np.maximum(count, 1)[:, None]).astype(np.float32)
    moved = _unit(moved) if cosine else moved
    # By cosine, rows that cancel out have no centre either.
    filled = (count > 0) & (moved.any(axis=1) | (not cosine))
    return np.where(filled[:, None], moved, centre)


def _flat(x, num_rows: int) -> np.ndarray:
    """[n, M, B] of the devices, in the order of the rows."""
    return np.asarray(x).reshape(-1)[:num_rows]


def _pmapped(function, in_axes):
    return _pmapped_on(function, in_axes, tuple(parallel.devices()))


@functools.cache
def _pmapped_on(function, in_axes, devices: tuple[jax.Device, ...]):
    return parallel.pmap(function, in_axes=in_axes)
