"""The memory of one embedding per training image (docs/paper.md, Eq. 2), and the queue of the newest keys."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from grafit_jax.similarity import unit


@flax.struct.dataclass
class Memory:
    """The memory of the k-NN loss: one slot per training image, sharded over the devices.

    Outside the pmapped step both arrays have a leading device axis, [n, R, D] and [n, R].

    Attributes:
      embedding: float32 [R, D], unit rows. Row i of device d is the slot of training image d*R + i.
      label: int32 [R], the images' coarse labels; -1 marks the padding after the last image.
    """

    embedding: Array
    label: Array


def rows_per_device(num_examples: int, num_devices: int) -> int:
    """Returns the number of memory rows on each device; the last rows of the last device may be padding."""
    return -(-num_examples // num_devices)


def random(key: Array, num_examples: int, dim: int) -> Array:
    """Returns float32 [num_examples, dim], unit rows drawn uniformly from the sphere."""
    return unit(jax.random.normal(key, (num_examples, dim), jnp.float32))


def create(embeddings: ArrayLike, labels: ArrayLike, num_devices: int) -> Memory:
    """Returns a memory for all devices ([n, R, D]), given float [N, D] embeddings and int [N] labels."""
    label = jnp.asarray(labels, jnp.int32)
    rows = rows_per_device(len(label), num_devices)
    padding = rows * num_devices - len(label)
    embedding = jnp.pad(unit(embeddings), ((0, padding), (0, 0)))
    label = jnp.pad(label, (0, padding), constant_values=-1)
    return Memory(embedding=embedding.reshape(num_devices, rows, -1), label=label.reshape(num_devices, rows))


def update(
    memory: Memory, slots: Array, embeddings: Array, *, momentum: float | Array = 0.5, axis_name: str | None = None
) -> Memory:
    """Updates the slots of a batch: m_i <- unit(momentum * m_i + (1 - momentum) * unit(z_i)).

    Args:
      memory: the rows of this device.
      slots: int [B], distinct rows counted over all devices; negative ones are ignored.
      embeddings: float [B, D].
      momentum: share of the old row; 0.5 in the paper.
      axis_name: the mapped device axis, over which updates are gathered; each device writes its own rows.

    Returns:
      The rows of this device after the update.
    """
    if axis_name is not None:
        slots, embeddings = lax.all_gather((slots, embeddings), axis_name, tiled=True)
    num_rows = memory.embedding.shape[0]
    row = slots if axis_name is None else slots - lax.axis_index(axis_name) * num_rows
    # Rows of other devices get an index past the end, which scatter drops; a negative index would wrap around.
    row = jnp.where((slots >= 0) & (row >= 0), row, num_rows)
    old = memory.embedding.at[row].get(mode="fill", fill_value=0.0)
    new = unit(momentum * old + (1.0 - momentum) * unit(lax.stop_gradient(embeddings)))
    return dataclasses.replace(memory, embedding=memory.embedding.at[row].set(new, mode="drop"))


@flax.struct.dataclass
class Queue:
    """The K newest keys (MoCo, protocol "maskcon"), replicated on every device.

    Attributes:
      embedding: float32 [K, D], unit rows.
      label: int32 [K], the images' coarse labels.
    """

    embedding: Array
    label: Array


def fill_queue(embeddings: ArrayLike, labels: ArrayLike, size: int) -> Queue:
    """Returns a queue of `size` keys, given float [N, D] embeddings and int [N] labels, repeated if N < `size`."""
    rows = jnp.arange(size) % len(labels)  # type: ignore[arg-type]
    return Queue(embedding=unit(embeddings)[rows], label=jnp.asarray(labels, jnp.int32)[rows])


def enqueue(queue: Queue, embeddings: Array, labels: Array, *, step: Array, axis_name: str | None = None) -> Queue:
    """Replaces the oldest keys of the queue by the keys of a global batch (FIFO).

    Args:
      queue: K keys; K is at least the global batch size, and need not be a multiple of it.
      embeddings: float [B, D], the keys of this device.
      labels: int [B].
      step: int, the number of batches before this one, which determines the position of the oldest keys.
      axis_name: the mapped device axis, over which keys are gathered in device order.

    Returns:
      The queue with the new keys.

    Raises:
      ValueError: the global batch is larger than the queue.
    """
    if axis_name is not None:
        embeddings, labels = lax.all_gather((embeddings, labels), axis_name, tiled=True)
    size, batch_size = len(queue.label), len(labels)
    if batch_size > size:
        raise ValueError(
            f"found a batch of {batch_size} keys for a queue of {size}; expected K of at least the batch size."
        )
    # step * batch_size overflows int32 in a run of millions of steps; the remainders do not.
    first = (step % size) * batch_size % size
    place = (first + jnp.arange(batch_size)) % size
    return Queue(
        embedding=queue.embedding.at[place].set(unit(lax.stop_gradient(embeddings))),
        label=queue.label.at[place].set(labels),
    )
