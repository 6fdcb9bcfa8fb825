"""The training step and its parts on CPU, against PyTorch: convolutions, views, k-NN loss, start-up, growth."""

import functools
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import steps, timing
from grafit_jax import losses, parallel
from grafit_jax.models import layers
from grafit_jax.similarity import unit
from grafit_jax.views import augment

_ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def step(trunk: str, batch_size: int, *, rounds: int = 2, released_steps: int = 4) -> dict[str, Any]:
    """One step of ours and of the peer's."""
    result, _ = steps.compare(
        steps.config(trunk, batch_size),
        steps.data(),
        device="cpu",
        rounds=rounds,
        released_steps=released_steps,
        goal=1.0,
    )
    return result


def convolutions(batch_size: int = 128) -> dict[str, Any]:
    """ResNet-18 forward and backward with convolutions part by part, and with each in one go."""
    from grafit_jax.models import build_trunk

    trunk = build_trunk("resnet18", stem="cifar")
    x = jax.random.normal(jax.random.key(0), (batch_size, 32, 32, 3))
    variables = trunk.init(jax.random.key(1), x[:2], train=False)

    def compiled(part: int):
        layers.PART = part

        @jax.jit
        def gradient(params, x):
            def loss(params):
                out, updated = trunk.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
                return jnp.mean(out**2), updated

            return jax.grad(loss, has_aux=True)(params)

        return gradient.lower(variables["params"], x).compile()

    usual = layers.PART
    programs = [compiled(part) for part in (usual, 2**60)]
    layers.PART = usual
    calls = [functools.partial(_ready, program, variables["params"], x) for program in programs]
    parts, whole = timing.best(calls, 3, turn=1)
    return {"work": f"ResNet-18 forward and backward, batch {batch_size}", "seconds": parts,
            "images_per_second": batch_size / parts, "peer": "each convolution in one go", "peer_seconds": whole,
            "ratio": parts / whole}  # fmt: skip


def _ready(program: Callable[..., Any], *arguments: Any) -> Any:
    return jax.block_until_ready(program(*arguments))


