"""A linear probe on frozen embeddings: multinomial logistic regression by L-BFGS.

It minimises, over weights W [D, K] and biases b [K], the mean cross-entropy of the training embeddings + l2/2 |W|^2.
The devices find the cross-entropy of every row and sum its gradients, a block at a time; the host takes the steps
(SciPy), and sums in float64 what it compares.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike

from grafit_jax import parallel, pulse
from grafit_jax.errors import UserError, warn
from grafit_jax.retrieval import neighbors
from grafit_jax.similarity import matmul

# What l2 is chosen from, the strongest first. Embeddings are scaled so that their mean square length is 1.
_L2 = tuple(10.0**-i for i in range(1, 7))
# L-BFGS ends at a gradient as small as this, or at so many steps, which SciPy calls status 1.
_GRADIENT = 1e-7
_MAX_ITERATIONS = 300
_STOPPED = 1


def probe(
    train_embedding: ArrayLike,
    train_label: ArrayLike,
    test_embedding: ArrayLike,
    test_label: ArrayLike,
    *,
    l2: float | None = None,
    holdout: float = 0.2,
    seed: int = 0,
) -> dict[str, float]:
    """How well a linear classifier of the training embeddings classifies the test embeddings.

    Both are shifted and scaled alike, so that the training embeddings have mean 0 and mean square length 1: that
    changes nothing but the unit of l2. A test image of a class without training images counts as wrong.

    Args:
      train_embedding: float [N, D].
      train_label: [N], integers or strings.
      test_embedding: float [Q, D].
      test_label: [Q], as those of the training images.
      l2: the strength of the penalty. None: of 0.1 to 1e-6 the one that classifies a share of the training images
        best after training on the others, the strongest of equals; then all are trained on. The test images have no
        part in it.
      holdout: that share, of every class; one image at least of a class that has others.
      seed: of its choice.

    Returns:
      top1, the share of test images that are classified right, and l2.

    Raises:
      UserError: embeddings that are not [n, D], not finite or of different D, labels that are not one for each, or
        every class with a single training image, where l2 cannot be chosen.
    """
    rows, test = np.asarray(train_embedding, np.float32), np.asarray(test_embedding, np.float32)
    _check("train", rows, train_label)
    _check("test", test, test_label)
    if rows.shape[1] != test.shape[1]:
        raise UserError(
            f"train_embedding has {rows.shape[1]} dimensions and test_embedding {test.shape[1]}: want embeddings of "
            "the same network and layer."
        )
    classes, label = np.unique(np.asarray(train_label), return_inverse=True)
    origin = np.mean(rows, axis=0, dtype=np.float64).astype(np.float32)
    rows, test = rows - origin, test - origin
    length = math.sqrt(np.einsum("nd,nd->", rows, rows, dtype=np.float64) / len(rows)) or 1.0
    rows, test = rows / np.float32(length), test / np.float32(length)
    if l2 is None:
        l2 = _chosen(rows, label, len(classes), holdout, seed)
    solved = _solve(rows, label, len(classes), l2)
    if solved.status == _STOPPED:
        warn(
            f"the probe with l2 = {l2:g} stopped at {solved.nit} steps, short of its minimum (largest gradient "
            f"{np.max(np.abs(solved.jac)):.0e}, wanted {_GRADIENT:.0e}): its top-1 may be a little off"
        )
    found = classes[predict(solved.x, test)]
    return {"top1": float(np.mean(found == np.asarray(test_label))), "l2": float(l2)}


def fit(
    rows: np.ndarray, label: np.ndarray, num_classes: int, l2: float, *, start: np.ndarray | None = None
) -> np.ndarray:
    """Weights and, as the last row, biases, float64 [D + 1, K]; after `_MAX_ITERATIONS` steps at the latest.

    Args:
      rows: float32 [N, D]; best with mean 0 and length about 1.
      label: int [N], from 0 to K - 1.
      num_classes: K.
      l2: scikit-learn's 1 / (C N).
      start: what to start from; zeros if None.
    """
    return _solve(rows, label, num_classes, l2, start=start).x


def _solve(rows, label, num_classes, l2, *, start=None):
    """SciPy's OptimizeResult, with `x` in the shape of the weights."""
    import scipy.optimize  # here, since it takes as long as half of all else that a command line imports

    shape = (rows.shape[1] + 1, num_classes)
    data = tuple(parallel.in_blocks(x, num_classes) for x in (rows, label.astype(np.int32), np.ones(len(rows), bool)))
    losses_and_gradient = _pmapped(tuple(parallel.devices()))

    def objective(flat):
        pulse.beat()
        weight = flat.reshape(shape)
        loss, gradient = (np.asarray(x, np.float64) for x in losses_and_gradient(data, weight.astype(np.float32)))
        penalised = np.concatenate([weight[:-1], np.zeros((1, num_classes))])
        value = np.sum(loss) / len(rows) + l2 / 2 * np.sum(penalised**2)
        return value, (np.sum(gradient, axis=0) / len(rows) + l2 * penalised).ravel()

    first = np.zeros(shape) if start is None else start
    options = {"maxiter": _MAX_ITERATIONS, "ftol": 1e-12, "gtol": _GRADIENT}
    found = scipy.optimize.minimize(objective, first.ravel(), jac=True, method="L-BFGS-B", options=options)
    found.x = found.x.reshape(shape)
    return found


