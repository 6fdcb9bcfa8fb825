"""The training step and its parts on CPU, against PyTorch: convolutions, views, k-NN loss, start-up, growth."""

import functools
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import steps, timing
from grafit_jax import losses, parallel
from grafit_jax.cosine import unit
from grafit_jax.data import augment
from grafit_jax.models import convolution

_ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def step(trunk: str, batch_size: int, *, rounds: int = 2, goal: float | None = 1.0, **overrides) -> dict[str, Any]:
    """One step of ours, of the peer as released, and of the peer well tuned."""
    config, data = steps.config(trunk, batch_size, **overrides), steps.records(steps.IMAGES)
    timing.reset_peak()
    ours = steps.ours(config, data)
    views = config.views.num_views
    result: dict[str, Any] = {
        "work": f"{config.method} step, {trunk}, batch {batch_size}, T = {views}",
        "first_call_s": ours.first_call,
    }
    trainers = [steps.peer(config, data, tuned=tuned) for tuned in (False, True)]
    if not all(trainers):
        seconds = timing.best([ours.call], rounds)[0] / ours.steps
        return result | {"seconds": seconds, "images_per_second": batch_size / seconds, "peer": "torch: not installed"}
    for trainer in trainers:  # compiles, and starts the workers
        trainer.step()
        trainer.step()
    seconds, released, tuned = timing.best([ours.call, *(trainer.step for trainer in trainers)], rounds)
    seconds /= ours.steps
    return result | {
        "seconds": seconds, "images_per_second": batch_size / seconds,
        "peer": "PyTorch, channels last, compiled, views by batch", "peer_seconds": tuned, "ratio": seconds / tuned,
        "goal": goal, "peer_as_released_seconds": released, "ratio_as_released": seconds / released,
        "peak_gigabytes": timing.gigabytes("VmHWM"),
    }  # fmt: skip


def convolutions(batch_size: int = 128) -> dict[str, Any]:
    """ResNet-18 forward and backward with convolutions part by part, and with each in one go."""
    from grafit_jax.models import build_trunk

    trunk = build_trunk("resnet18", stem="cifar")
    x = jax.random.normal(jax.random.key(0), (batch_size, 32, 32, 3))
    variables = trunk.init(jax.random.key(1), x[:2], train=False)

    def compiled(part: int):
        convolution._PART = part

        @jax.jit
        def gradient(params, x):
            def loss(params):
                out, updated = trunk.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
                return jnp.mean(out**2), updated

            return jax.grad(loss, has_aux=True)(params)

        return gradient.lower(variables["params"], x).compile()

    usual = convolution._PART
    calls = [compiled(part) for part in (usual, 2**60)]
    convolution._PART = usual
    parts, whole = timing.best([lambda c=c: jax.block_until_ready(c(variables["params"], x)) for c in calls], 3, turn=1)
    return {"work": f"ResNet-18 forward and backward, batch {batch_size}", "seconds": parts,
            "images_per_second": batch_size / parts, "peer": "each convolution in one go", "peer_seconds": whole,
            "ratio": parts / whole}  # fmt: skip


def knn(num_rows: int, batch_size: int, goal: float) -> dict[str, Any]:
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
        "work": f"k-NN loss and gradient, {num_rows} x {dim}, batch {batch_size}",
        "gigabytes_over_memory": timing.gigabytes("VmHWM") - before, "goal_s": goal,
    }  # fmt: skip
    try:
        import torch

        from benchmarks import torch_peer
    except ImportError:
        return result | {"seconds": timing.best([call], 2)[0], "peer": "torch: not installed"}
    there = [torch.from_numpy(np.array(x)) for x in (z, labels, memory, ids)]

    def theirs():
        z, labels, memory, ids = there
        z = z.clone().requires_grad_()
        loss = torch_peer.knn_loss(z, labels[ids].long(), memory, labels.long(), ids.long(), 0.05).mean()
        return loss, torch.autograd.grad(loss, z)[0]

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
    "colour": _WEAK | {"jitter": (0.4, 0.4, 0.4, 0.1), "grey": 0.2},
    "strong": _WEAK | {"randaugment_ops": 2, "erase": 0.25},
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
        "peer": f"torchvision (the faster of PIL and tensors), {parallel_workers()} ideal workers",
        "peer_seconds": peer, "ratio": seconds / peer,
    }  # fmt: skip


