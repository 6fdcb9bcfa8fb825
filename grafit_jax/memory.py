"""The memory of Grafit: one slot per training image, with its rows spread over the devices (PAPER.md, Eq. 2)."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from grafit_jax.cosine import unit


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
    memory: Memory, slots: Array, embeddings: Array, *, momentum: float = 0.5, axis_name: str | None = None
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
        slots, embeddings = (lax.all_gather(x, axis_name, tiled=True) for x in (slots, embeddings))
    num_rows = memory.embedding.shape[0]
    row = slots if axis_name is None else slots - lax.axis_index(axis_name) * num_rows
    # Out of range means "not mine": a negative index would wrap around, so it goes past the end, where it is dropped.
    row = jnp.where((slots >= 0) & (row >= 0), row, num_rows)
    old = memory.embedding.at[row].get(mode="fill", fill_value=0.0)
    new = unit(momentum * old + (1.0 - momentum) * unit(lax.stop_gradient(embeddings)))
    return dataclasses.replace(memory, embedding=memory.embedding.at[row].set(new, mode="drop"))
