"""Training step and retrieval on one GPU, against PyTorch. Needs no TensorFlow and no network (see --data_source)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import retrieval, steps, timing, train
from grafit_jax import experiment, restore

# Part of a device's name -> peak FLOP/s of dense bfloat16 products, from the vendors' data sheets.
_PEAKS = {
    "H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "V100": 125e12,
    "T4": 65e12, "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5": 459e12, "TPU v6 lite": 918e12,
}  # fmt: skip
# Goal for a whole run of the recipe on an H100-class GPU.
_RECIPE_SECONDS = 600


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak FLOP/s of a device, or None if it is unknown."""
    return next((peak for name, peak in _PEAKS.items() if name in device_kind), None)


def model_flops(run: experiment.Experiment) -> float:
    """Returns the FLOPs of a step's networks: online forward and backward (3 x forward), and target forward."""
    config, state = run.config, restore.initial_state(run, placeholder=True)
    size, channels = config.views.size, run.records["train"].image.shape[-1]
    # One image, so that the count does not depend on how a batch is split.
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    apply = functools.partial(run.network.apply, train=False)
    shapes = jax.eval_shape(lambda x: x, state.variables)  # no arrays
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # XLA counts no FLOPs for GPUs and TPUs
        cost: Any = jax.jit(apply).lower(shapes, image).cost_analysis()
    return 4 * cost["flops"] * config.train.batch_size * config.views.num_views


def step(
    dtype: str, *, trunk: str = "resnet18", batch_size: int = 512, device: str = "cuda", released_steps: int = 16,
    steps_per_call: int = 24,
) -> dict[str, Any]:  # fmt: skip
    """Measures a step inside a scan, and the peer's. A call has fewer steps than an epoch, to save time."""
    config = steps.config(trunk, batch_size, **{"model.dtype": dtype, "train.steps_per_call": steps_per_call})
    line, mine = steps.compare(
        config, steps.data(), device=device, rounds=1, released_steps=released_steps, goal=1 / 1.3
    )  # the peer as released: 1 / 3
    flops, peak = model_flops(mine.run) / line["seconds"], peak_flops(jax.devices()[0].device_kind)
    return line | {
        "steps_a_call": mine.steps,
        "model_teraflops_per_second": flops / 1e12,
        "model_flop_utilisation": peak and flops / peak,
        "device_peak_gigabytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**30,
    }


def recipe(dtype: str, *, arg: str = "dataset=cifar100,method=grafit_maskcon", **overrides: Any) -> dict[str, Any]:
    """Measures a step of configs/maskcon.py, and scales it to the minutes of a whole run without evaluations."""
    config = steps.from_file("maskcon", arg)
    config.update_from_flattened_dict({"model.dtype": dtype, "optimizer.warmup_epochs": 0.0, **overrides})
    mine = steps.Ours(config, steps.data())
    [seconds] = mine.seconds(3)
    total = mine.run.total_steps
    return timing.line(
        f"{config.method} step, {config.model.trunk}, batch {config.train.batch_size}, {dtype}",
        seconds,
        images_per_second=config.train.batch_size / seconds,
        first_call_s=mine.first_call,
        steps_a_call=mine.steps,
        steps_of_the_run=total,
        run_minutes=seconds * total / 60,
        goal_s=_RECIPE_SECONDS / total,
    )


def with_torch(gallery: np.ndarray, device: str = "cuda") -> retrieval.Search:
    """Returns a search by float32 products and top-k, 2,048 queries at a time; the gallery is on the device."""
    import torch

    rows = torch.from_numpy(gallery).to(device)

    def nearest(queries: np.ndarray, k: int) -> np.ndarray:
        found = [(part @ rows.T).topk(k).indices for part in torch.from_numpy(queries).to(device).split(2048)]
        return torch.cat(found).cpu().numpy()

    return nearest


def search(num_queries: int, num_rows: int, k: int, device: str = "cuda") -> dict[str, Any]:
    """Measures a search from and to host memory; the peer's gallery is on its device already."""
    peer = functools.partial(with_torch, device=device)
    return retrieval.search(num_queries, num_rows, k, peer_name="PyTorch, matmul and topk", peer=peer)


ENTRIES: dict[str, Callable[[], dict[str, Any]]] = {
    "step_bfloat16": lambda: step("bfloat16"),
    "step_float32": lambda: step("float32"),
    "maskcon_bfloat16": lambda: recipe("bfloat16"),
    "maskcon_float32": lambda: recipe("float32"),
    "knn_50k": lambda: train.knn(50_000, 512, device="cuda"),
    "knn_437k": lambda: train.knn(437_513, 512, device="cuda"),
    "knn_1281k": lambda: train.knn(1_281_167, 512, device="cuda"),
    "search_k10": lambda: search(10_000, 50_000, 10),
    "search_k100": lambda: search(10_000, 50_000, 100),
    "search_million": lambda: search(1_000, 1_000_000, 100),
    "evaluation": lambda: retrieval.evaluation(10_000, 50_000),
}
