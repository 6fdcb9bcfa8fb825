"""A linear probe on frozen embeddings: multinomial logistic regression with L-BFGS, on all local devices.

Minimises the mean cross-entropy of the training embeddings + l2/2 |W|^2 over weights W [D, K] and biases b [K].
Matmuls are float32. Sums, comparisons and updates are float64, because float32 stops short of the minimum.
"""

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

# Candidates for l2, largest first, for embeddings scaled to mean squared length 1.
_L2 = tuple(10.0**-i for i in range(1, 7))
# L-BFGS stops at this largest gradient, at this relative decrease of the objective, or after this many steps.
_GRADIENT = 1e-7
_GAIN = 1e-12
_MAX_ITERATIONS = 300
_LBFGS = optax.lbfgs()


def probe(
    train_embedding: ArrayLike,
    train_label: ArrayLike,
    test_embedding: ArrayLike,
    test_label: ArrayLike,
    *,
    l2: float | None = None,
) -> dict[str, float]:
    """Trains a linear classifier on the training embeddings and evaluates it on the test embeddings.

    All embeddings are shifted and scaled so that the training embeddings have mean 0 and mean squared length 1, which
    only changes the unit of l2. A test image whose class has no training images counts as an error.

    Args:
      train_embedding: float [N, D].
      train_label: [N], integers or strings.
      test_embedding: float [Q, D].
      test_label: [Q], integers or strings like `train_label`.
      l2: weight of the penalty. With None it is the best of 0.1, 0.01, ..., 1e-6 on a held-out fifth of the training
        images of each class, the largest in case of a tie; the classifier is then trained on all of them.

    Returns:
      A dict with top1, the accuracy on the test images, and l2.

    Raises:
      UserError: embeddings that are not [n, D], not finite or of different D; labels of another length; or, without
        `l2`, a single training image in every class.
    """
    rows, test = np.asarray(train_embedding, np.float32), np.asarray(test_embedding, np.float32)
    for split, embedding, labels in (("train", rows, train_label), ("test", test, test_label)):
        neighbors.check_embeddings(f"{split}_embedding", embedding, zeros=True)
        if np.shape(labels) != (len(embedding),):
            raise UserError(
                f"{split}_label: found shape {np.shape(labels)}; expected ({len(embedding)},), one per embedding."
            )
    if rows.shape[1] != test.shape[1]:
        raise UserError(
            f"probe: found train_embedding with {rows.shape[1]} dimensions and test_embedding with {test.shape[1]}; "
            "expected embeddings of the same network and layer."
        )
    classes, label = np.unique(np.asarray(train_label), return_inverse=True)
    origin = np.mean(rows, axis=0, dtype=np.float64).astype(np.float32)
    rows, test = rows - origin, test - origin
    length = math.sqrt(np.einsum("nd,nd->", rows, rows, dtype=np.float64) / len(rows)) or 1.0
    rows, test = rows / np.float32(length), test / np.float32(length)
    l2 = _chosen(rows, label, len(classes)) if l2 is None else l2
    weight, steps, gradient = fit(rows, label, len(classes), l2)
    if steps == _MAX_ITERATIONS:
        warn(
            f"probe with l2 = {l2:g}: found a largest gradient of {gradient:.0e} after {steps} steps; expected at "
            f"most {_GRADIENT:.0e}; top1 may be slightly off."
        )
    found = classes[predict(weight, test)]
    return {"top1": float(np.mean(found == np.asarray(test_label))), "l2": float(l2)}


def _chosen(rows: np.ndarray, label: np.ndarray, num_classes: int) -> float:
    held = _held_out(label)
    if not held.any():
        raise UserError(
            "probe: found a single training image in every class; expected more, to choose l2; add images or pass l2."
        )

    def top1(l2):
        weight, *_ = fit(rows, label, num_classes, l2, among=~held)
        return np.mean(predict(weight, rows[held]) == label[held])

    return max(_L2, key=top1)  # the first maximum, that is the largest l2


