"""The k-NN loss with a large memory and on eight devices: no [B, N] array, full float32, the result of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grafit_jax import losses
from helpers import twins

DEVICES = 8


def big_gradient():
    batch, slots, dim = 128, 100_000, 16
    shapes = (
        jax.ShapeDtypeStruct((batch, dim), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
        jax.ShapeDtypeStruct((slots, dim), jnp.float32),
        jax.ShapeDtypeStruct((slots,), jnp.int32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
    )

    def total(z, labels, memory, memory_labels, own_slot):
        return losses.knn_loss(z, labels, memory, memory_labels, own_slot=own_slot).sum()

    return jax.grad(total), shapes, batch * slots


def test_knn_gradient_traces_no_array_of_batch_by_slots():
    gradient, shapes, full = big_gradient()
    jaxpr = jax.make_jaxpr(gradient)(*shapes).jaxpr
    sizes = [
        variable.aval.size for e in twins.equations(jaxpr) for variable in e.outvars if hasattr(variable.aval, "size")
    ]
    # The memory has 1.6 million elements, a [128, 100_000] array 12.8 million.
    assert max(sizes) < full / 4, f"an array of {max(sizes):,} elements; [B, N] has {full:,}"


def test_compiled_knn_gradient_allocates_less_than_batch_by_slots():
    gradient, shapes, full = big_gradient()
    held = jax.jit(gradient).lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    assert held < full * 4 / 2, f"{held:,} bytes of temporaries; a [B, N] float32 has {full * 4:,}"


def test_knn_matmuls_use_full_float32():
    # Accelerators default to TF32 or bfloat16: an error of 1e-3 in a cosine is 0.1 in a logit at temperature 0.01.
    gradient, shapes, _ = big_gradient()
    precisions = twins.matmul_precisions(jax.make_jaxpr(gradient)(*shapes).jaxpr)
    assert precisions == {jax.lax.Precision.HIGHEST}


# Eight devices against one


def sharded_problem(slots, dim=9, per_device=2, seed=9):
    """Returns a problem for one device, and the same sharded over devices; padding rows have label -1."""
    z, labels, memory, memory_labels = twins.knn_problem(DEVICES * per_device, slots, dim, seed=seed)
    rng = np.random.default_rng(seed)
    own_slot = rng.permutation(slots)[: len(z)] if slots >= len(z) else np.arange(len(z)) % slots
    own_slot[1] = -1
    labels[own_slot >= 0] = memory_labels[own_slot[own_slot >= 0]]
    labels[5] = 77  # not in memory
    rows = -(-slots // DEVICES)
    pad = rows * DEVICES - slots

    def split(x):
        return x.reshape(DEVICES, -1, *x.shape[1:])

    padded = np.concatenate([memory, np.zeros((pad, dim), np.float32)])
    padded_labels = np.concatenate([memory_labels, np.full(pad, -1)])
    one = (z, labels, memory, memory_labels, own_slot)
    return one, tuple(map(split, (z, labels, padded, padded_labels, own_slot)))


def loss_and_gradient(axis_name, temperature=0.05, with_own=True):
    """Returns a function for the local loss and its gradient. A psum inside would scale it by the device count."""

    def run(z, labels, memory, memory_labels, own_slot, cotangent):
        def total(z):
            loss, weight = losses.knn_loss_and_weight(
                z,
                labels,
                memory,
                memory_labels,
                temperature=temperature,
                own_slot=own_slot if with_own else None,
                axis_name=axis_name,
            )
            return jnp.sum(cotangent * loss), (loss, weight)

        (_, (loss, weight)), gradient = jax.value_and_grad(total, has_aux=True)(z)
        return loss, weight, gradient

    return run


@pytest.mark.parametrize("slots", [5, 64, 1003, 33_001])
@pytest.mark.quick
def test_knn_on_eight_devices_equals_one_device(slots, eight_devices):
    # With 5 slots three devices have padding only; with 1003 the last device has five padding rows; with 33,001 each
    # device has more than one block of 4,096 rows.
    one, many = sharded_problem(slots)
    temperature = 0.01  # below the default, where errors of cosines are larger in the loss
    cotangent = np.random.default_rng(10).normal(size=len(one[0])).astype(np.float32)
    expected = jax.jit(loss_and_gradient(None, temperature))(*one, cotangent)
    got = jax.pmap(loss_and_gradient("batch", temperature), axis_name="batch")(*many, cotangent.reshape(DEVICES, -1))
    loss, weight, gradient = (np.asarray(x).reshape(y.shape) for x, y in zip(got, expected, strict=True))
    np.testing.assert_allclose(loss, expected[0], rtol=1e-5, atol=5e-7 / temperature)
    np.testing.assert_array_equal(weight, expected[1])
    assert weight[5] == 0
    assert weight.sum() >= 3
    scale = np.abs(expected[2]).max()
    np.testing.assert_allclose(gradient, expected[2], rtol=1e-4, atol=1e-5 * scale)
    if slots > 5000:
        return  # the twin's loop over 16 x 33,001 pairs is slow
    twin, twin_weight = twins.knn_loss_and_weight(*one[:4], temperature=temperature, own_slot=one[4])
    np.testing.assert_allclose(loss, twin, rtol=1e-5, atol=5e-7 / temperature)
    np.testing.assert_array_equal(weight, twin_weight)


@pytest.mark.quick
def test_knn_on_eight_devices_without_own_slots(eight_devices):
    one, many = sharded_problem(100)
    cotangent = np.ones(len(one[0]), np.float32)
    expected = jax.jit(loss_and_gradient(None, with_own=False))(*one, cotangent)
    got = jax.pmap(loss_and_gradient("batch", with_own=False), axis_name="batch")(*many, cotangent.reshape(DEVICES, -1))
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_allclose(np.asarray(x).reshape(y.shape), y, rtol=1e-4, atol=1e-5 * np.abs(y).max())


@pytest.mark.quick
def test_pmean_of_local_gradients_is_the_gradient_of_the_mean_loss(eight_devices):
    # As in a training step: z = x W with replicated W, mean over the device's examples, pmean over devices.
    one, many = sharded_problem(100)
    w = np.random.default_rng(11).normal(size=(9, 9)).astype(np.float32)

    def mean_loss(w, x, labels, memory, memory_labels, own_slot, axis_name=None):
        return losses.knn_loss(x @ w, labels, memory, memory_labels, own_slot=own_slot, axis_name=axis_name).mean()

    def step(w, *args):
        return jax.lax.pmean(jax.grad(mean_loss)(w, *args, axis_name="batch"), "batch")

    expected = jax.jit(jax.grad(mean_loss))(w, *one)
    got = jax.pmap(step, axis_name="batch", in_axes=(None, 0, 0, 0, 0, 0))(w, *many)
    for device in np.asarray(got):
        np.testing.assert_allclose(device, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
