"""The losses of protocol "maskcon" against hand-computed numbers, float64 twins and each other at their limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grafit_jax import queue_losses
from helpers import twins

T0, T = 0.1, 0.05


def problem(batch=6, size=20, dim=8, classes=3, seed=0):
    """Returns query, key, queue (not normalised), labels and queue labels."""
    rng = np.random.default_rng(seed)
    query, key = rng.normal(size=(2, batch, dim)) * 3
    queue = rng.normal(size=(size, dim)) * 2
    arrays = [x.astype(np.float32) for x in (query, key, queue)]
    return *arrays, rng.integers(0, classes, batch), rng.integers(0, classes, size)


def maskcon(*arrays, **options):
    return queue_losses.maskcon(*arrays, **({"temperature": T0, "soft_temperature": T, "weight": 0.5} | options))


def test_golden():
    # Query and own key along x; queue: x (same class) and y (other class). At t0 = 1: p = (e, e, 1) / (2e + 1).
    arrays = [np.array(x, np.float32) for x in ([[2, 0]], [[5, 0]], [[3, 0], [0, 7]])]
    log_p = 1 - np.log(2 * np.e + 1)
    np.testing.assert_allclose(queue_losses.info_nce(*arrays, temperature=1.0), [-log_p], rtol=1e-6)
    labels = np.array([4]), np.array([4, 9])
    # The own key and the first key have the same target and the same p.
    np.testing.assert_allclose(queue_losses.supcon_queue(*arrays, *labels, temperature=1.0), [-log_p], rtol=1e-6)
    # If y is the key of the class, with log p = 0 - log(2e + 1): the mean of the two.
    other = np.array([9]), np.array([4, 9])
    np.testing.assert_allclose(queue_losses.supcon_queue(*arrays, *other, temperature=1.0), [-log_p + 0.5], rtol=1e-6)
    # If both are of the class, at t = 1, w = 1: z = (1, 1, exp(0 - 1)) over the sum 2 + 1/e.
    both = np.array([4]), np.array([4, 4])
    got = maskcon(*arrays, *both, temperature=1.0, soft_temperature=1.0, weight=1.0)
    z = np.array([1, 1, np.exp(-1)]) / (2 + np.exp(-1))
    np.testing.assert_allclose(got, [-z @ [log_p, log_p, log_p - 1]], rtol=1e-6)


ALONG_X = [np.array(x, np.float32) for x in ([[2, 0]], [[5, 0]], [[3, 0], [0, 7]])]  # query, own key, keys x and y


@pytest.mark.parametrize(
    ("queue_labels", "attract", "repel"),
    [
        ([4, 9], np.log(1 + 1 / np.e), np.log(2)),
        ([9, 4], (np.log(2) + np.log(1 + np.e)) / 2, np.log(1 + 1 / np.e)),
        ([9, 9], np.log(2 + 1 / np.e), 0),  # no key of the label
        ([4, 4], 0, np.log(2 + 1 / np.e)),  # no key of another one
    ],
)
def test_spread_golden(queue_labels, attract, repel):
    # The similarities are 1 (own key), 1 (x) and 0 (y).
    got = queue_losses.spread(*ALONG_X, np.array([4]), np.array(queue_labels), temperature=1.0, weight=0.3)
    np.testing.assert_allclose(got, [0.3 * attract + 0.7 * repel], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("queue_labels", "expected"),
    [([0, 1], np.log(2)), ([0, 0], np.log(2 + np.exp(2**-0.5 - 1))), ([1, 1], 0)],
)
def test_angular_golden(queue_labels, expected):
    # Class 0 points to -y: query, own key and key x become (1, 1) / sqrt(2), key y stays (0, 1).
    weights = np.array([[0, -2], [1, 0]], np.float32)
    labels = np.array([0]), np.array(queue_labels)
    got = queue_losses.angular_info_nce(*ALONG_X, *labels, weights, temperature=1.0)
    np.testing.assert_allclose(got, [expected], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_against_float64_twins(dtype):
    query, key, queue, labels, queue_labels = problem()
    query, key, queue = (jnp.asarray(x, dtype) for x in (query, key, queue))
    for t0 in (0.1, 0.01):
        np.testing.assert_allclose(
            queue_losses.info_nce(query, key, queue, temperature=t0),
            twins.info_nce(query, key, queue, t0),
            rtol=2e-5,
            atol=1e-5,
        )
        arrays = query, key, queue, labels, queue_labels
        np.testing.assert_allclose(
            queue_losses.supcon_queue(*arrays, temperature=t0), twins.supcon_queue(*arrays, t0), rtol=2e-5, atol=1e-5
        )
        for t, w in ((0.05, 0.5), (0.01, 1.0), (0.5, 0.2)):
            got = maskcon(*arrays, temperature=t0, soft_temperature=t, weight=w)
            assert got.shape == (6,) and got.dtype == jnp.float32
            np.testing.assert_allclose(got, twins.maskcon(*arrays, t0, t, w), rtol=2e-5, atol=1e-5)
        for w in (0.0, 0.3, 1.0):
            got = queue_losses.spread(*arrays, temperature=t0, weight=w)
            np.testing.assert_allclose(got, twins.spread(*arrays, t0, w), rtol=2e-5, atol=1e-5)
        got = queue_losses.own_class_info_nce(*arrays, temperature=t0)
        np.testing.assert_allclose(got, twins.own_class_info_nce(*arrays, t0), rtol=2e-5, atol=1e-5)
        weights = np.random.default_rng(100).normal(size=(3, 8)).astype(np.float32) * 4
        got = queue_losses.angular_info_nce(*arrays, weights, temperature=t0)
        np.testing.assert_allclose(got, twins.angular_info_nce(*arrays, weights, t0), rtol=2e-5, atol=3e-5)


def test_limits_where_the_losses_are_equal():
    arrays = problem()
    selfcon = queue_losses.info_nce(*arrays[:3], temperature=T0)
    supcon = queue_losses.supcon_queue(*arrays, temperature=T0)
    assert np.abs(selfcon - supcon).min() > 0.01
    np.testing.assert_allclose(maskcon(*arrays, weight=0.0), selfcon, rtol=1e-6)
    np.testing.assert_allclose(maskcon(*arrays, soft_temperature=1e6, weight=1.0), supcon, rtol=1e-5)
    # As t -> 0, the target is the own key and the nearest key of its class.
    query, key, queue, labels, queue_labels = arrays
    near = twins.unit(key) @ twins.unit(queue).T
    near[labels[:, None] != queue_labels] = -2
    logits = twins.unit(query) @ twins.unit(queue).T / T0
    own = np.sum(twins.unit(query) * twins.unit(key), 1) / T0
    log_sum = np.log(np.exp(own) + np.exp(logits).sum(1))
    nearest = logits[np.arange(len(logits)), near.argmax(1)]
    np.testing.assert_allclose(
        maskcon(*arrays, soft_temperature=1e-4, weight=1.0), log_sum - (own + nearest) / 2, rtol=1e-5
    )


@pytest.mark.parametrize("soft_temperature", [0.01, 1e6])
def test_without_a_key_of_the_label_the_own_key_is_the_target(soft_temperature):
    query, key, queue, labels, _ = problem()
    others = np.full(len(queue), 99)
    expected = twins.info_nce(query, key, queue, T0)
    arrays = query, key, queue, labels, others
    np.testing.assert_allclose(queue_losses.supcon_queue(*arrays, temperature=T0), expected, rtol=2e-5, atol=1e-5)

    def total(query):
        return jnp.sum(maskcon(query, *arrays[1:], soft_temperature=soft_temperature, weight=1.0))

    value, gradient = jax.value_and_grad(total)(query)
    np.testing.assert_allclose(value, expected.sum(), rtol=2e-5, atol=1e-5)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


LABELLED = {
    "supcon_queue": {},
    "maskcon": {"soft_temperature": T, "weight": 0.7},
    "spread": {"weight": 0.7},
    "angular_info_nce": {},
    "own_class_info_nce": {},
}


@pytest.mark.parametrize("own_class", [True, False])
@pytest.mark.parametrize("name", ["info_nce", *LABELLED])
def test_gradient_flows_to_the_query_only(name, own_class):
    query, *constants, labels, queue_labels = problem(batch=3, size=5, dim=4)
    labels = labels if own_class else labels + 3  # no key of a query's class
    if name == "angular_info_nce":
        constants.append(np.random.default_rng(9).normal(size=(6, 4)).astype(np.float32))
    options = {"temperature": T0} | LABELLED.get(name, {})

    def loss(function, query, key, queue, *weights):
        given = (labels, queue_labels) if name in LABELLED else ()
        return function(query, key, queue, *given, *weights, **options).sum()

    ours, twin = (functools.partial(loss, getattr(module, name)) for module in (queue_losses, twins))
    gradient, *others = jax.grad(ours, argnums=tuple(range(1 + len(constants))))(query, *constants)
    expected = twins.finite_difference(lambda q: twin(q, *constants), query)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5)
    assert not any(np.any(other) for other in others)


def test_similarities_use_full_float32_matmuls():
    query, key, queue, labels, queue_labels = problem()
    jaxpr = jax.make_jaxpr(lambda q: maskcon(q, key, queue, labels, queue_labels))(query).jaxpr
    assert twins.matmul_precisions(jaxpr) == {jax.lax.Precision.HIGHEST}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"key": np.ones((6, 7))},
            r"found query \(6, 8\), key \(6, 7\) and queue \(20, 8\); expected \[B, D\], \[B, D\] and \[K, D\]",
        ),
        ({"queue": np.ones((20, 7))}, r"queue \(20, 7\)"),
        ({"labels": np.ones(5, int)}, r"labels \(5,\)"),
        (
            {"queue_labels": np.ones(19, int)},
            r"found queue_labels \(19,\) with queue \(20, 8\); expected one label for each",
        ),
        ({"temperature": 0.0}, r"found temperature = 0\.0; expected a value > 0"),
        ({"soft_temperature": -1.0}, r"found soft_temperature = -1\.0; expected a value > 0"),
        ({"weight": 1.5}, r"found weight = 1\.5; expected a value in \[0, 1\]"),
    ],
)
def test_invalid_arguments_are_errors(change, message):
    names = ("query", "key", "queue", "labels", "queue_labels")
    arguments = dict(zip(names, problem(), strict=True)) | {"temperature": T0, "soft_temperature": T, "weight": 0.5}
    with pytest.raises(ValueError, match=message):
        queue_losses.maskcon(**(arguments | change))