def knn(num_rows: int, batch_size: int, goal: float | None = None, device: str = "cpu") -> dict[str, Any]:
    """The k-NN loss with its gradient, against the direct formula in PyTorch."""
    dim = 128
    keys = jax.random.split(jax.random.key(0), 3)
    memory = jax.jit(lambda key: unit(jax.random.normal(key, (num_rows, dim))))(keys[0])
    labels = jax.random.randint(keys[1], (num_rows,), 0, max(20, num_rows // 100))
    z, ids = jax.random.normal(keys[2], (batch_size, dim)), jnp.arange(batch_size)

    @jax.jit
    def ours(z, labels, memory):
        def loss(z):
            return jnp.mean(losses.knn_loss(z, labels[ids], memory, labels, temperature=0.05, own_slot=ids))

        return jax.value_and_grad(loss)(z)

    def call():
        return jax.block_until_ready(ours(z, labels, memory))

    call()
    timing.reset_peak()
    before = timing.gigabytes("VmRSS")
    call()
    result: dict[str, Any] = {
        "work": f"k-NN loss and gradient, {num_rows} x {dim}, batch {batch_size}", "goal_s": goal,
    }  # fmt: skip
    if device == "cpu":  # what a process holds is the host's
        result["gigabytes_over_memory"] = timing.gigabytes("VmHWM") - before
    try:
        import torch

        from benchmarks import torch_peer
    except ImportError:
        return result | {"seconds": timing.best([call], 2)[0], "peer": "torch: not installed"}
    there = [torch.from_numpy(np.array(x)).to(device) for x in (z, labels, memory, ids)]

    def theirs():
        z, labels, memory, ids = there
        z = z.clone().requires_grad_()
        loss = torch_peer.knn_loss(z, labels[ids].long(), memory, labels.long(), ids.long(), 0.05).mean()
        return loss.item(), torch.autograd.grad(loss, z)[0].cpu()

    value, gradient = theirs()
    mine = call()
    seconds, peer = timing.best([call, theirs], 2)
    scale = float(gradient.abs().max())
    return result | {
        "seconds": seconds, "peer": "PyTorch, the whole [B, N]", "peer_seconds": peer, "ratio": seconds / peer,
        "relative_difference": abs(float(mine[0]) / float(value) - 1),
        "gradient_difference": float(np.max(np.abs(np.asarray(mine[1]) - gradient.numpy()))) / scale,
    }  # fmt: skip


_WEAK: dict[str, Any] = {"crop_scale": (0.2, 1.0)}
_VIEWS = {
    "weak": _WEAK,
    "colour": _WEAK | {"jitter": (0.4, 0.4, 0.4, 0.1), "grayscale_prob": 0.2},
    "strong": _WEAK | {"randaugment_ops": 2, "erase_prob": 0.25},
}


def views(kind: str, *, size: int = 32, side: int = 32, batch_size: int = 128) -> dict[str, Any]:
    """Two views of each image of a batch, in images a second, against torchvision's transforms image by image."""
    mean, std = (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)
    options = augment.Views(size=size, mean=mean, std=std, **_VIEWS[kind])
    images = np.random.default_rng(0).integers(0, 256, (batch_size, side, side, 3), np.uint8)
    made = jax.jit(functools.partial(augment.random_views, views=options, num_views=2))
    there, ids, key = jnp.asarray(images), jnp.arange(batch_size), jax.random.PRNGKey(0)

    def call():
        return jax.block_until_ready(made(there, ids, key))

    call()
    result: dict[str, Any] = {"work": f"views, {kind}, {side} to {size} px", "goal": 1.0}
    try:
        from benchmarks import torch_peer

        transforms = torch_peer.per_image_transforms(kind, size)
    except ImportError:
        seconds = timing.best([call], 3)[0]
        return result | {"seconds": seconds, "views_per_second": 2 * batch_size / seconds, "peer": "not installed"}
    sample = images[: max(8, batch_size // 4)]
    seconds, *peers = timing.best([call, *(lambda t=t: [t(x) for x in sample] for t in transforms)], 3)
    peer = min(peers) * 2 * batch_size / len(sample) / parallel_workers()
    return result | {
        "seconds": seconds, "views_per_second": 2 * batch_size / seconds,
        "peer": f"torchvision, {parallel_workers()} ideal workers",
        "peer_seconds": peer, "ratio": seconds / peer,
    }  # fmt: skip


def parallel_workers() -> int:
    """How many loader processes the peer is granted, each on a core of its own and at no cost."""
    return len(os.sched_getaffinity(0))


def _seconds_of_process(code: str, **environment: str) -> tuple[float, str]:
    """Of a Python process from start to end, and what it printed."""
    command = [sys.executable, "-c", code]
    began = time.perf_counter()
    done = subprocess.run(
        command, cwd=_ROOT, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return time.perf_counter() - began, done.stdout


def imported(module: str, goal: float) -> dict[str, Any]:
    """An import, within a process that has nothing else to do."""
    code = f"import sys, time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    code += "; assert 'tensorflow' not in sys.modules"
    seconds = min(float(_seconds_of_process(code)[1]) for _ in range(3))
    return {"work": f"import {module}, without TensorFlow", "seconds": seconds, "goal_s": goal}


def first_step(*, warm: bool, goal: float) -> dict[str, Any]:
    """From the start of a process to the end of the quickstart's first Grafit step."""
    path = _ROOT / "experiments" / "benchmarks" / "first_step.py"
    code = f"import runpy; runpy.run_path({str(path)!r}, run_name='__main__')"
    with tempfile.TemporaryDirectory() as cache:
        times = [_seconds_of_process(code, JAX_COMPILATION_CACHE_DIR=cache)[0] for _ in range(3 if warm else 1)]
    work = f"process start to first quickstart step, {'warm' if warm else 'cold'} compilation cache"
    return {"work": work, "seconds": min(times), "goal_s": goal}


def scan() -> dict[str, Any]:
    """Steps in a scan against single calls."""
    data = steps.data()
    single, looped = (steps.ours(steps.config("resnet8", 128, **{"train.steps_per_call": n}), data) for n in (1, 5))
    one, five = timing.best([single.call, looped.call], 1)
    return {"work": "a step inside of a scan of 5, small net", "seconds": five / looped.steps,
            "peer": "a call a step", "peer_seconds": one, "ratio": five / looped.steps / one}  # fmt: skip


def spread_seconds(count: int) -> float:
    """A step of the small net on so many simulated devices; in a process that has not used JAX yet."""
    jax.config.update("jax_num_cpu_devices", count)
    assert parallel.num_devices() == count
    return _step_seconds()


def _spread_elsewhere(count: int) -> float:
    code = f"from benchmarks import train; print(train.spread_seconds({count}))"
    return float(_seconds_of_process(code, PYTHONPATH=str(_ROOT / "experiments"))[1])


def growth(name: str, values: list[int], measure: Callable[[int], float]) -> dict[str, Any]:
    """Seconds over a size, with the straight line through them."""
    seconds = [measure(value) for value in values]
    slope, intercept = np.polyfit(values, seconds, 1)
    exponent = np.polyfit(np.log(values), np.log(seconds), 1)[0]
    return {
        "work": f"seconds over {name}", "sizes": values, "curve_s": seconds, "seconds_per_unit": float(slope),
        "seconds_at_zero": float(intercept), "exponent": float(exponent),
    }  # fmt: skip


def _step_seconds(**overrides: Any) -> float:
    batch_size = overrides.pop("train.batch_size", 128)
    data = steps.records(overrides.pop("images", 50_000), overrides.get("views.size", 32))
    return timing.best([steps.ours(steps.config("resnet8", batch_size, **overrides), data).call], 2)[0]


ENTRIES: dict[str, Callable[[], dict[str, Any]]] = {
    "step_resnet18_64": lambda: step("resnet18", 64, rounds=1),
    "step_resnet18_128": lambda: step("resnet18", 128, rounds=1),
    "step_small": lambda: step("resnet8", 128, released_steps=10),
    "convolution": convolutions,
    "knn_50k": lambda: knn(50_000, 128, goal=0.065),
    "knn_437k": lambda: knn(437_513, 128, goal=0.8),
    "knn_1281k": lambda: knn(1_281_167, 64, goal=1.3),
    "views_weak": lambda: views("weak"),
    "views_colour": lambda: views("colour"),
    "views_strong": lambda: views("strong"),
    "views_224": lambda: views("weak", size=224, side=256, batch_size=32),
    "import": lambda: imported("grafit_jax", goal=1.5),
    "import_train": lambda: imported("grafit_jax.train", goal=1.5),
    "first_step_cold": lambda: first_step(warm=False, goal=15.0),
    "first_step_warm": lambda: first_step(warm=True, goal=6.0),
    "scan": scan,
    "growth_memory": lambda: growth(
        "memory rows N", [25_000, 50_000, 100_000, 200_000], lambda n: _step_seconds(images=n)
    ),
    "growth_views": lambda: growth("views T", [2, 4, 6, 8], lambda n: _step_seconds(**{"views.num_views": n})),
    "growth_batch": lambda: growth(
        "batch size B", [64, 128, 256, 512], lambda n: _step_seconds(**{"train.batch_size": n})
    ),
    "growth_size": lambda: growth(
        "pixels of an image",
        [side**2 for side in (16, 32, 48, 64)],
        lambda n: _step_seconds(**{"views.size": math.isqrt(n)}),
    ),
    "growth_devices": lambda: growth("simulated devices, one global batch", [1, 2, 4, 8], _spread_elsewhere),
    "profile_resnet18": lambda: steps.outside_convolutions(steps.config("resnet18", 64)),
}
