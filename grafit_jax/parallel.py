"""The devices: the axis name, and how values get onto them."""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Rows of a block, and what a device makes of a block at a time (float32: 32 MB).
_BLOCK_ROWS = 1024
_BLOCK_SIZE = 2**23
# The name of the mapped axis, in losses, batch norms and memory alike.
AXIS = "batch"


def devices() -> list[jax.Device]:
    """The devices that a run is spread over: all of this process."""
    return jax.local_devices()


def num_devices() -> int:
    return len(devices())


def _place(tree: Any, spec: PartitionSpec) -> Any:
    # The sharding that pmap itself gives its results: nothing is moved, and nothing compiled anew, between two calls.
    sharding = NamedSharding(Mesh(np.array(devices()), (AXIS,)), spec)
    return jax.device_put(tree, sharding)


def replicate(tree: Any) -> Any:
    """Every leaf whole on each device: what pmap takes with axis None."""
    return _place(tree, PartitionSpec())


def shard(tree: Any) -> Any:
    """Leaves [n, ...] with row d on device d: what pmap takes with axis 0."""
    return _place(tree, PartitionSpec(AXIS))


def in_blocks(rows: np.ndarray, columns: int) -> Any:
    """Rows [N, ...] on the devices, [n, M, B, ...]: M blocks of B rows for each, and zeros behind the last row.

    B is such that a device may hold B x `columns` float32 at a time, and the same on any number of devices.
    """
    size = 2 ** int(math.log2(min(_BLOCK_ROWS, max(8, _BLOCK_SIZE // columns))))
    num_blocks = -(-len(rows) // (size * num_devices())) * num_devices()
    padding = [(0, num_blocks * size - len(rows))] + [(0, 0)] * (rows.ndim - 1)
    return shard(np.pad(rows, padding).reshape(num_devices(), -1, size, *rows.shape[1:]))
