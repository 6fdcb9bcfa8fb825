"""k-means over embeddings, on all local devices; the result does not depend on their number."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grafit_jax import parallel, pulse
from grafit_jax.errors import UserError, warn
from grafit_jax.retrieval import neighbors
from grafit_jax.similarity import matmul

_MAX_ITERATIONS = 100
_TOLERANCE = 1e-4  # on the sum of squared centre shifts, relative to the mean variance of the D columns


class Clusters(NamedTuple):
    """Result of `kmeans`.

    Attributes:
      centre: float32 [k, D].
      label: int32 [N], the nearest centre of each row; ties go to the lower index.
      inertia: sum over rows of the squared distance to the nearest centre.
      iterations: number of centre updates.
    """

    centre: np.ndarray
    label: np.ndarray
    inertia: float
    iterations: int


def kmeans(
    embeddings: np.ndarray,
    k: int | Sequence[int] | np.ndarray,
    *,
    groups: np.ndarray | None = None,
    seed: int = 0,
    cosine: bool = False,
) -> Clusters:
    """Runs Lloyd's k-means from a greedy k-means++ initialisation, both as in scikit-learn.

    An empty cluster takes the row that is farthest from its centre, from a cluster with more than one row.

    Args:
      embeddings: float [N, D].
      k: number of clusters, or with `groups` their number in each group. Fewer distinct rows give fewer clusters, and
        without `groups` a warning.
      groups: int [N] from 0, the group of each row. Each group is clustered on its own; its centres follow those of the
        groups before it.
      seed: seed of the initialisation; the same seed gives the same clusters.
      cosine: normalises rows and centres to unit length (spherical k-means); otherwise distances are Euclidean.

    Returns:
      Centres, labels, inertia and number of iterations.

    Raises:
      UserError: k < 1 or k > N, or embeddings that are not [N, D], not finite or, with `cosine`, zero.
    """
    rows = np.asarray(embeddings, np.float32)
    neighbors.check_embeddings("embeddings", rows, zeros=not cosine)
    is_whole = groups is None
    groups = np.zeros(len(rows), np.int32) if groups is None else np.asarray(groups, np.int32)
    ks = np.atleast_1d(k)
    for of_group, size in zip(ks, np.bincount(groups, minlength=len(ks)), strict=True):
        if not 1 <= of_group <= size:
            raise UserError(f"k-means: found k = {of_group} for {size} embeddings; expected k from 1 to {size}.")
    origin = 0 if cosine else rows.mean(axis=0, dtype=float).astype("f4")  # far from 0, float32 products lose precision
    rows = _unit(rows) if cosine else rows - origin
    square, mean = np.einsum("nd,nd->", rows, rows, dtype=np.float64), np.mean(rows, axis=0, dtype=np.float64)
    tolerance = _TOLERANCE * (square / rows.size - np.mean(mean**2))
    total_k = int(ks.sum())
    blocks, of_row = parallel.in_blocks(rows, total_k), parallel.in_blocks(groups, total_k)
    # The same draws for each group, which do not depend on the others.
    seeds = [_seeded(rows, blocks, n, np.random.default_rng(seed), groups == group) for group, n in enumerate(ks)]
    centre, of_centre = np.concatenate(seeds), np.repeat(np.arange(len(ks), dtype=np.int32), [*map(len, seeds)])
    if is_whole and len(centre) < total_k:
        found = len(centre)
        warn(f"k-means: found {found} distinct embeddings; expected at least k = {total_k}; using k = {found}.")
    iterations, shift = 0, np.inf
    while True:
        pulse.beat()
        with jax.enable_x64(True):
            assign = parallel.pmap(_assign, in_axes=(0, 0, None, None))
            *of_rows, total = map(np.asarray, assign(blocks, of_row, centre, of_centre))
        label, distance = (x.ravel()[: len(rows)] for x in of_rows)
        if iterations == _MAX_ITERATIONS or shift <= tolerance:
            return Clusters(centre + origin, label, float(np.sum(distance, dtype=np.float64)), iterations)
        moved = _moved(rows, label, distance, total.sum(axis=0), centre, of_centre, cosine)
        shift = np.sum(np.subtract(moved, centre, dtype=np.float64) ** 2)
        centre, iterations = moved, iterations + 1


def _unit(rows: np.ndarray) -> np.ndarray:
    length = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64)).astype(np.float32)
    return rows / np.where(length > 0, length, 1)[:, None]


def _seeded(rows: np.ndarray, blocks: jax.Array, k: int, rng: np.random.Generator, member: np.ndarray) -> np.ndarray:
    """Returns at most k initial centres by greedy k-means++ from the rows of `member`, bool [N].

    Fewer if there are fewer distinct rows.
    """
    # Other rows are at distance 0, so they are not drawn and do not count.
    padded = np.zeros(blocks.shape[:3], np.float32)
    padded.reshape(-1)[: len(rows)][member] = np.inf
    nearest = parallel.shard(padded)
    chosen = [int(np.flatnonzero(member)[rng.integers(member.sum())])]
    while True:
        pulse.beat()
        nearest = _nearer(blocks, nearest, rows[chosen[-1]])
        drawn = np.cumsum(np.asarray(nearest).ravel()[: len(rows)], dtype=np.float64)
        if len(chosen) == k or not drawn[-1] > 0:
            return rows[chosen]
        candidates = np.searchsorted(drawn, rng.random(2 + int(np.log(k))) * drawn[-1], side="right")
        left = np.asarray(_left_by(blocks, nearest, rows[candidates])).sum(axis=(0, 1), dtype=np.float64)
        chosen.append(int(candidates[np.argmin(left)]))


# Differences, not products: the distance between equal rows is exactly 0, so a chosen row is never drawn again.
_nearer = jax.jit(lambda blocks, nearest, row: jnp.minimum(nearest, jnp.sum(jnp.square(blocks - row), axis=-1)))


@jax.jit
def _left_by(blocks, nearest, candidates):
    """Returns the sum of `nearest` over each block after adding one candidate of [C, D] as a centre: [n, M, C]."""
    square = jnp.sum(jnp.square(blocks), axis=-1, keepdims=True) + jnp.sum(jnp.square(candidates), axis=-1)
    return jnp.sum(jnp.clip(square - 2 * matmul(blocks, candidates.T), 0.0, nearest[..., None]), axis=2)


def _assign(blocks, of_row, centre, of_centre):
    """Returns the nearest centre int32 [M, B] of rows [M, B, D], squared distances [M, B], and cluster sums [k, D].

    Only the centres of a row's group count: `of_row` int [M, B], `of_centre` int [k].
    """

    def of_block(total, block):
        rows, group = block
        half = 0.5 * jnp.sum(jnp.square(centre), axis=1) - matmul(rows, centre.T)  # less half the row's square
        label = jnp.argmin(jnp.where(group[:, None] == of_centre, half, jnp.inf), axis=1)
        distance = jnp.sum(jnp.square(rows - centre[label]), axis=1)
        # A matmul, because scatter-adds are not deterministic on GPUs. In float64 the order of blocks is irrelevant.
        members = (label == jnp.arange(len(centre))[:, None]).astype(jnp.float32)
        return total + matmul(members, rows), (label.astype(jnp.int32), distance)

    total, (label, distance) = jax.lax.scan(of_block, jnp.zeros(centre.shape, jnp.float64), (blocks, of_row))
    return label, distance, total


def _moved(rows, label, distance, total, centre, of_centre, cosine: bool) -> np.ndarray:
    """Returns the new centres, float32 [k, D]; a cluster that stays empty keeps its centre. Modifies the sums."""
    count, taken = np.bincount(label, minlength=len(centre)), np.zeros(len(rows), bool)
    for cluster in np.flatnonzero(count == 0):
        spare = (of_centre[label] == of_centre[cluster]) & (distance > 0) & (count[label] > 1) & ~taken
        if spare.any():
            row = np.argmax(np.where(spare, distance, 0))
            total[[label[row], cluster]] += (-rows[row], rows[row])
            count[[label[row], cluster]] += (-1, 1)
            taken[row] = True
    moved = (total / np.maximum(count, 1)[:, None]).astype(np.float32)
    moved = _unit(moved) if cosine else moved
    return np.where(((count == 0) | (cosine & ~moved.any(axis=1)))[:, None], centre, moved)  # unit rows may sum to 0
