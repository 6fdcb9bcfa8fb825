"""Losses of Grafit and cross-entropy (docs/paper.md section 2), as pure functions of arrays.

Each returns one float32 per example. Shapes: B examples, D embedding size, R memory rows on this device, T views. The
losses over a queue of keys are in `queue_losses`.
"""

import functools

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from grafit_jax.similarity import matmul, unit

# Memory rows per block, so that no [B, N] array exists. With 4,096 rows a block of a 128-example batch fits in cache.
_BLOCK_ROWS = 4096
# Stands for log(0). It is finite so that an empty set yields no NaN.
LOG_ZERO = -1e30


def knn_loss(embeddings: Array, labels: Array, memory: Array, memory_labels: Array, **options) -> Array:
    """Returns the k-NN loss, float32 [B]; for the arguments see `knn_loss_and_weight`."""
    return knn_loss_and_weight(embeddings, labels, memory, memory_labels, **options)[0]


def knn_loss_and_weight(
    embeddings: Array,
    labels: Array,
    memory: Array,
    memory_labels: Array,
    *,
    temperature: float = 0.05,
    own_slot: Array | None = None,
    axis_name: str | None = None,
) -> tuple[Array, Array]:
    """Computes the k-NN loss, Eq. 2-3: -log of the probability of the own class under a softmax over the memory.

    The sum over the positives is inside the log (NCA), not outside (SupCon).

    Args:
      embeddings: float [B, D], normalised inside. Only they receive a gradient.
      labels: int [B].
      memory: float [R, D], normalised inside. With `axis_name`, the rows of this device: device d of n holds rows
        `d*R` to `(d+1)*R-1` of the `n*R` rows of the memory.
      memory_labels: int [R]; rows with a negative label are empty and ignored.
      temperature: sigma > 0. Values down to 0.01 are stable, also with bfloat16 inputs.
      own_slot: int [B], the row (counted over all devices) of the example itself, which both sums exclude; -1 or None
        excludes none.
      axis_name: the mapped device axis over which the memory is sharded and the examples differ.

    Returns:
      The loss, float32 [B], and its weight, float32 [B], which is 1. For an example without a positive, both are 0.

    Raises:
      ValueError: shapes that do not fit together, or temperature <= 0.
    """
    check_batch(embeddings, labels)
    if memory.ndim != 2 or memory.shape[1] != embeddings.shape[1] or memory_labels.shape != memory.shape[:1]:
        raise ValueError(
            f"found memory {memory.shape} and memory_labels {memory_labels.shape} with embeddings {embeddings.shape}; "
            f"expected [R, {embeddings.shape[1]}] and [R]."
        )
    if temperature <= 0:
        raise ValueError(f"found temperature = {temperature}; expected a value > 0.")
    if own_slot is None:
        own_slot = jnp.full(labels.shape, -1, jnp.int32)
    return _knn_loss(
        float(temperature), axis_name, unit(embeddings), labels, own_slot, lax.stop_gradient(memory), memory_labels
    )


def instance_loss(predictions: Array, targets: Array) -> Array:
    """Computes the instance loss, Eq. 1: minus the mean cosine of one view's prediction and another view's target.

    Args:
      predictions: float [T, B, D], q(g_theta(t_i(x))), T >= 2.
      targets: float [T, B, D], g_xi(t_j(x)), which receive no gradient.

    Returns:
      float32 [B] in [-1, 1], the mean over the T(T-1) ordered pairs i != j.

    Raises:
      ValueError: shapes that differ, or T < 2.
    """
    if predictions.ndim != 3 or predictions.shape != targets.shape or predictions.shape[0] < 2:
        raise ValueError(
            f"found predictions {predictions.shape} and targets {targets.shape}; expected both [T, B, D], T >= 2."
        )
    num_views = predictions.shape[0]
    p, t = unit(predictions), lax.stop_gradient(unit(targets))
    # All pairs minus the pairs i = j: T sums instead of T(T-1) products.
    all_pairs = jnp.sum(p.sum(0) * t.sum(0), axis=-1)
    same_view = jnp.sum(p * t, axis=(0, -1))
    return -(all_pairs - same_view) / (num_views * (num_views - 1))


def cross_entropy(logits: Array, labels: Array, *, smoothing: float = 0.0) -> Array:
    """Computes softmax cross-entropy with label smoothing (Szegedy et al. 2016).

    Args:
      logits: float [B, K].
      labels: int [B] in 0..K-1.
      smoothing: share of each label's weight that is spread evenly over all K classes, in [0, 1).

    Returns:
      float32 [B].

    Raises:
      ValueError: shapes that do not fit together.
    """
    check_batch(logits, labels)
    logits = logits.astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if smoothing:
        loss = (1 - smoothing) * loss - smoothing * jnp.mean(jax.nn.log_softmax(logits), axis=-1)
    return loss


def check_batch(rows: Array, labels: Array) -> None:
    """Raises ValueError unless there is one label for each row."""
    if rows.ndim != 2 or labels.shape != rows.shape[:1]:
        raise ValueError(f"found rows {rows.shape} and labels {labels.shape}; expected [B, D] and [B].")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _knn_loss(temperature, axis_name, embeddings, labels, own_slot, memory, memory_labels):
    return _knn_forward(temperature, axis_name, embeddings, labels, own_slot, memory, memory_labels)[0]


