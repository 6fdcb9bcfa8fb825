"""Devices, `pmap`, and the placement of arrays, on one or several hosts.

The mapped axis spans the devices of all processes, ordered by process. Arrays are local to a process, so only the
training step, `gather` and the functions that say so communicate between hosts.
"""

import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grafit_jax.errors import UserError, install, warn

# Maximum rows of a block, and maximum float32 values that a device computes from a block (32 MB).
_BLOCK_ROWS = 1024
_BLOCK_SIZE = 2**23
# Bytes gathered over the hosts at a time (64 MB), since they pass through device memory.
_GATHER_BYTES = 2**26
# JAX's default for the compilation time of a program from which on it is cached.
_MIN_COMPILE_SECONDS = 1.0
# The PCI vendor of TPUs.
_GOOGLE = "0x1ae0"
# The name of the mapped axis in losses, batch norms and memory.
AXIS = "batch"


def use_compilation_cache() -> None:
    """Caches compiled programs in ~/.cache/grafit_jax, unless JAX's settings name another folder or another time."""
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path.home() / ".cache" / "grafit_jax"))
    if jax.config.values["jax_persistent_cache_min_compile_time_secs"] == _MIN_COMPILE_SECONDS:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def devices() -> list[jax.Device]:
    """Returns the devices of this process."""
    return jax.local_devices()


def num_devices() -> int:
    """Returns the number of devices of this process."""
    return len(devices())


def num_all_devices() -> int:
    """Returns the number of devices of all processes; each process has equally many."""
    return num_devices() * jax.process_count()


def is_first() -> bool:
    """Returns whether this is process 0, which writes files."""
    return jax.process_index() == 0


def warn_of_unseen(root: pathlib.Path = pathlib.Path("/")) -> None:
    """Warns of a GPU or TPU in the machine if JAX computes on the CPU, unless the environment asks for that.

    Args:
      root: the root of the file system.
    """
    if jax.default_backend() != "cpu" or (jax.config.values["jax_platforms"] or "").startswith("cpu") or not is_first():
        return
    found = {}
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if not hidden and (any(root.glob("dev/nvidia[0-9]*")) or any(root.glob("proc/driver/nvidia/gpus/*"))):
        found["cuda"] = "an NVIDIA GPU"
    # Neither the names of the devices nor the vendor alone identify a TPU.
    vendors = [file.read_text().strip() for file in root.glob("sys/bus/pci/devices/*/vendor")]
    if _GOOGLE in vendors and (any(root.glob("dev/accel[0-9]*")) or any(root.glob("dev/vfio/[0-9]*"))):
        found["tpu"] = "a TPU"
    for extra, name in found.items():
        warn(
            f"found {name} that JAX does not see, so it computes on the CPU; use `{install(extra)}`, or set "
            "JAX_PLATFORMS=cpu if you want the CPU."
        )


def all_agree(yes: bool) -> bool:
    """Returns whether `yes` is true on every process. All processes must call it."""
    return yes if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.array(yes))))


def check_same(what: str, text: str) -> None:
    """Checks that all processes have the same `text`. All processes must call it.

    Args:
      what: name of the text in the message.
      text: the text, of which only a digest is exchanged.

    Raises:
      UserError: a process has another text than process 0.
    """
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    digests = multihost_utils.process_allgather(digest)
    others = np.flatnonzero(np.any(digests != digests[0], axis=1)).tolist()
    if others:
        raise UserError(
            f"process {', '.join(map(str, others))} of {jax.process_count()} found other {what} than process 0; use "
            "the same command, and the same data in the same order, on all hosts."
        )


def of_first(compute: Callable[[], str]) -> str:
    """Returns the text that `compute` returns on process 0, the only one to call it. All processes must call this.

    Raises:
      UserError: `compute` raises it; then on every process.
    """
    if jax.process_count() == 1:
        return compute()
    text = error = ""
    if is_first():
        try:
            text = compute()
        except UserError as mistake:
            error = str(mistake)
    content = np.frombuffer(json.dumps([text, error]).encode(), np.uint8)
    size = int(multihost_utils.process_allgather(np.array(len(content)))[0])
    text, error = json.loads(bytes(multihost_utils.process_allgather(np.resize(content, size))[0]))
    if error:
        raise UserError(error)
    return text


