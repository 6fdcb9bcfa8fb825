"""Losses over a queue of keys, protocol "maskcon" and later methods (docs/paper.md section 3), as pure functions.

Each returns one float32 per example. Shapes: B examples, D embedding size, K keys in the queue.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from grafit_jax.losses import LOG_ZERO, check_batch
from grafit_jax.similarity import matmul, unit


def info_nce(query: Array, key: Array, queue: Array, *, temperature: float) -> Array:
    """Computes InfoNCE (`selfcon`, MoCo): -log p_0 of the softmax p over a query's own key and the K keys of the queue.

    Args:
      query: float [B, D], normalised inside. Only queries receive a gradient.
      key: float [B, D], the query's own key, from another view of its image; normalised inside.
      queue: float [K, D], keys of other images; normalised inside.
      temperature: t0 > 0; MaskCon's code uses 0.1.

    Returns:
      float32 [B].

    Raises:
      ValueError: shapes that do not fit together, or temperature <= 0.
    """
    own, _ = _log_probabilities(query, key, queue, temperature)
    return -own


def supcon_queue(
    query: Array, key: Array, queue: Array, labels: Array, queue_labels: Array, *, temperature: float
) -> Array:
    """Computes `supcon`: the mean of -log p_j over a query's own key and the queue's keys of the same label.

    The mean is outside the log, unlike the sum of the k-NN loss.

    Args:
      query: float [B, D], see `info_nce`.
      key: float [B, D], see `info_nce`.
      queue: float [K, D], see `info_nce`.
      labels: int [B].
      queue_labels: int [K].
      temperature: t0 > 0, see `info_nce`.

    Returns:
      float32 [B]; equal to `info_nce` for a query without a key of its label in the queue.

    Raises:
      ValueError: shapes that do not fit together, or temperature <= 0.
    """
    _check_queue_labels(query, queue, labels, queue_labels)
    own, others = _log_probabilities(query, key, queue, temperature)
    same = queue_labels == labels[:, None]
    return -(own + jnp.sum(jnp.where(same, others, 0.0), axis=1)) / (1 + jnp.sum(same, axis=1))


def maskcon(
    query: Array,
    key: Array,
    queue: Array,
    labels: Array,
    queue_labels: Array,
    *,
    temperature: float,
    soft_temperature: float,
    weight: float,
) -> Array:
    """Computes MaskCon: the cross-entropy of p to the target `weight` * z + (1 - `weight`) * onehot(own key).

    z gives the own key weight 1 and each key of the same label the weight exp(key . queue_j / soft_temperature) divided
    by its maximum over these keys; then z is normalised to sum 1. Without a key of the label, z is onehot(own key); the
    released code computes 0 / 0. weight = 0 gives `info_nce`; weight = 1 and soft_temperature -> infinity give
    `supcon_queue`.

    `soft_temperature` is t > 0 and `weight` w in [0, 1]; a ValueError otherwise. The other arguments, the result and
    the other errors are those of `supcon_queue`.
    """
    _check_queue_labels(query, queue, labels, queue_labels)
    if soft_temperature <= 0:
        raise ValueError(f"found soft_temperature = {soft_temperature}; expected a value > 0.")
    _check_weight(weight)
    own, others = _log_probabilities(query, key, queue, temperature)
    same = queue_labels == labels[:, None]
    nearness = lax.stop_gradient(matmul(unit(key), unit(queue).T))
    nearest = jnp.max(nearness, axis=1, where=same, initial=-1.0)  # the smallest cosine
    z = jnp.where(same, jnp.exp((nearness - nearest[:, None]) / soft_temperature), 0.0)
    total = 1 + jnp.sum(z, axis=1)
    soft = (own + jnp.sum(z * jnp.where(same, others, 0.0), axis=1)) / total
    return -(weight * soft + (1 - weight) * own)


def spread(
    query: Array,
    key: Array,
    queue: Array,
    labels: Array,
    queue_labels: Array,
    *,
    temperature: float,
    weight: float,
) -> Array:
    """Computes the spread loss (Fu et al. 2022): `weight` * attract + (1 - `weight`) * repel.

    attract is the mean of -log(exp(s_j) / (exp(s_j) + sum_n exp(s_n))) over the positives j, which are the own key and
    the queue's keys of the same label, with n the keys of other labels; unlike in `supcon_queue`, positives are not in
    the denominator of each other. repel is InfoNCE among the positives, which keeps a class from collapsing.

    attract is 0 for a query without a key of another label, repel is 0 for one without a key of its own in the queue.

    `weight` is w in [0, 1], a ValueError otherwise; the released code uses 0.5, also for `temperature`. The other
    arguments and errors are those of `supcon_queue`. Returns float32 [B].
    """
    _check_queue_labels(query, queue, labels, queue_labels)
    _check_weight(weight)
    own, others = _similarities(query, key, queue, temperature)
    same = queue_labels == labels[:, None]
    negative = _log_sum_exp(others, ~same)
    to_others = jnp.where(same, jax.nn.softplus(negative[:, None] - others), 0.0)
    attract = (jax.nn.softplus(negative - own) + jnp.sum(to_others, axis=1)) / (1 + jnp.sum(same, axis=1))
    return weight * attract + (1 - weight) * _repel(own, others, same)


def own_class_info_nce(
    query: Array, key: Array, queue: Array, labels: Array, queue_labels: Array, *, temperature: float
) -> Array:
    """Computes InfoNCE among a query's own key and the queue's keys of its label: repel of `spread`, alone.

    Arguments, result and errors are those of `supcon_queue`; 0 for a query without a key of its label in the queue.
    """
    _check_queue_labels(query, queue, labels, queue_labels)
    own, others = _similarities(query, key, queue, temperature)
    return _repel(own, others, queue_labels == labels[:, None])


def angular_info_nce(
    query: Array,
    key: Array,
    queue: Array,
    labels: Array,
    queue_labels: Array,
    class_weights: Array,
    *,
    temperature: float,
) -> Array:
    """Computes InfoNCE among the keys of a query's label after angular normalisation (ANCOR, Bukchin et al. 2021).

    Angular normalisation takes the unit weight vector of its class from a unit vector and scales the rest to unit
    length, so that this loss does not pull against the classifier's.

    `class_weights`, float [C, D], are the classifier's weight vectors; normalised inside, and constant. The other
    arguments, result and errors are those of `supcon_queue`; 0 for a query without a key of its label in the queue.
    The released code uses temperature 0.2.
    """
    _check_queue_labels(query, queue, labels, queue_labels)
    if class_weights.ndim != 2 or class_weights.shape[1] != query.shape[1]:
        raise ValueError(f"found class_weights {class_weights.shape}; expected [C, {query.shape[1]}].")
    direction = lax.stop_gradient(unit(class_weights))
    query, key = (unit(x) - direction[labels] for x in (query, key))
    own, others = _similarities(query, key, unit(queue) - direction[queue_labels], temperature)
    return _repel(own, others, queue_labels == labels[:, None])


def _similarities(query: Array, key: Array, queue: Array, temperature: float) -> tuple[Array, Array]:
    """Returns the scaled cosines of a query with its own key [B] and with the queue's keys [B, K]."""
    if query.ndim != 2 or key.shape != query.shape or queue.ndim != 2 or queue.shape[1] != query.shape[1]:
        raise ValueError(
            f"found query {query.shape}, key {key.shape} and queue {queue.shape}; expected [B, D], [B, D] and [K, D]."
        )
    if temperature <= 0:
        raise ValueError(f"found temperature = {temperature}; expected a value > 0.")
    query, key, queue = unit(query), lax.stop_gradient(unit(key)), lax.stop_gradient(unit(queue))
    return jnp.sum(query * key, axis=1) / temperature, matmul(query, queue.T) / temperature


