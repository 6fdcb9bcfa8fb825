"""Memory of a training step at the paper's scale, as planned by the TPU compiler. It needs no TPU and runs nothing.

It needs libtpu: pip install 'libtpu==0.0.42.*' for jax 0.10, in general the version that jax[tpu] requires.
"""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from benchmarks import steps
from grafit_jax import experiment, memory, restore, train_step
from grafit_jax.errors import UserError
from grafit_jax.models import layers

# Training images of ImageNet-1k, one memory slot each.
_IMAGES = 1_281_167
# The target of the compiler: the TPU with the most memory, so that the plan is not squeezed to fit.
_TOPOLOGY = "v5p:2x2x1"
# GiB per device, a core for v2 and v3 and a chip for the others, from Google's data sheets.
_HBM = {"v2": 8, "v3": 16, "v5e": 16, "v4": 32, "v6e": 32, "v5p": 95}
# Keep libtpu from querying the machine's metadata.
_NO_TPU = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5p-8", "TPU_WORKER_HOSTNAMES": "localhost"}
# GiB reserved for the program, collectives and images in transfer [ours].
_RESERVE = 1.0


def fits(gibibytes: float) -> str:
    """Returns the TPUs whose devices have that much memory and the reserve."""
    return ", ".join(name for name, size in _HBM.items() if gibibytes + _RESERVE <= size) or "none"


def step(trunk: str, num_devices: int, *, remat: bool = False) -> dict[str, Any]:
    """Measures one device's part of a step of configs/imagenet.py: its images, its memory rows and the whole state."""
    config = steps.from_file("imagenet")
    whole = config.train.batch_size
    config.update_from_flattened_dict({"model.trunk": trunk, "model.remat": remat})
    work = f"{trunk}, {config.views.size} px, T = {config.views.num_views}, {config.model.dtype}"
    work += f"{', remat' if remat else ''}, batch {whole} over {num_devices} devices"
    config.data.stream, config.train.host_crops, config.train.batch_size = False, False, whole // num_devices
    config.model.sync_batch_norm = False  # one device's program without collectives
    plan = _compile(config, memory.rows_per_device(_IMAGES, num_devices))
    # Donated outputs (aliases) reuse their arguments' memory.
    total = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    total += plan.temp_size_in_bytes
    return {
        "work": work,
        "device_gigabytes": total / 2**30,
        "fits": fits(total / 2**30),
    }


def _compile(config, rows: int) -> Any:
    """Returns the compiler's memory analysis of a step with `rows` memory rows."""
    batch_size = config.train.batch_size
    run = experiment.load(config, steps.records(max(1000, batch_size), config.data.image_size))
    state = jax.eval_shape(lambda: restore.initial_state(run, placeholder=True))
    shape: Any = jax.ShapeDtypeStruct
    image = shape((batch_size, *run.records["train"].image.shape[1:]), jnp.uint8)
    slots = memory.Memory(shape((rows, config.model.embed_dim), jnp.float32), shape((rows,), jnp.int32))
    batch = {"image": image, **{key: shape((batch_size,), jnp.int32) for key in ("label", "id")}}
    here = jax.sharding.SingleDeviceSharding(_tpu())
    function = train_step.make_train_step(run, axis_name=None)
    jitted = jax.jit(function, donate_argnums=(0, 1), in_shardings=here, out_shardings=here)
    layers.PART = sys.maxsize  # convolutions are split only on CPUs
    return jitted.lower(state, slots, batch, state.rng).compile().memory_analysis()


def _tpu() -> Any:
    """Returns a TPU device to compile for, without a TPU."""
    for name, value in _NO_TPU.items():
        os.environ.setdefault(name, value)
    try:
        return topologies.get_topology_desc(_TOPOLOGY, platform="tpu").devices[0]
    except Exception as error:  # a missing plugin raises many types
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"found no TPU compiler ({reason}); install the libtpu that jax[tpu] {jax.__version__} requires."
        ) from error


ENTRIES: dict[str, Callable[[], dict[str, Any]]] = {
    f"{trunk}_{num_devices}{'_remat' if remat else ''}": functools.partial(step, trunk, num_devices, remat=remat)
    for trunk in ("resnet50", "regnet_y_8gf")
    for num_devices in (8, 32, 128)
    for remat in (False, True)
}
