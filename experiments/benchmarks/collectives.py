"""Bytes that the devices of a slice send each other in a step, computed without running it.

tests/test_collectives.py compares them with the collectives of compiled steps.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from benchmarks import steps
from grafit_jax import experiment, restore
from grafit_jax.methods import Method
from grafit_jax.state import TrainState, target_part

_FLOAT = 4  # bytes of a float32 or int32; no other dtype is sent
# FLOP of a step of configs/imagenet.py, from its docstring.
_FLOP = 134e12
# Assumed fraction of a device's peak that networks reach [ours].
_UTILISATION = 1 / 3


class Traffic(NamedTuple):
    """Bytes of the arrays in collectives; each array counts whole, as if it were on one device."""

    all_reduce: int = 0  # bytes summed, or reduced by their maximum
    all_gather: int = 0  # bytes of the output
    reduce_scatter: int = 0  # bytes of the input

    def sent(self, num_devices: int) -> float:
        """Returns the bytes that each device of a ring sends: an all-reduce passes the ring twice, the others once."""
        return (2 * self.all_reduce + self.all_gather + self.reduce_scatter) * (num_devices - 1) / num_devices


def of_step(config, method: Method, state: TrainState) -> dict[str, Traffic]:
    """Returns the traffic of each part of a step, without the few numbers of the metrics.

    Args:
      config: config of the run; train.batch_size counts the images of all devices.
      method: method of the config.
      state: state of the run, or its shapes.
    """
    batch, dim = config.train.batch_size, config.model.embed_dim
    statistics = _bytes(state.batch_stats)
    of_target = _bytes(target_part(state.batch_stats)) if method.uses_target else 0
    # Synchronised: mean and mean square of every channel in the forward pass of both networks, and their gradients in
    # the backward pass of the online network. Always: the running averages.
    synchronised = 2 * statistics + of_target if config.model.sync_batch_norm else 0
    parts = {
        "gradients": Traffic(all_reduce=_bytes(state.params)),
        "batch_norm": Traffic(all_reduce=synchronised + statistics),
    }
    if method.uses_memory:
        # Gathered: queries, labels and own slots. Reduced: maximum and sum of two log-sum-exps. Scattered: gradients.
        parts["knn"] = Traffic(
            all_reduce=_FLOAT * batch * 4, all_gather=_FLOAT * batch * (dim + 2), reduce_scatter=_FLOAT * batch * dim
        )
        # The slot indices were gathered for the loss.
        parts["memory"] = Traffic(all_gather=_FLOAT * batch * dim)
    if method.uses_queue:
        parts["queue"] = Traffic(all_gather=_FLOAT * batch * (dim + 1))
    return parts


def batch_norms(method: Method, state: TrainState) -> int:
    """Returns the maximum number of small all-reduces of a step with synchronised batch norms.

    Every batch norm has one forward and one backward; those of the target network have one. Nearly every all-reduce of
    a pass waits for the one before it.
    """
    layers = len(jax.tree.leaves(state.batch_stats)) // 2
    of_target = len(jax.tree.leaves(target_part(state.batch_stats))) // 2 if method.uses_target else 0
    return 2 * layers + of_target


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def slice_of(name: str, num_devices: int, *, link: float, peak: float) -> dict[str, Any]:
    """Returns the entry of a step of configs/imagenet.py on a TPU slice.

    Args:
      name: name of the slice.
      num_devices: number of cores for v3, of chips for others.
      link: bytes/s of one link between two chips in one direction.
      peak: bfloat16 FLOP/s of a device.
    """
    config = steps.from_file("imagenet", "method=grafit")
    config.data.stream = config.train.host_crops = False  # the data source does not affect the traffic
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