def _held_out(label: np.ndarray) -> np.ndarray:
    """Returns bool [N], floor(n / 5) images of each class of n, at least one if n > 1."""
    count = np.bincount(label)
    # RandomState's stream is frozen (NEP 19), so the split is the same for every version of NumPy.
    order = np.lexsort((np.random.RandomState(0).random_sample(len(label)), label))
    place = np.empty(len(label), int)
    place[order] = np.arange(len(label)) - np.repeat(np.cumsum(count) - count, count)
    num_held = np.where(count > 1, np.maximum(1, count // 5), 0)
    return place < num_held[label]


def predict(weight: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns the predicted class of each row, int [Q]."""
    return np.argmax(rows @ weight[:-1].astype(np.float32) + weight[-1].astype(np.float32), axis=1)


def fit(
    rows: np.ndarray, label: np.ndarray, num_classes: int, l2: float, *, among: np.ndarray | None = None
) -> tuple[np.ndarray, int, float]:
    """Fits the classifier to the given rows.

    Args:
      rows: float32 [N, D], best scaled to mean 0 and length about 1.
      label: int [N], from 0 to K - 1.
      num_classes: K.
      l2: weight of the penalty, 1 / (C N) in scikit-learn.
      among: bool [N], the rows to train on; None for all.

    Returns:
      The weights with the biases as the last row, float64 [D + 1, K], the number of steps, and the largest gradient.
    """
    among = np.ones(len(rows), bool) if among is None else among
    blocks = tuple(parallel.in_blocks(x, num_classes) for x in (rows, label.astype(np.int32), among))
    weight = np.zeros((rows.shape[1] + 1, num_classes))
    step = parallel.pmap(_step, in_axes=(0, None, None, None), out_axes=None, donate_argnums=(1, 2))
    with jax.enable_x64(True):
        # Copies, because each step donates these buffers.
        weight, state = parallel.replicate(jax.tree.map(np.array, (weight, _LBFGS.init(weight))))
        steps, before, value, gradient = 0, math.inf, math.inf, math.inf
        while steps < _MAX_ITERATIONS and gradient > _GRADIENT and not before - value <= _GAIN * max(value, 1):
            pulse.beat()
            weight, state, *found = step(blocks, weight, state, l2)
            before, (value, gradient) = value, map(float, found)
            steps += 1
    return np.asarray(weight), steps, gradient


def _step(blocks, weight, state, l2):
    """Runs one L-BFGS step; returns weights, state, the objective and its largest gradient."""

    def objective(weight):
        return _loss(weight, blocks) + l2 / 2 * jnp.sum(weight[:-1] ** 2)

    value, gradient = optax.value_and_grad_from_state(objective)(weight, state=state)
    updates, state = _LBFGS.update(gradient, state, weight, value=value, grad=gradient, value_fn=objective)
    value, gradient = (optax.tree.get(state, name) for name in ("value", "grad"))
    return optax.apply_updates(weight, updates), state, value, jnp.max(jnp.abs(gradient))


def _loss_and_gradient(weight, blocks):
    """Returns the mean cross-entropy over all devices and its gradient [D + 1, K], computed in blocks."""

    def of_block(weight, rows, label, present):
        logits = matmul(rows, weight[:-1]) + weight[-1]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        return jnp.sum(loss, where=present, dtype=jnp.float64)

    def body(total, block):
        found = jax.value_and_grad(of_block)(weight.astype(jnp.float32), *block)
        return jax.tree.map(jnp.add, total, found), None

    total, _ = lax.scan(body, (jnp.zeros((), jnp.float64), jnp.zeros_like(weight)), blocks)
    total, num_rows = lax.psum((total, jnp.sum(blocks[2], dtype=jnp.int32)), parallel.AXIS)
    return jax.tree.map(lambda x: x / num_rows, total)


# Custom VJP, because the gradient of a scan would keep the logits of all rows.
_loss = jax.custom_vjp(lambda weight, blocks: _loss_and_gradient(weight, blocks)[0])
_loss.defvjp(_loss_and_gradient, lambda gradient, scale: (scale * gradient, None))