def _knn_forward(temperature, axis_name, embeddings, labels, own_slot, memory, memory_labels):
    # Gather the queries, not the rows: B*D numbers instead of N*D.
    queries = (embeddings, labels, own_slot)
    if axis_name is not None:
        queries = lax.all_gather(queries, axis_name, tiled=True)
    num_queries, size = len(queries[1]), len(labels)

    def add_block(sums, rows, row_labels, first_row):
        similarity, valid, positive = _score(queries, rows, row_labels, first_row, temperature)
        return tuple(_add_log_sum_exp(s, similarity, mask) for s, mask in zip(sums, (valid, positive), strict=True))

    nothing = (jnp.full(num_queries, LOG_ZERO, jnp.float32), jnp.zeros(num_queries, jnp.float32))
    sums = _fold_blocks(add_block, (nothing, nothing), memory, memory_labels, axis_name)
    log_all, log_positive = (_finish_log_sum_exp(maximum, total, axis_name) for maximum, total in sums)
    weight = (log_positive > LOG_ZERO).astype(jnp.float32)
    loss = weight * (log_all - log_positive)  # Eq. 3, from the two log-sum-exps of Eq. 2
    if axis_name is not None:  # keep this device's own examples
        first = lax.axis_index(axis_name) * size
        loss, weight = (lax.dynamic_slice_in_dim(x, first, size) for x in (loss, weight))
    return (loss, weight), (queries, memory, memory_labels, log_all, log_positive, weight)


def _knn_backward(temperature, axis_name, residuals, cotangents):
    queries, memory, memory_labels, log_all, log_positive, weight = residuals

    def add_block(gradient, rows, row_labels, first_row):
        similarity, valid, positive = _score(queries, rows, row_labels, first_row, temperature)
        p_all = jnp.where(valid, jnp.exp(similarity - log_all[:, None]), 0.0)
        # Capped at probability 1: without positives log_positive is log(0), and 0 * infinity would be NaN.
        p_positive = jnp.where(positive, jnp.exp(jnp.minimum(similarity - log_positive[:, None], 0.0)), 0.0)
        return gradient + matmul(p_all - p_positive, unit(rows))

    gradient = _fold_blocks(add_block, jnp.zeros_like(queries[0]), memory, memory_labels, axis_name)
    if axis_name is not None:
        # Each device has the part of every query's gradient from its own rows: sum the parts, keep the own queries.
        gradient = lax.psum_scatter(gradient, axis_name, scatter_dimension=0, tiled=True)
    scale = cotangents[0] * weight / temperature
    return gradient * scale[:, None], None, None, None, None


_knn_loss.defvjp(_knn_forward, _knn_backward)


def _score(queries, rows, row_labels, first_row, temperature):
    """Returns the scaled similarities [Q, r] to a block of rows, and masks of the valid and of the positive pairs."""
    embeddings, labels, own_slot = queries
    similarity = matmul(embeddings, unit(rows).T) / temperature
    row = first_row + jnp.arange(rows.shape[0])
    valid = (row_labels >= 0) & (row != own_slot[:, None])
    return similarity, valid, valid & (row_labels == labels[:, None])


def _add_log_sum_exp(maximum_and_sum, similarity, mask):
    """Adds a block to a running log-sum-exp, kept as (maximum, sum of exp(x - maximum))."""
    maximum, total = maximum_and_sum
    new = jnp.maximum(maximum, jnp.max(similarity, axis=1, where=mask, initial=LOG_ZERO))
    block = jnp.sum(jnp.where(mask, jnp.exp(similarity - new[:, None]), 0.0), axis=1)
    return new, total * jnp.exp(maximum - new) + block


def _finish_log_sum_exp(maximum, total, axis_name):
    if axis_name is not None:
        everywhere = lax.pmax(maximum, axis_name)
        total = lax.psum(total * jnp.exp(maximum - everywhere), axis_name)
        maximum = everywhere
    return jnp.where(total > 0, maximum + jnp.log(jnp.maximum(total, 1e-30)), LOG_ZERO)


def _fold_blocks(add_block, start, memory, memory_labels, axis_name):
    """Folds `add_block(accumulated, rows, row_labels, first_row)` over the blocks of the memory."""
    num_rows = memory.shape[0]
    offset = 0 if axis_name is None else lax.axis_index(axis_name) * num_rows
    num_blocks, rest = divmod(num_rows, _BLOCK_ROWS)

    def body(i, accumulated):
        first = i * _BLOCK_ROWS
        rows = lax.dynamic_slice_in_dim(memory, first, _BLOCK_ROWS)
        row_labels = lax.dynamic_slice_in_dim(memory_labels, first, _BLOCK_ROWS)
        return add_block(accumulated, rows, row_labels, offset + first)

    accumulated = lax.fori_loop(0, num_blocks, body, start) if num_blocks else start
    if rest:
        first = num_blocks * _BLOCK_ROWS
        accumulated = add_block(accumulated, memory[first:], memory_labels[first:], offset + first)
    return accumulated