def predict(weight: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """int [Q], the class of each row."""
    return np.argmax(rows @ weight[:-1].astype(np.float32) + weight[-1].astype(np.float32), axis=1)


@functools.cache
def _pmapped(devices: tuple[jax.Device, ...]):
    """Of a device's rows their cross-entropies [M, B], padding at 0, and the gradient [D + 1, K] of their sum."""

    def of_block(weight, block):
        rows, label, present = block
        logits = matmul(rows, weight[:-1]) + weight[-1]
        loss = jnp.where(present, optax.softmax_cross_entropy_with_integer_labels(logits, label), 0.0)
        return jnp.sum(loss), loss

    def losses_and_gradient(blocks, weight):
        def body(total, block):
            gradient, loss = jax.grad(of_block, has_aux=True)(weight, block)
            return total + gradient, loss

        gradient, loss = lax.scan(body, jnp.zeros_like(weight), blocks)
        return loss, gradient

    return parallel.pmap(losses_and_gradient, in_axes=(0, None))


def _chosen(rows, label, num_classes, holdout, seed) -> float:
    held = _held_out(label, holdout, seed)
    if not held.any():
        raise UserError("every class has a single training image: want another one, to choose l2 by, or l2 itself.")
    weight, best = None, (-1.0, _L2[0])
    for l2 in _L2:
        weight = fit(rows[~held], label[~held], num_classes, l2, start=weight)
        best = max(best, (float(np.mean(predict(weight, rows[held]) == label[held])), l2))
    return best[1]


def _held_out(label: np.ndarray, share: float, seed: int) -> np.ndarray:
    """bool [N]: of a class of n images floor(share n), but at least one of two."""
    count = np.bincount(label)
    # RandomState's stream is frozen (NEP 19): the same choice with every version of NumPy.
    order = np.lexsort((np.random.RandomState(seed).random_sample(len(label)), label))
    place = np.empty(len(label), int)
    place[order] = np.arange(len(label)) - np.repeat(np.cumsum(count) - count, count)
    wanted = np.where(count > 1, np.maximum(1, np.floor(share * count + 1e-9)), 0)
    return place < wanted[label]


def _check(split: str, embedding: np.ndarray, label: ArrayLike) -> None:
    neighbors.check_embeddings(f"{split}_embedding", embedding, zeros=True)
    if np.shape(label) != (len(embedding),):
        raise UserError(f"{split}_label has shape {np.shape(label)}: want one for each of {len(embedding)} embeddings.")
