"""The memory, a slot per training image (docs/paper.md, Eq. 2), and the queue of the newest keys."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from grafit_jax.similarity import unit


@flax.struct.dataclass
class Memory:
    """What the k-NN loss compares with.

    Attributes:
      embedding: float32 [R, D], unit rows: row i of device d is the slot of training image d*R + i.
      label: int32 [R], the images' coarse labels; -1 marks padding behind the last image.

    Outside of the pmapped step both have a leading axis of devices, [n, R, D] and [n, R].
    """

    embedding: Array
    label: Array


def rows_per_device(num_examples: int, num_devices: int) -> int:
    """How many rows each device holds; the last device's last rows may be padding."""
    return -(-num_examples // num_devices)


def random(key: Array, num_examples: int, dim: int) -> Array:
    """float32 [num_examples, dim], directions drawn uniformly from the sphere."""
    return unit(jax.random.normal(key, (num_examples, dim), jnp.float32))


def create(embeddings: ArrayLike, labels: ArrayLike, num_devices: int) -> Memory:
    """A memory for all devices ([n, R, D]) from float [N, D] embeddings and int [N] labels, padded to n*R rows."""
    label = jnp.asarray(labels, jnp.int32)
    rows = rows_per_device(len(label), num_devices)
    padding = rows * num_devices - len(label)
    embedding = jnp.pad(unit(embeddings), ((0, padding), (0, 0)))
    label = jnp.pad(label, (0, padding), constant_values=-1)
    return Memory(embedding=embedding.reshape(num_devices, rows, -1), label=label.reshape(num_devices, rows))


def update(
    memory: Memory, slots: Array, embeddings: Array, *, momentum: float | Array = 0.5, axis_name: str | None = None
) -> Memory:
    """m_i <- unit(momentum * m_i + (1 - momentum) * unit(z_i)) for the slots of a batch.

    Args:
      memory: this device's rows.
      slots: int [B], rows counted over all devices, none twice; negative ones are ignored.
      embeddings: float [B, D].
      momentum: 1/2 in the paper.
      axis_name: the mapped device axis: the updates of all devices are gathered, and each writes the rows it holds.
    """
    if axis_name is not None:
        slots, embeddings = lax.all_gather((slots, embeddings), axis_name, tiled=True)
    num_rows = memory.embedding.shape[0]
    row = slots if axis_name is None else slots - lax.axis_index(axis_name) * num_rows
    # Out of range means "not mine": a negative index would wrap around, so it goes past the end, where it is dropped.
    row = jnp.where((slots >= 0) & (row >= 0), row, num_rows)
    old = memory.embedding.at[row].get(mode="fill", fill_value=0.0)
    new = unit(momentum * old + (1.0 - momentum) * unit(lax.stop_gradient(embeddings)))
    return dataclasses.replace(memory, embedding=memory.embedding.at[row].set(new, mode="drop"))


@flax.struct.dataclass
class Queue:
    """The K newest keys (MoCo, protocol "maskcon"), whole and in the same order on every device.

    Attributes:
      embedding: float32 [K, D], unit rows.
      label: int32 [K], the images' coarse labels.
    """

    embedding: Array
    label: Array


def fill_queue(embeddings: ArrayLike, labels: ArrayLike, size: int) -> Queue:
    """A queue of `size` keys from float [N, D] embeddings and int [N] labels, again from the first where N < `size`."""
    rows = jnp.arange(size) % len(labels)  # type: ignore[arg-type]
    return Queue(embedding=unit(embeddings)[rows], label=jnp.asarray(labels, jnp.int32)[rows])


def enqueue(queue: Queue, embeddings: Array, labels: Array, *, step: Array, axis_name: str | None = None) -> Queue:
    """The queue with the keys of a global batch in the place of its oldest ones (FIFO).

    Args:
      queue: K keys, K at least the global batch, not necessarily a multiple of it.
      embeddings: float [B, D], this device's keys.
      labels: int [B].
      step: int, how many batches came before: it tells where the oldest keys are.
      axis_name: the mapped device axis: every device enters the keys of all, in the order of the devices.
    """
    if axis_name is not None:
        embeddings, labels = lax.all_gather((embeddings, labels), axis_name, tiled=True)
    size, batch_size = len(queue.label), len(labels)
    if batch_size > size:
        raise ValueError(f"a batch of {batch_size} keys does not fit a queue of {size}: want K of at least the batch.")
    # step * batch_size overflows int32 in a run of millions of steps; the remainders do not.
    first = (step % size) * batch_size % size
    place = (first + jnp.arange(batch_size)) % size
    return Queue(
        embedding=queue.embedding.at[place].set(unit(lax.stop_gradient(embeddings))),
        label=queue.label.at[place].set(labels),
    )
