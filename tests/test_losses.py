"""Eq. 1, Eq. 2-3 and cross-entropy against hand-computed numbers, float64 twins and the gradients of formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grafit_jax import losses
from helpers import twins


@functools.partial(jax.jit, static_argnames="temperature")
def knn(z, labels, memory, memory_labels, own_slot=None, cotangent=1.0, *, temperature=0.05):
    """Returns loss [B], weight [B], and the gradient of sum(cotangent * loss) with respect to the embeddings."""

    def total(z):
        loss, weight = losses.knn_loss_and_weight(
            z, labels, memory, memory_labels, temperature=temperature, own_slot=own_slot
        )
        return jnp.sum(cotangent * loss), (loss, weight)

    (_, (loss, weight)), gradient = jax.value_and_grad(total, has_aux=True)(z)
    return loss, weight, gradient


def direct_knn_loss(z, labels, memory, memory_labels, *, temperature, own_slot):
    """Eq. 2-3 as one [B, N] formula in jnp, for its automatic gradient. Every example must have a positive."""
    z = z / jnp.linalg.norm(z, axis=-1, keepdims=True)
    logits = jnp.matmul(z, memory.T, precision="highest") / temperature
    valid = (memory_labels >= 0) & (jnp.arange(len(memory)) != own_slot[:, None])
    positive = valid & (memory_labels == labels[:, None])
    everything = jax.nn.logsumexp(jnp.where(valid, logits, -jnp.inf), axis=-1)
    return everything - jax.nn.logsumexp(jnp.where(positive, logits, -jnp.inf), axis=-1)


def test_knn_loss_and_gradient_are_zero_with_a_single_class():
    """With one class for all images, Grafit reduces to BYOL: only the instance loss is left."""
    z, memory = (jax.random.normal(jax.random.key(seed), (n, 8)) for seed, n in ((0, 5), (1, 9)))
    loss, weight, gradient = knn(z, jnp.zeros(5, int), memory, jnp.zeros(9, int), jnp.arange(5))
    np.testing.assert_allclose(loss, 0.0, atol=1e-5)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-5)
    np.testing.assert_array_equal(weight, 1.0)
    # With two classes there is a gradient.
    assert np.abs(knn(z, jnp.zeros(5, int), memory, jnp.arange(9) % 2, jnp.arange(5))[2]).max() > 0.1


# Eq. 2-3, hand-computed

# Vectors at cosines 1, 0 and -1 to z = (1, 0), of lengths 2, 1, 1.
AXES = np.array([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], np.float32)


def test_knn_golden_at_temperature_one():
    # Positives at cosines 1 and 0, a negative at -1: exponentials 2.718282, 1 and 0.367879, their sum 4.086161.
    # Loss = -log(3.718282 / 4.086161) = 0.0943447. The lengths 5 and 2 have no effect on cosines.
    z = np.array([[5.0, 0.0]], np.float32)
    got = losses.knn_loss(z, np.array([1]), AXES, np.array([1, 1, 0]), temperature=1.0)
    np.testing.assert_allclose(got, [0.0943447], atol=2e-6)


def test_knn_golden_gradient_is_that_of_nca_not_of_supcon():
    # Same case. The loss depends on the direction only, so only the second coordinate of the gradient is nonzero:
    # dL/dz_2 = p_2 - q_2, with p over all rows and q over the positives: 1/4.086161 - 1/3.718282 = 0.244728 - 0.268941
    # = -0.024213. SupCon: 0.244728 - 1/2 = -0.255272. Twice the length halves the gradient.
    z = np.array([[1.0, 0.0], [2.0, 0.0]], np.float32)
    _, _, gradient = knn(z, np.array([1, 1]), AXES, np.array([1, 1, 0]), temperature=1.0)
    np.testing.assert_allclose(gradient, [[0.0, -0.024213], [0.0, -0.012107]], atol=2e-6)


def test_knn_golden_leaves_the_own_slot_out_of_both_sums():
    # The own slot 0 has cosine 1. Without it, cosines 0 (positive) and -1 (negative): -log(1 / 1.367879) = 0.3132617.
    # With it, 0.0943447, as above. -1 excludes no slot; taken as the last slot it would give 0.
    z = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
    out = losses.knn_loss(z, np.array([1, 1]), AXES, np.array([1, 1, 0]), temperature=1.0, own_slot=np.array([0, -1]))
    np.testing.assert_allclose(out, [0.3132617, 0.0943447], atol=2e-6)


def test_knn_golden_at_the_papers_temperature_by_default():
    # cosines 0.6 (positive) and 0.8 (negative), sigma = 0.05: log(1 + exp(0.2 / 0.05)) = log(1 + e^4) = 4.0181499.
    # sigma 0.1: log(1 + e^2) = 2.1269280.
    args = np.array([[1.0, 0.0]]), np.array([0]), np.array([[0.6, 0.8], [0.8, 0.6]]), np.array([0, 1])
    np.testing.assert_allclose(losses.knn_loss(*args), [4.0181499], rtol=1e-5)
    np.testing.assert_allclose(losses.knn_loss_and_weight(*args)[0], [4.0181499], rtol=1e-5)
    np.testing.assert_allclose(losses.knn_loss(*args, temperature=0.1), [2.1269280], rtol=1e-5)


def test_knn_golden_extreme_cosines_at_temperature_one_hundredth():
    # Positive at cosine -1, negative at 1: log(1 + e^200) = 200; an unshifted float32 exponential overflows at 89.
    # Swapped: log(1 + e^-200) = 0, with weight 1, since there is a positive.
    z, memory = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32), np.array([[-1.0, 0.0], [1.0, 0.0]], np.float32)
    loss, weight, gradient = knn(z, np.array([0, 1]), memory, np.array([0, 1]), temperature=0.01)
    np.testing.assert_allclose(loss, [200.0, 0.0], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(weight, [1.0, 1.0])
    np.testing.assert_allclose(gradient, np.zeros((2, 2)), atol=1e-4)


# Eq. 2-3 against its twin

SHAPES = [  # one slot, less than a block, several blocks, a partial last block; D odd and D = 1
    (1, 1, 3, 0.05),
    (1, 7, 5, 0.05),
    (6, 7, 1, 0.05),
    (5, 130, 17, 0.01),
    (3, 4097, 5, 0.05),
    (4, 5000, 17, 0.05),
    (4, 5000, 17, 0.01),
    (3, 8193, 3, 0.05),
]


def assert_equals_twin(got, args, temperature, **own):
    loss, weight, _ = got
    expected, expected_weight = twins.knn_loss_and_weight(*args, temperature=temperature, **own)
    assert loss.shape == weight.shape == expected.shape
    assert loss.dtype == weight.dtype == jnp.float32
    # A cosine has an error of about 1e-7; divided by the temperature that is 1e-5 in the loss.
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=5e-7 / temperature)
    np.testing.assert_array_equal(weight, expected_weight)


@pytest.mark.parametrize("batch, slots, dim, temperature", SHAPES)
def test_knn_equals_the_twin(batch, slots, dim, temperature):
    args = twins.knn_problem(batch, slots, dim)
    # Own slots in every block, including a partial last one.
    own_slot = np.linspace(0, slots - 1, batch).astype(int)
    for own in (own_slot, np.full(batch, -1)):
        assert_equals_twin(knn(*args, own, temperature=temperature), args, temperature, own_slot=own)


@pytest.mark.parametrize("row", ["zero", "query", "huge"])
def test_knn_ignores_rows_with_a_negative_label(row):
    # Empty slots may hold zeros, the query itself or huge numbers; a query labelled -1 has no positive among them.
    z, labels, memory, memory_labels = twins.knn_problem(4, 40, 5, seed=1)
    labels[3] = -1
    padding = {"zero": np.zeros((9, 5)), "query": np.tile(z[:1], (9, 1)), "huge": np.full((9, 5), 1e15)}[row]
    keep = np.arange(len(memory)) % 2 == 0
    padded = np.concatenate([np.where(keep[:, None], memory, padding[:1]), padding]).astype(np.float32)
    padded_labels = np.concatenate([np.where(keep, memory_labels, -1), np.full(9, -1)])
    loss, weight, gradient = knn(z, labels, padded, padded_labels)
    expected, expected_weight, expected_gradient = knn(z, labels, memory[keep], memory_labels[keep])
    np.testing.assert_array_equal(weight, [1, 1, 1, 0])
    np.testing.assert_array_equal(expected_weight, [1, 1, 1, 0])
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-5)
    twin = twins.knn_loss(z, labels, memory[keep], memory_labels[keep])
    np.testing.assert_allclose(loss, twin, rtol=1e-5, atol=1e-5)


def test_knn_example_without_a_positive_has_no_loss_weight_or_gradient():
    # Example 1 has a label that no slot has; example 2's only positive is its own slot; 0 and 3 are unaffected.
    z, labels, memory, memory_labels = twins.knn_problem(4, 50, 7, classes=2, seed=2)
    labels[1], labels[2] = 8, 9
    memory_labels[17] = 9
    own_slot = np.array([3, -1, 17, -1])
    loss, weight, gradient = map(np.asarray, knn(z, labels, memory, memory_labels, own_slot))
    np.testing.assert_array_equal(weight, [1, 0, 0, 1])
    np.testing.assert_array_equal(loss[[1, 2]], [0, 0])
    np.testing.assert_array_equal(gradient[[1, 2]], np.zeros((2, 7)))
    some = [0, 3]
    expected, _, expected_gradient = knn(z[some], labels[some], memory, memory_labels, own_slot[some])
    np.testing.assert_allclose(loss[some], expected, rtol=1e-6)
    np.testing.assert_allclose(gradient[some], expected_gradient, rtol=1e-5, atol=1e-6)
    assert (np.abs(expected_gradient).max(axis=-1) > 1e-3).all()


@pytest.mark.parametrize("memory_labels, own_slot", [([-1, -1, -1], -1), ([1, -1, -1], 0)])
def test_knn_without_valid_slots_is_zero_and_not_nan(memory_labels, own_slot):
    z = np.array([[1.0, 2.0]], np.float32)
    loss, weight, gradient = knn(z, np.array([1]), AXES, np.array(memory_labels), np.array([own_slot]))
    np.testing.assert_array_equal(loss, [0.0])
    np.testing.assert_array_equal(weight, [0.0])
    np.testing.assert_array_equal(gradient, [[0.0, 0.0]])


@pytest.mark.parametrize("temperature", [0.05, 0.01])
def test_knn_computes_in_float32_whatever_the_input(temperature):
    z, labels, memory, memory_labels = twins.knn_problem(5, 300, 17, seed=3)
    z, memory = jnp.asarray(z, jnp.bfloat16), jnp.asarray(memory, jnp.bfloat16)
    # The twin uses the same rounded inputs, so float32 arithmetic agrees to float32's tolerance.
    rounded = np.asarray(z, np.float32), labels, np.asarray(memory, np.float32), memory_labels
    own_slot = np.arange(5)
    got = knn(z, labels, memory, memory_labels, own_slot, temperature=temperature)
    assert_equals_twin(got, rounded, temperature, own_slot=own_slot)
    # The gradient is rounded once, to bfloat16's 8 bits, at the end.
    expected = knn(*rounded, own_slot, temperature=temperature)[2]
    assert got[2].dtype == jnp.bfloat16
    largest = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(got[2], np.float32), expected, rtol=2**-7, atol=1e-3 * largest)


# The gradient of Eq. 2-3


@pytest.mark.parametrize("temperature", [0.5, 0.05, 0.01])
def test_knn_gradient_equals_finite_differences_of_the_twin(temperature):
    z, labels, memory, memory_labels = twins.knn_problem(3, 7, 5, classes=2, seed=4)
    own_slot, scale = np.array([0, 6, -1]), np.array([1.0, -2.0, 0.25], np.float32)
    rest = {"temperature": temperature, "own_slot": own_slot}

    def twin(z):
        return float(scale @ twins.knn_loss(z, labels, memory, memory_labels, **rest))

    expected = twins.finite_difference(twin, z)
    gradient = knn(z, labels, memory, memory_labels, own_slot, scale, temperature=temperature)[2]
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("batch, slots, dim", [(1, 7, 5), (16, 130, 17), (4, 5000, 17)])
def test_knn_gradient_equals_that_of_the_direct_formula(batch, slots, dim):
    z, labels, memory, memory_labels = twins.knn_problem(batch, slots, dim, seed=5)
    memory_labels[:3] = [0, 1, 2]
    memory_labels[-1] = -1
    own_slot = np.minimum(np.arange(batch) + 4, slots - 2)
    cotangent = np.random.default_rng(6).normal(size=batch).astype(np.float32)

    @jax.jit
    @jax.grad
    def direct(z):
        loss = direct_knn_loss(z, labels, memory, memory_labels, temperature=0.05, own_slot=own_slot)
        return jnp.sum(cotangent * loss)

    expected = direct(z)
    gradient = knn(z, labels, memory, memory_labels, own_slot, cotangent)[2]
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())


def test_knn_gradient_flows_to_the_embeddings_only():
    # The weight has no gradient either.
    z, labels, memory, memory_labels = twins.knn_problem(4, 30, 5, seed=7)

    @jax.jit
    def gradients(z, memory):
        def total(z, memory):
            return losses.knn_loss(z, labels, memory, memory_labels).sum()

        def weight(z):
            return losses.knn_loss_and_weight(z, labels, memory, memory_labels)[1].sum()

        return *jax.grad(total, argnums=(0, 1))(z, memory), jax.grad(weight)(z)

    to_z, to_memory, of_weight = gradients(z, memory)
    assert np.abs(to_z).max() > 1e-2
    np.testing.assert_array_equal(to_memory, np.zeros_like(memory))
    np.testing.assert_array_equal(of_weight, np.zeros_like(z))


# Eq. 1


def test_instance_golden_two_views():
    # p_1 = (2, 0), p_2 = (0, 3), t_1 = (1, 1), t_2 = (5, 0): cos(p_1, t_2) = 1 and cos(p_2, t_1) = 0.7071068; minus
    # their mean is -0.8535534. (Minus their sum is -1.707; minus the mean of the pairs i = j is -0.354.)
    p = jnp.array([[[2.0, 0.0]], [[0.0, 3.0]]])
    t = jnp.array([[[1.0, 1.0]], [[5.0, 0.0]]])
    np.testing.assert_allclose(losses.instance_loss(p, t), [-0.8535534], atol=1e-6)


def test_instance_golden_four_views():
    # View i at i * 90 degrees: each view has cosines 0, -1, 0 to the other three, in total -4; minus the mean over the
    # 12 ordered pairs is 4/12. With the pairs i = j it would be 0, with 1/T^2 4/16.
    # Second image: all predictions and targets equal, so -1.
    circle = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    alike = np.tile([[0.6, 0.8]], (4, 1))
    p = jnp.asarray(np.stack([circle, alike], axis=1))
    np.testing.assert_allclose(losses.instance_loss(3 * p, p), [1 / 3, -1.0], atol=1e-6)


@pytest.mark.parametrize("views, batch, dim", [(2, 1, 3), (3, 5, 1), (4, 4, 17), (8, 2, 5)])
def test_instance_equals_the_twin(views, batch, dim):
    p, t = np.random.default_rng(12).normal(size=(2, views, batch, dim)).astype(np.float32) * 4
    got = jax.jit(losses.instance_loss)(p, t)
    assert got.shape == (batch,)
    np.testing.assert_allclose(got, twins.instance_loss(p, t), atol=2e-6)


@pytest.mark.parametrize("views", [2, 4])
def test_instance_gradient_equals_finite_differences_and_stops_at_the_targets(views):
    p, t = np.random.default_rng(13).normal(size=(2, views, 2, 5)).astype(np.float32)
    scale = np.array([1.0, -3.0])

    def total(p, t):
        return jnp.sum(scale * losses.instance_loss(p, t))

    to_p, to_t = jax.jit(jax.grad(total, argnums=(0, 1)))(p, t)
    expected = twins.finite_difference(lambda p: float(scale @ twins.instance_loss(p, t)), p)
    np.testing.assert_allclose(to_p, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(to_t, np.zeros_like(t))


def test_instance_computes_in_float32_whatever_the_input():
    p, t = (jnp.asarray(x, jnp.bfloat16) for x in np.random.default_rng(14).normal(size=(2, 4, 3, 17)))
    got = jax.jit(losses.instance_loss)(p, t)
    assert got.dtype == jnp.float32
    expected = twins.instance_loss(np.asarray(p, np.float32), np.asarray(t, np.float32))
    np.testing.assert_allclose(got, expected, atol=2e-6)


# Cross-entropy


def test_cross_entropy_golden():
    # softmax(0, log 3) = (1/4, 3/4): log 4 = 1.3862944 and log(4/3) = 0.2876821. Logits (1000, 0), label 1: 1000.
    logits = jnp.array([[0.0, np.log(3.0)], [0.0, np.log(3.0)], [1000.0, 0.0], [1000.0, 0.0]])
    got = losses.cross_entropy(logits, jnp.array([0, 1, 1, 0]))
    np.testing.assert_allclose(got, [1.3862944, 0.2876821, 1000.0, 0.0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batch, classes", [(1, 1), (1, 20), (7, 3)])
def test_cross_entropy_and_its_gradient_equal_the_twin(batch, classes):
    rng = np.random.default_rng(15)
    logits = rng.normal(size=(batch, classes)).astype(np.float32) * 5
    labels = rng.integers(0, classes, batch)
    got, pullback = jax.vjp(jax.jit(lambda x: losses.cross_entropy(x, labels)), logits)
    assert got.shape == (batch,)
    np.testing.assert_allclose(got, twins.cross_entropy(logits, labels), rtol=1e-5, atol=2e-6)
    expected = twins.finite_difference(lambda x: float(twins.cross_entropy(x, labels).sum()), logits)
    np.testing.assert_allclose(pullback(jnp.ones(batch))[0], expected, atol=1e-5)


def test_cross_entropy_computes_in_float32_whatever_the_input():
    logits = jnp.asarray(np.random.default_rng(16).normal(size=(3, 20)) * 5, jnp.bfloat16)
    got = losses.cross_entropy(logits, jnp.array([0, 5, 19]))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, twins.cross_entropy(np.asarray(logits, np.float32), [0, 5, 19]), rtol=1e-5)