def parallel_workers() -> int:
    """How many loader processes the peer is granted, each on a core of its own and at no cost."""
    return len(os.sched_getaffinity(0))


def start_up() -> dict[str, Any]:
    """From the start of a process: the import, and the first step of the quickstart with a cold and a warm cache."""
    imported = (
        "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t, 'tensorflow' in sys.modules)"
    )

    def run(code: str, **environment: str) -> list[str]:
        command = [sys.executable, "-c", f"import sys; {code}"]
        return subprocess.run(
            command, cwd=_ROOT, env=os.environ | environment, capture_output=True, text=True, check=True
        ).stdout.split()

    result: dict[str, Any] = {"work": "start-up"}
    for module in ("grafit_jax", "grafit_jax.train"):
        seconds, tensorflow = min(run(imported.format(module)) for _ in range(3))
        result |= {f"import_{module.replace('.', '_')}_s": float(seconds)}
        assert tensorflow == "False", f"{module} imports TensorFlow"
    first = _ROOT / "experiments" / "benchmarks" / "first_step.py"
    code = f"import runpy; runpy.run_path({str(first)!r}, run_name='__main__')"
    with tempfile.TemporaryDirectory() as cache:
        for name in ("cold", "warm", "warm_again"):
            result[f"first_step_{name}_s"] = timing.seconds(lambda: run(code, JAX_COMPILATION_CACHE_DIR=cache))
    return result | {"goal_s": 15.0, "goal_warm_s": 6.0, "goal_import_s": 1.5}


def scan() -> dict[str, Any]:
    """Steps in a scan against single calls."""
    single, looped = (steps.ours(steps.config("resnet8", 128, **{"train.steps_per_call": n})) for n in (1, 5))
    one, five = timing.best([single.call, looped.call], 1)
    return {"work": "a step inside of a scan of 5, small net", "seconds": five / looped.steps,
            "peer": "a call a step", "peer_seconds": one, "ratio": five / looped.steps / one}  # fmt: skip


def devices(count: int) -> dict[str, Any]:
    """The same global batch over simulated devices, which share the same cores: what being spread costs."""
    jax.config.update("jax_num_cpu_devices", count)
    ours = steps.ours(steps.config("resnet8", 128))
    seconds = timing.best([ours.call], 2)[0]
    return {"work": f"step of the small net over {parallel.num_devices()} simulated devices", "seconds": seconds}


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
    data = steps.records(overrides.pop("images", steps.IMAGES), overrides.get("views.size", 32))
    return timing.best([steps.ours(steps.config("resnet8", batch_size, **overrides), data).call], 2)[0]


ENTRIES: dict[str, Callable[[], dict[str, Any]]] = {
    "step_resnet18_64": lambda: step("resnet18", 64, rounds=1),
    "step_resnet18_128": lambda: step("resnet18", 128, rounds=1),
    "step_small": lambda: step("resnet8", 128),
    "convolution": convolutions,
    "knn_50k": lambda: knn(50_000, 128, goal=0.065),
    "knn_437k": lambda: knn(437_513, 128, goal=0.8),
    "knn_1281k": lambda: knn(1_281_167, 64, goal=1.3),
    "views_weak": lambda: views("weak"),
    "views_colour": lambda: views("colour"),
    "views_strong": lambda: views("strong"),
    "views_224": lambda: views("weak", size=224, side=256, batch_size=32),
    "start_up": start_up,
    "scan": scan,
    "devices_1": lambda: devices(1),
    "devices_2": lambda: devices(2),
    "devices_4": lambda: devices(4),
    "devices_8": lambda: devices(8),
    "growth_memory": lambda: growth(
        "memory rows N", [25_000, 50_000, 100_000, 200_000], lambda n: _step_seconds(images=n)
    ),
    "growth_views": lambda: growth("views T", [2, 4, 6, 8], lambda n: _step_seconds(**{"views.num_views": n})),
    "growth_batch": lambda: growth(
        "batch size B", [64, 128, 256, 512], lambda n: _step_seconds(**{"train.batch_size": n})
    ),
    "growth_size": lambda: growth("image side, pixels", [16, 32, 48, 64], lambda n: _step_seconds(**{"views.size": n})),
}