def _log_probabilities(query: Array, key: Array, queue: Array, temperature: float) -> tuple[Array, Array]:
    """Returns log p of the own key [B] and of the queue's keys [B, K] under a softmax over all 1 + K keys."""
    own, others = _similarities(query, key, queue, temperature)
    log_sum = jnp.logaddexp(own, jax.nn.logsumexp(others, axis=1))
    return own - log_sum, others - log_sum[:, None]


def _repel(own: Array, others: Array, same: Array) -> Array:
    """Returns InfoNCE of the own key among itself and the keys of a mask [B, K]; 0 without any."""
    return jax.nn.softplus(_log_sum_exp(others, same) - own)


def _log_sum_exp(similarity: Array, mask: Array) -> Array:
    """Returns the log-sum-exp over the pairs of a mask [B, K]; a finite log(0), whose gradient is 0, without any."""
    return jax.nn.logsumexp(jnp.where(mask, similarity, LOG_ZERO), axis=1)


def _check_weight(weight: float) -> None:
    if not 0 <= weight <= 1:
        raise ValueError(f"found weight = {weight}; expected a value in [0, 1].")


def _check_queue_labels(query: Array, queue: Array, labels: Array, queue_labels: Array) -> None:
    check_batch(query, labels)
    if queue_labels.shape != queue.shape[:1]:
        raise ValueError(
            f"found queue_labels {queue_labels.shape} with queue {queue.shape}; expected one label for each key."
        )
