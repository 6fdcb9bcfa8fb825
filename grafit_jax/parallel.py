"""The devices: the axis name, and how values get onto them."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

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
