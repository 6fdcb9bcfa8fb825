"""Memory and queue: hand-computed updates, the float64 twin, and eight devices against one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grafit_jax import memory as memory_lib
from helpers import twins

DEVICES = 8


def a_memory(n=7, dim=5, seed=0):
    rng = np.random.default_rng(seed)
    return memory_lib.Memory(
        embedding=jnp.asarray(twins.unit(rng.normal(size=(n, dim))), jnp.float32),
        label=jnp.asarray(rng.integers(0, 3, n), jnp.int32),
    )


def test_golden_update_is_the_normalised_mean():
    # m = (1, 0), z = (0, 2): unit(z) = (0, 1), the mean (0.5, 0.5), its unit vector (0.7071068, 0.7071068).
    # Without unit(z) the mean would be (0.5, 1) and the direction (0.447, 0.894).
    memory = memory_lib.Memory(embedding=jnp.array([[1.0, 0.0], [0.0, 1.0]]), label=jnp.array([4, 5], jnp.int32))
    new = memory_lib.update(memory, jnp.array([0]), jnp.array([[0.0, 2.0]]))
    np.testing.assert_allclose(new.embedding, [[0.7071068, 0.7071068], [0.0, 1.0]], atol=1e-6)
    np.testing.assert_array_equal(new.label, [4, 5])


def test_golden_momentum_weighs_the_old_row():
    # momentum 0.8: (0.8, 0.2) / sqrt(0.68) = (0.9701425, 0.2425356); 0.8 on the new row would give (0.243, 0.970).
    memory = memory_lib.Memory(embedding=jnp.array([[1.0, 0.0]]), label=jnp.array([0], jnp.int32))
    new = memory_lib.update(memory, jnp.array([0]), jnp.array([[0.0, 3.0]]), momentum=0.8)
    np.testing.assert_allclose(new.embedding, [[0.9701425, 0.2425356]], atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_equals_the_twin_and_leaves_the_other_rows_bit_equal(momentum):
    memory = a_memory(n=13, dim=5)
    z = np.random.default_rng(1).normal(size=(4, 5)) * 3
    slots = np.array([12, 0, 5, 7])
    new = jax.jit(memory_lib.update, static_argnames="momentum")(
        memory, jnp.asarray(slots), jnp.asarray(z, jnp.float32), momentum=momentum
    )
    expected = twins.memory_update(memory.embedding, slots, z, momentum=momentum)
    np.testing.assert_allclose(new.embedding, expected, atol=1e-6)
    others = np.setdiff1d(np.arange(13), slots)
    np.testing.assert_array_equal(np.asarray(new.embedding)[others], np.asarray(memory.embedding)[others])
    np.testing.assert_allclose(np.linalg.norm(new.embedding, axis=-1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(new.label, memory.label)


def test_negative_slots_are_ignored():
    # -1 must not wrap around to the last row.
    memory = a_memory(n=6, dim=3)
    z = jnp.ones((3, 3), jnp.float32)
    new = memory_lib.update(memory, jnp.array([-1, 2, -1]), z)
    expected = twins.memory_update(memory.embedding, [-1, 2, -1], z)
    np.testing.assert_allclose(new.embedding, expected, atol=1e-6)
    np.testing.assert_array_equal(
        np.asarray(new.embedding)[[0, 1, 3, 4, 5]], np.asarray(memory.embedding)[[0, 1, 3, 4, 5]]
    )


def test_bfloat16_embeddings_leave_a_float32_memory_of_unit_rows():
    memory = a_memory(n=6, dim=5)
    z = jnp.asarray(np.random.default_rng(2).normal(size=(2, 5)), jnp.bfloat16)
    new = memory_lib.update(memory, jnp.array([1, 4]), z)
    assert new.embedding.dtype == jnp.float32
    # The twin uses the same rounded inputs; the arithmetic must be float32.
    expected = twins.memory_update(memory.embedding, [1, 4], z.astype(jnp.float32))
    np.testing.assert_allclose(new.embedding, expected, atol=1e-6)


def test_opposite_embedding_leaves_a_finite_row():
    # m = -z: the mean is the zero vector, which has no direction; a NaN would reach every loss.
    memory = memory_lib.Memory(embedding=jnp.array([[1.0, 0.0]]), label=jnp.array([0], jnp.int32))
    new = memory_lib.update(memory, jnp.array([0]), jnp.array([[-1.0, 0.0]]))
    assert np.isfinite(np.asarray(new.embedding)).all()


def split(memory):
    """Shards a memory: device d holds rows d*R to (d+1)*R-1, and padding has label -1."""
    n, dim = memory.embedding.shape
    rows = memory_lib.rows_per_device(n, DEVICES)
    pad = rows * DEVICES - n
    return memory_lib.Memory(
        embedding=jnp.pad(memory.embedding, ((0, pad), (0, 0))).reshape(DEVICES, rows, dim),
        label=jnp.pad(memory.label, (0, pad), constant_values=-1).reshape(DEVICES, rows),
    )


@pytest.mark.parametrize("n", [16, 45])
@pytest.mark.quick
def test_eight_devices_write_what_one_device_writes(n, eight_devices):
    assert jax.local_device_count() == DEVICES
    memory = a_memory(n=n, dim=5, seed=3)
    rng = np.random.default_rng(4)
    # Most slots of a device's batch are stored on other devices, and one is -1.
    slots = rng.permutation(n)[: 2 * DEVICES]
    slots[3] = -1
    z = rng.normal(size=(2 * DEVICES, 5)).astype(np.float32)
    one = memory_lib.update(memory, jnp.asarray(slots), jnp.asarray(z))
    sharded = split(memory)
    many = jax.pmap(lambda *args: memory_lib.update(*args, axis_name="batch"), axis_name="batch")(
        sharded, slots.reshape(DEVICES, 2), z.reshape(DEVICES, 2, 5)
    )
    expected = twins.memory_update(memory.embedding, slots, z)
    got = np.asarray(many.embedding).reshape(-1, 5)[:n]
    np.testing.assert_allclose(one.embedding, expected, atol=1e-6)
    np.testing.assert_allclose(got, one.embedding, atol=1e-6)
    np.testing.assert_array_equal(many.label, sharded.label)
    padding = np.asarray(many.embedding).reshape(-1, 5)[n:]
    np.testing.assert_array_equal(padding, np.zeros_like(padding))


def test_create_pads_after_the_last_image():
    z = np.random.default_rng(5).normal(size=(10, 3)).astype(np.float32) * 4
    memory = memory_lib.create(jnp.asarray(z), jnp.arange(10) % 3, 4)
    assert memory.embedding.shape == (4, 3, 3)
    assert memory.embedding.dtype == jnp.float32
    assert memory.label.dtype == jnp.int32
    np.testing.assert_allclose(np.asarray(memory.embedding).reshape(12, 3)[:10], twins.unit(z), atol=1e-6)
    np.testing.assert_array_equal(np.asarray(memory.label).reshape(-1), [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, -1, -1])


@pytest.mark.parametrize("n, devices, rows", [(1, 8, 1), (8, 8, 1), (9, 8, 2), (1797, 8, 225), (50_000, 1, 50_000)])
def test_rows_per_device_is_the_ceiling(n, devices, rows):
    assert memory_lib.rows_per_device(n, devices) == rows


def test_random_memory_is_uniform_on_the_sphere():
    rows = memory_lib.random(jax.random.key(0), 4000, 5)
    assert rows.shape == (4000, 5)
    assert rows.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 1.0, atol=1e-5)
    # Uniform on the sphere of R^5: mean 0 with standard error 1/sqrt(5 * 4000) = 0.007, covariance I/5. Rows of
    # |normal| or uniform [0, 1) draws would have a mean of about 0.4.
    np.testing.assert_allclose(np.mean(rows, axis=0), np.zeros(5), atol=0.03)
    np.testing.assert_allclose(np.cov(np.asarray(rows).T), np.eye(5) / 5, atol=0.02)


def test_random_memory_depends_on_its_key_only():
    first, again, other = (memory_lib.random(jax.random.key(seed), 9, 4) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


# The queue of keys


def test_queue_golden_is_first_in_first_out_with_wraparound():
    # K = 5, batches of 2: places 0 1 | 2 3 | 4 0 | 1 2. Each key of size 1 becomes its sign.
    queue = memory_lib.fill_queue(jnp.array([[2.0], [-2.0]]), [7, 8], 5)
    np.testing.assert_array_equal(queue.label, [7, 8, 7, 8, 7])
    np.testing.assert_array_equal(queue.embedding[:, 0], [1, -1, 1, -1, 1])
    seen = []
    for step in range(4):
        keys, labels = jnp.array([[3.0], [-4.0]]), jnp.array([10 * step, 10 * step + 1])
        queue = memory_lib.enqueue(queue, keys, labels, step=jnp.int32(step))
        seen.append(queue.label.tolist())
    assert seen == [[0, 1, 7, 8, 7], [0, 1, 10, 11, 7], [21, 1, 10, 11, 20], [21, 30, 31, 11, 20]]
    np.testing.assert_array_equal(queue.embedding[:, 0], [-1, 1, -1, -1, 1])
    # After 3 million steps of 1,000 keys, the number of keys exceeds int32.
    queue = memory_lib.fill_queue(jnp.ones((1, 1)), [7], 8192)
    late = memory_lib.enqueue(queue, jnp.ones((1000, 1)), jnp.arange(1000), step=jnp.int32(3_000_001))
    first = 3_000_001 * 1000 % 8192
    assert late.label[first] == 0 and late.label[(first + 999) % 8192] == 999


def test_a_batch_larger_than_the_queue_is_an_error():
    queue = memory_lib.fill_queue(jnp.ones((3, 2)), [0, 1, 2], 3)
    with pytest.raises(ValueError, match=r"found a batch of 4 keys for a queue of 3; expected K"):
        memory_lib.enqueue(queue, jnp.ones((4, 2)), jnp.zeros(4, jnp.int32), step=jnp.int32(0))
    # A batch of the queue's size replaces it.
    whole = memory_lib.enqueue(queue, -jnp.ones((3, 2)), jnp.arange(4, 7), step=jnp.int32(5))
    np.testing.assert_array_equal(whole.label, [4, 5, 6])


@pytest.mark.quick
def test_every_device_enqueues_the_keys_of_all_devices_in_device_order(eight_devices):
    rng = np.random.default_rng(0)
    keys, labels = rng.normal(size=(16, 3)).astype(np.float32), np.arange(100, 116)
    queue = memory_lib.fill_queue(rng.normal(size=(21, 3)), np.zeros(21, int), 21)
    entered = jax.pmap(
        lambda q, k, y: memory_lib.enqueue(q, k, y, step=jnp.int32(1), axis_name="batch"),
        axis_name="batch",
        in_axes=(None, 0, 0),
    )(queue, keys.reshape(DEVICES, 2, 3), labels.reshape(DEVICES, 2))
    alone = memory_lib.enqueue(queue, keys, labels, step=jnp.int32(1))
    np.testing.assert_array_equal(alone.label, [*range(105, 116), 0, 0, 0, 0, 0, *range(100, 105)])
    for device in range(DEVICES):
        np.testing.assert_array_equal(entered.label[device], alone.label)
        np.testing.assert_allclose(entered.embedding[device], alone.embedding, atol=1e-7)