def pmap(
    function: Callable[..., Any],
    *,
    in_axes: Any,
    out_axes: Any = 0,
    donate_argnums: tuple[int, ...] = (),
    everywhere: bool = False,
) -> Any:
    """Maps a function over the devices with `jax.pmap`, over the axis AXIS. No other code calls `jax.pmap`.

    Args:
      function: maps one device's part of the arguments to its part of the results.
      in_axes: 0 for arguments with a row per device, None for arguments that all devices share.
      out_axes: the same for results. None is not checked: without a pmean or psum the result is device 0's.
      donate_argnums: arguments whose memory may be reused.
      everywhere: True maps over the devices of all processes, which all must call it; False over this process's.

    Returns:
      The mapped function.
    """
    own = None if everywhere and jax.process_count() > 1 else devices()
    return jax.pmap(
        function, axis_name=AXIS, in_axes=in_axes, out_axes=out_axes, donate_argnums=donate_argnums, devices=own
    )


def own(rows: Any) -> Any:
    """Returns this process's rows of an array [n, ...] with one row for each device of all processes."""
    first = jax.process_index() * num_devices()
    return rows[first : first + num_devices()]


def own_part(total: int, process: int | None = None) -> slice:
    """Returns the slice of `total` rows, split evenly and in order, that belongs to this process or to `process`."""
    index, count = jax.process_index() if process is None else process, jax.process_count()
    return slice(index * total // count, (index + 1) * total // count)


def gather(rows: np.ndarray, total: int) -> np.ndarray:
    """Returns all rows [total, ...] on every process, given each process's `own_part`. All processes must call it."""
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
    # The sharding of pmap's results, so that calls neither move arrays nor compile again.
    over = devices()
    if all_processes and jax.process_count() > 1:  # pmap's order
        over = [d for process in range(jax.process_count()) for d in jax.local_devices(process_index=process)]
    return NamedSharding(Mesh(np.array(over), (AXIS,)), spec)


def replicate(tree: Any) -> Any:
    """Copies every leaf to each device, for pmap's axis None."""
    return jax.device_put(tree, _sharding(PartitionSpec()))


def shard(tree: Any) -> Any:
    """Puts row d of each leaf [n, ...] on device d, for pmap's axis 0."""
    return jax.device_put(tree, _sharding(PartitionSpec(AXIS)))


def everywhere(x: jax.Array, *, all_processes: bool = True) -> jax.Array:
    """Returns an array that is replicated on each device as one global array, or as a local one again."""
    sharding = _sharding(PartitionSpec(), all_processes=all_processes)
    return jax.make_array_from_single_device_arrays(x.shape, sharding, [shard.data for shard in x.addressable_shards])


def joined(x: jax.Array) -> jax.Array:
    """Returns [n, R, ...], with a row per device of this process, as one global array [N*R, ...] over all N devices."""
    sharding = _sharding(PartitionSpec(AXIS), all_processes=True)
    shape = (num_all_devices() * x.shape[1], *x.shape[2:])
    return jax.make_array_from_single_device_arrays(shape, sharding, [shard.data[0] for shard in x.addressable_shards])


def from_joined(x: jax.Array) -> jax.Array:
    """The inverse of `joined`."""
    parts = [shard.data[None] for shard in x.addressable_shards]
    shape = (num_devices(), *parts[0].shape[1:])
    return jax.make_array_from_single_device_arrays(shape, _sharding(PartitionSpec(AXIS)), parts)


def in_blocks(rows: np.ndarray, columns: int) -> Any:
    """Puts rows [N, ...] on the devices as [n, M, B, ...], M blocks of B rows for each, padded with zeros.

    B is chosen such that a device can hold B x `columns` float32 values, independently of the number of devices.
    """
    size = 2 ** int(math.log2(min(_BLOCK_ROWS, max(8, _BLOCK_SIZE // columns))))
    num_blocks = -(-len(rows) // (size * num_devices())) * num_devices()
    padding = [(0, num_blocks * size - len(rows))] + [(0, 0)] * (rows.ndim - 1)
    return shard(np.pad(rows, padding).reshape(num_devices(), -1, size, *rows.shape[1:]))
