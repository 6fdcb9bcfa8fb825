"""What the devices of a slice send each other in a step, by arithmetic: nothing is run.

tests/test_collectives.py compares the arithmetic with the collectives of compiled steps.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from benchmarks import steps
from grafit_jax import experiment, restore
from grafit_jax.methods import Method
from grafit_jax.state import TrainState, target_part

_FLOAT = 4  # bytes of a float32 and of an int32: nothing else travels
# A step of configs/imagenet.py, by the arithmetic in its docstring.
_FLOP = 134e12
# The part of a device's peak that networks are taken to reach. [ours]
_UTILISATION = 1 / 3


class Traffic(NamedTuple):
    """Bytes of the arrays that collectives work on: each counts whole, as if it lay on one device."""

    all_reduce: int = 0  # what is added up, or whose maximum is taken
    all_gather: int = 0  # what comes out
    reduce_scatter: int = 0  # what goes in

    def sent(self, num_devices: int) -> float:
        """Bytes that each device of a ring sends: an all-reduce goes round twice, the others once."""
        return (2 * self.all_reduce + self.all_gather + self.reduce_scatter) * (num_devices - 1) / num_devices


def of_step(config, method: Method, state: TrainState) -> dict[str, Traffic]:
    """What a step sends, part by part. The metrics' few numbers are left out.

    Args:
      config: the run's. B = train.batch_size, over all devices, and D = model.embed_dim.
      method: the config's.
      state: the run's; shapes do.
    """
    batch, dim = config.train.batch_size, config.model.embed_dim
    statistics = _bytes(state.batch_stats)
    of_target = _bytes(target_part(state.batch_stats)) if method.uses_target else 0
    # A mean and a mean square of every channel in the forward pass of either network, and their gradients in the
    # backward pass of one; then the running averages, whether they differ between devices or not.
    synchronised = 2 * statistics + of_target if config.model.sync_batch_norm else 0
    parts = {
        "gradients": Traffic(all_reduce=_bytes(state.params)),
        "batch_norm": Traffic(all_reduce=synchronised + statistics),
    }
    if method.uses_memory:
        # Queries with label and own slot to all rows; a maximum and a sum for each of two log-sum-exps; gradients back.
        parts["knn"] = Traffic(
            all_reduce=_FLOAT * batch * 4, all_gather=_FLOAT * batch * (dim + 2), reduce_scatter=_FLOAT * batch * dim
        )
        # The slots' numbers are the own slots of the loss, gathered already.
        parts["memory"] = Traffic(all_gather=_FLOAT * batch * dim)
    if method.uses_queue:
        parts["queue"] = Traffic(all_gather=_FLOAT * batch * (dim + 1))
    return parts


def batch_norms(method: Method, state: TrainState) -> int:
    """How many small all-reduces a step has at most, where batch statistics are over all devices.

    Every batch norm has one forward and one backward, and those of the target's pass have one. Nearly all of a pass
    wait for the one before.
    """
    layers = len(jax.tree.leaves(state.batch_stats)) // 2
    of_target = len(jax.tree.leaves(target_part(state.batch_stats))) // 2 if method.uses_target else 0
    return 2 * layers + of_target


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def slice_of(name: str, num_devices: int, *, link: float, peak: float) -> dict[str, Any]:
    """A step of configs/imagenet.py over the devices of a TPU slice.

    Args:
      name: of the slice.
      num_devices: cores of a v3, else chips.
      link: bytes/s that one link between two chips carries in one direction.
      peak: bfloat16 FLOP/s of a device.
    """
    config = steps.from_file("imagenet", "method=grafit")
    config.data.stream = config.train.host_crops = False  # where images come from makes no difference here
    run = experiment.load(config, steps.records(config.train.batch_size))
    state = jax.eval_shape(lambda: restore.initial_state(run, placeholder=True))
    sent = {part: traffic.sent(num_devices) for part, traffic in of_step(config, run.method, state).items()}
    return {
        "work": f"{name}, {num_devices} devices of {config.train.batch_size // num_devices} images",
        "gradient_megabytes": sent["gradients"] / 1e6,
        "batch_norm_megabytes": sent["batch_norm"] / 1e6,
        "memory_megabytes": (sent["knn"] + sent["memory"]) / 1e6,
        "link_ms": 1e3 * sum(sent.values()) / link,
        "batch_norm_reductions": batch_norms(run.method, state),
        "compute_ms": 1e3 * _FLOP / (num_devices * peak * _UTILISATION),
    }


# Links: "How to Scale Your Model", https://jax-ml.github.io/scaling-book/tpus. Peaks: Google's data sheets.
ENTRIES: dict[str, Callable[[], dict[str, Any]]] = {
    "v3_8": functools.partial(slice_of, "v3-8", 8, link=100e9, peak=123e12 / 2),
    "v4_32": functools.partial(slice_of, "v4-32", 16, link=45e9, peak=275e12),
    "v5e_256": functools.partial(slice_of, "v5e-256", 256, link=45e9, peak=197e12),
}
