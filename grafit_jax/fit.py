"""Whether a training step fits the memory of a device, estimated before the step is compiled."""

import functools
import math
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from grafit_jax import memory, methods, parallel, restore
from grafit_jax.errors import UserError
from grafit_jax.experiment import Experiment
from grafit_jax.state import merged

# XLA keeps at least the results of these for the backward pass, and computes elementwise functions of them again. The
# last one is `models.depthwise`.
_KEPT = ("conv_general_dilated", "dot_general", "custom_vjp_call")
# The memory that a compiled step needs for activations, in units of what it keeps at least; the smallest measured.
# CPU, float32 (XLA's own analysis of a step): ResNet-18 3.4 to 4.3, ResNet-50 3.0,
# EfficientNet-Lite0 3.5, ViT-S/16 2.7.
# TPU, bfloat16, 512 views of 224 px (docs/pods.md): ResNet-50 1.6, RegNetY-8GF 2.1; with remat 1.6 and 2.4.
_ON_CPU, _ON_ACCELERATOR = 2.7, 1.6
# A step is refused above the limit times this, and a batch is proposed below the limit divided by it.
_MARGIN = 1.2


class Need(NamedTuple):
    """Bytes that a training step takes on a device: `fixed`, and `each` for every image that it sees at a time."""

    fixed: int
    each: int

    def __call__(self, images: int) -> int:
        return self.fixed + self.each * images


def check(run: Experiment) -> None:
    """Checks that a training step fits the memory of a device. Compiles nothing.

    Raises:
      UserError: the step needs clearly more memory than there is. The message names a batch that fits.
    """
    limit, train = _limit(), run.config.train
    if limit is None:
        return
    need, most = estimate(run), limit / _MARGIN
    devices, parts = parallel.num_all_devices(), train.microbatches
    images = train.batch_size // devices
    if need(images // parts) <= limit * _MARGIN:
        return
    found = f"train.batch_size = {train.batch_size}{f' with train.microbatches = {parts}' if parts > 1 else ''}"
    found = f"found {found}, which takes about {_gib(need(images // parts))} a device; expected at most {_gib(limit)}"
    fitting = [count for count in range(parts, images + 1) if images % count == 0 and need(images // count) <= most]
    if not fitting:
        raise UserError(
            f"{found}; no batch size fits; use a smaller model.trunk or views.size, or fewer views.num_views."
        )
    batch_size = images // fitting[0] * parts * devices
    raise UserError(f"{found}; use train.batch_size = {batch_size}, or train.microbatches = {fitting[0]}.")


def estimate(run: Experiment) -> Need:
    """Returns the memory of a training step, rather too little than too much.

    It counts the state, the gradient, the memory's rows and the resident images; for each image, its views and what
    their forward pass keeps for the backward pass, which a trace of the network tells.
    """
    config, train = run.config, run.training
    state = jax.eval_shape(lambda: restore.initial_state(run, placeholder=True))
    fixed = _bytes(state) + _bytes(run.network.trained(state.params))
    if run.method.uses_memory:
        rows = memory.rows_per_device(len(train), parallel.num_all_devices())
        fixed += rows * (config.model.embed_dim + 1) * 4
    if not config.data.stream:
        fixed += train.image.nbytes
    views = run.method.views_per_image(config.views.num_views)
    differentiated = config.views.num_views if run.method.instance == "predict" else 1
    view = jax.ShapeDtypeStruct((run.views.size, run.views.size, train.image.shape[-1]), jnp.float32)
    factor = _ON_CPU if jax.default_backend() == "cpu" else _ON_ACCELERATOR
    return Need(fixed, views * _bytes(view) + int(differentiated * factor * _kept(run, state, view)))


def _kept(run: Experiment, state: Any, view: jax.ShapeDtypeStruct) -> float:
    """Returns the bytes that the forward pass of a view [S, S, C] keeps for the backward pass."""
    config = run.config.model
    # One device's network without collectives. Few views, since convolutions on CPU run part by part; more than one,
    # since an activation of one view may have the shape of a weight, such as that of a transformer's positions.
    number = 2
    views = jax.ShapeDtypeStruct((number, *view.shape), view.dtype)
    network = methods.build_network(run.method, config, num_classes=len(run.training.train_names), axis_name=None)

    def residuals(params, batch_stats, views, policy):
        def forward(trained):
            variables = {"params": merged(trained, params), "batch_stats": batch_stats}
            return network.apply(variables, views, train=True, mutable=["batch_stats"])[0]

        _, backward = jax.vjp(jax.checkpoint(forward, policy=policy) if policy else forward, network.trained(params))
        of_weights = {x.shape for x in jax.tree.leaves(params)}  # those in another dtype, too
        return [x for x in {id(x): x for x in jax.tree.leaves(backward)}.values() if x.shape not in of_weights]

    # The policy overrides that of remat, whose blocks keep their inputs only.
    policies = [lambda operation, *_, **__: operation.name in _KEPT, *([None] if config.remat else [])]
    given = state.params, state.batch_stats, views
    found = [_bytes(jax.eval_shape(functools.partial(residuals, policy=policy), *given)) for policy in policies]
    return min(found) / number


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _gib(size: float) -> str:
    return f"{size / 2**30:.{0 if size >= 10 * 2**30 else 1}f} GiB"


def _limit() -> int | None:
    """Returns the bytes of a device; for CPUs, its share of the machine's memory. None if unknown."""
    limit = (parallel.devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit is None and jax.default_backend() == "cpu":
        try:
            limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // parallel.num_devices()
        except (AttributeError, ValueError, OSError):  # not on Windows
            return None
    return limit
