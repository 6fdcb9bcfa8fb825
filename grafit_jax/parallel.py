"""The devices of all hosts: the axis name, and how values get onto them.

The axis goes over the devices of all processes, one process after the other. Arrays are a process's own: what lies on
its devices. So everything but the step and `gather` is as on one host.
"""

import hashlib
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grafit_jax.errors import UserError

# Rows of a block, and what a device makes of a block at a time (float32: 32 MB).
_BLOCK_ROWS = 1024
_BLOCK_SIZE = 2**23
# Gathered over the hosts at a time (64 MB): it passes through the devices.
_GATHER_BYTES = 2**26
# The name of the mapped axis, in losses, batch norms and memory alike.
AXIS = "batch"


def devices() -> list[jax.Device]:
    """The devices of this process."""
    return jax.local_devices()


def num_devices() -> int:
    """How many this process has."""
    return len(devices())


def num_all_devices() -> int:
    """How many the run is spread over: those of all processes, of which each has as many as this one."""
    return num_devices() * jax.process_count()


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def all_agree(yes: bool) -> bool:
    """Whether every process says yes. All have to call it."""
    return yes if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.array(yes))))


def check_same(what: str, text: str) -> None:
    """Raises UserError unless all processes give the same `text`, of what is called `what`. All have to call it."""
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    digests = multihost_utils.process_allgather(digest)
    others = np.flatnonzero(np.any(digests != digests[0], axis=1)).tolist()
    if others:
        raise UserError(
            f"process {', '.join(map(str, others))} of {jax.process_count()} found other {what} than process 0: want "
            "the same command, and the same data in the same order, on all hosts."
        )


def pmap(
    function: Callable[..., Any],
    *,
    in_axes: Any,
    out_axes: Any = 0,
    donate_argnums: tuple[int, ...] = (),
    everywhere: bool = False,
) -> Any:
    """`function` on all devices at the same time, over the axis AXIS; the arguments are those of `jax.pmap`.

    The only call of `jax.pmap`, which JAX keeps on top of jit and shard_map: nothing else knows how it is done.

    Args:
      function: of one device's part of the arguments.
      in_axes: 0 for arguments with a row for each device, None for what all devices have.
      out_axes: likewise, of the results. None is trusted, not checked: without a pmean it is device 0's.
      donate_argnums: arguments whose memory is used again.
      everywhere: on the devices of all processes, which all have to call it; else on those of this process.
    """
    own = None if everywhere and jax.process_count() > 1 else devices()
    return jax.pmap(
        function, axis_name=AXIS, in_axes=in_axes, out_axes=out_axes, donate_argnums=donate_argnums, devices=own
    )


def own(rows: Any) -> Any:
    """This process's rows of [n, ...], one for each of all devices."""
    first = jax.process_index() * num_devices()
    return rows[first : first + num_devices()]


def own_part(total: int, process: int | None = None) -> slice:
    """Which of `total` rows are this process's, or another's, where they are shared out evenly, in order."""
    index, count = jax.process_index() if process is None else process, jax.process_count()
    return slice(index * total // count, (index + 1) * total // count)


def gather(rows: np.ndarray, total: int) -> np.ndarray:
    """All [total, ...] rows, on every process, of which each gives its `own_part`. All processes have to call it."""
    count = jax.process_count()
    if count == 1:
        return rows
    most = -(-total // count)
    rows = np.pad(rows, [(0, most - len(rows))] + [(0, 0)] * (rows.ndim - 1))
    block = max(1, _GATHER_BYTES // max(1, count * rows[:1].nbytes))
    blocks = [multihost_utils.process_allgather(rows[i : i + block]) for i in range(0, most, block)]
    by_process = np.concatenate(blocks, axis=1)
    parts = [own_part(total, process) for process in range(count)]
    return np.concatenate([by_process[i, : part.stop - part.start] for i, part in enumerate(parts)])


def _sharding(spec: PartitionSpec, *, all_processes: bool = False) -> NamedSharding:
    # The sharding that pmap itself gives its results: nothing is moved, and nothing compiled anew, between two calls.
    over = devices()
    if all_processes and jax.process_count() > 1:  # in the order that pmap has them in
        over = [d for process in range(jax.process_count()) for d in jax.local_devices(process_index=process)]
    return NamedSharding(Mesh(np.array(over), (AXIS,)), spec)


def replicate(tree: Any) -> Any:
    """Every leaf whole on each device: what pmap takes with axis None."""
    return jax.device_put(tree, _sharding(PartitionSpec()))


def shard(tree: Any) -> Any:
    """Leaves [n, ...] with row d on device d: what pmap takes with axis 0."""
    return jax.device_put(tree, _sharding(PartitionSpec(AXIS)))


def everywhere(x: jax.Array, *, all_processes: bool = True) -> jax.Array:
    """An array that each device of each process holds whole, as one array of all processes, or of this one again."""
    sharding = _sharding(PartitionSpec(), all_processes=all_processes)
    return jax.make_array_from_single_device_arrays(x.shape, sharding, [shard.data for shard in x.addressable_shards])


def joined(x: jax.Array) -> jax.Array:
    """[n, R, ...] with a row on each device of this process, as one array [N*R, ...] of all processes and N devices."""
    sharding = _sharding(PartitionSpec(AXIS), all_processes=True)
    shape = (num_all_devices() * x.shape[1], *x.shape[2:])
    return jax.make_array_from_single_device_arrays(shape, sharding, [shard.data[0] for shard in x.addressable_shards])


def from_joined(x: jax.Array) -> jax.Array:
    """The inverse of `joined`."""
    parts = [shard.data[None] for shard in x.addressable_shards]
    shape = (num_devices(), *parts[0].shape[1:])
    return jax.make_array_from_single_device_arrays(shape, _sharding(PartitionSpec(AXIS)), parts)


def in_blocks(rows: np.ndarray, columns: int) -> Any:
    """Rows [N, ...] on the devices, [n, M, B, ...]: M blocks of B rows for each, and zeros behind the last row.

    B is such that a device may hold B x `columns` float32 at a time, and the same on any number of devices.
    """
    size = 2 ** int(math.log2(min(_BLOCK_ROWS, max(8, _BLOCK_SIZE // columns))))
    num_blocks = -(-len(rows) // (size * num_devices())) * num_devices()
    padding = [(0, num_blocks * size - len(rows))] + [(0, 0)] * (rows.ndim - 1)
    return shard(np.pad(rows, padding).reshape(num_devices(), -1, size, *rows.shape[1:]))
