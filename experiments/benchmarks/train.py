"""The training step and its parts on CPUs, against PyTorch: convolutions, views, k-NN loss, growth."""

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import steps, timing
from benchmarks.growth import growth
from grafit_jax import losses
from grafit_jax.models import build_trunk, layers
from grafit_jax.models.depthwise import depthwise_conv
from grafit_jax.similarity import unit
from grafit_jax.views import augment


def step(trunk: str, batch_size: int, *, rounds: int = 1, released_steps: int = 4) -> dict[str, Any]:
    """Measures a step of ours and of the peer."""
    config, data = steps.config(trunk, batch_size), steps.data()
    return steps.compare(config, data, device="cpu", rounds=rounds, released_steps=released_steps, goal=1.0)[0]


def convolutions(batch_size: int = 128) -> dict[str, Any]:
    """Measures ResNet-18 forward and backward with split convolutions, and with whole ones."""
    trunk = build_trunk("resnet18", stem="cifar")
    x = jax.random.normal(jax.random.key(0), (batch_size, 32, 32, 3))
    variables = trunk.init(jax.random.key(1), x[:2], train=False)

    def compiled(part: int):
        layers.PART = part

        @jax.jit
        def gradient(params):
            def loss(params):
                out, updated = trunk.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
                return jnp.mean(out**2), updated

            return jax.grad(loss, has_aux=True)(params)

        program = gradient.lower(variables["params"]).compile()
        return lambda: jax.block_until_ready(program(variables["params"]))

    usual = layers.PART
    calls = [compiled(part) for part in (usual, 2**60)]
    layers.PART = usual
    parts, whole = timing.best(calls, 3, turn=1)
    work = f"ResNet-18 forward and backward, batch {batch_size}"
    return timing.line(work, parts, "each convolution in one go", whole, images_per_second=batch_size / parts)


def depthwise(gradient: bool, batch_size: int = 32, side: int = 64, channels: int = 96) -> dict[str, Any]:
    """Measures a 3x3 depthwise convolution as shifted products, against XLA's grouped convolution and PyTorch's."""
    keys = jax.random.split(jax.random.key(0), 2)
    images = jax.random.normal(keys[0], (batch_size, side, side, channels))
    kernel = jax.random.normal(keys[1], (3, 3, 1, channels))

    def grouped(images, kernel, stride, pads):
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            images, kernel, (stride, stride), pads, dimension_numbers=layout, feature_group_count=channels
        )

    def compiled(convolve: Callable[..., jax.Array]):
        def forward(images, kernel):
            return convolve(images, kernel, 1, ((1, 1), (1, 1)))

        def both(images, kernel):
            out, pull = jax.vjp(forward, images, kernel)
            return pull(out)

        program = jax.jit(both if gradient else forward).lower(images, kernel).compile()
        return lambda: jax.block_until_ready(program(images, kernel))

    calls = [compiled(depthwise_conv), compiled(grouped)]
    peer = "XLA's grouped convolution"
    try:
        import torch
    except ImportError:
        ours, theirs = timing.best(calls, 3)
        facts = {}
    else:
        there = torch.from_numpy(np.moveaxis(np.array(images), 3, 1)).requires_grad_(gradient)
        taps = torch.from_numpy(np.moveaxis(np.array(kernel), (3, 2), (0, 1))).requires_grad_(gradient)

        def convolved():
            out = torch.nn.functional.conv2d(there, taps, padding=1, groups=channels)
            if gradient:
                torch.autograd.grad(out, (there, taps), out.detach())

        ours, theirs, torch_seconds = timing.best([*calls, convolved], 3)
        facts = {"torch_s": torch_seconds}
    what = "forward and backward" if gradient else "forward"
    work = f"3x3 depthwise convolution, {what}, {batch_size} x {side} x {side} x {channels}"
    return timing.line(work, ours, peer, theirs, **facts)


def knn(num_rows: int, batch_size: int, goal: float | None = None, device: str = "cpu") -> dict[str, Any]:
    """Measures the k-NN loss with its gradient, against the direct formula in PyTorch."""
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
    work, facts = f"k-NN loss and gradient, {num_rows} x {dim}, batch {batch_size}", dict[str, Any](goal_s=goal)
    if device == "cpu":  # on a GPU the arrays are not in the process's memory
        facts["gigabytes_over_memory"] = timing.gigabytes("VmHWM") - before
    try:
        import torch

        from benchmarks import torch_peer
    except ImportError:
        return timing.line(work, timing.best([call], 2)[0], "torch: not installed", **facts)
    there = [torch.from_numpy(np.array(x)).to(device) for x in (z, labels, memory, ids)]

    def theirs():
        z, labels, memory, ids = there
        z = z.clone().requires_grad_()
        loss = torch_peer.knn_loss(z, labels[ids].long(), memory, labels.long(), ids.long(), 0.05).mean()
        return loss.item(), torch.autograd.grad(loss, z)[0].cpu()

    (value, gradient), mine = theirs(), call()
    facts["relative_difference"] = abs(float(mine[0]) / float(value) - 1)
    largest = np.max(np.abs(np.asarray(mine[1]) - gradient.numpy()))
    facts["gradient_difference"] = float(largest) / float(gradient.abs().max())
    seconds, peer = timing.best([call, theirs], 2)
    return timing.line(work, seconds, "PyTorch, the whole [B, N]", peer, **facts)


_VIEWS: dict[str, dict[str, Any]] = {
    "weak": {},
    "strong": {"randaugment_ops": 2, "erase_prob": 0.25},
}


def views(kind: str, *, size: int = 32, side: int = 32, batch_size: int = 128) -> dict[str, Any]:
    """Measures two views of each image of a batch, against torchvision's transforms image by image."""
    mean, std = (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)
    options = augment.Views(size=size, mean=mean, std=std, crop_scale=(0.2, 1.0), **_VIEWS[kind])
    images = np.random.default_rng(0).integers(0, 256, (batch_size, side, side, 3), np.uint8)
    made = jax.jit(functools.partial(augment.random_views, views=options, num_views=2))
    there, ids, key = jnp.asarray(images), jnp.arange(batch_size), jax.random.PRNGKey(0)

    def call():
        return jax.block_until_ready(made(there, ids, key))

    call()
    try:
        from benchmarks import torch_peer

        torch_peer.torch.set_num_threads(1)  # as in a loader's worker
        transforms = torch_peer.per_image_transforms(kind, size)
    except ImportError:
        transforms = []
    sample = images[: max(8, batch_size // 4)]
    seconds, *peers = timing.best([call, *(lambda t=t: [t(x) for x in sample] for t in transforms)], 3)
    # The peer's time assumes a loader process on each core, without overhead.
    workers, count = len(os.sched_getaffinity(0)), 2 * batch_size
    peer_seconds = min(peers) * count / len(sample) / workers if peers else None
    peer = f"torchvision, {workers} ideal workers" if peers else "not installed"
    work = f"views, {kind}, {side} to {size} px"
    return timing.line(work, seconds, peer, peer_seconds, views_per_second=count / seconds, goal=1.0)


def scan() -> dict[str, Any]:
    """Measures steps in a scan against single calls."""
    data = steps.data()
    single, looped = (steps.Ours(steps.config("resnet8", 128, **{"train.steps_per_call": n}), data) for n in (1, 5))
    one, five = timing.best([single.call, looped.call], 1)
    return timing.line("a step inside of a scan of 5, small net", five / looped.steps, "a call a step", one)


def step_seconds(**overrides: Any) -> float:
    """Returns seconds of a step of the small network."""
    batch_size = overrides.pop("train.batch_size", 128)
    data = steps.records(overrides.pop("images", 50_000), overrides.get("views.size", 32))
    return timing.best([steps.Ours(steps.config("resnet8", batch_size, **overrides), data).call], 2)[0]


def spread_seconds(count: int) -> float:
    """Returns `step_seconds` on `count` simulated devices, in a process of its own."""
    code = (
        f"import jax; assert jax.device_count() == {count}; from benchmarks import train; print(train.step_seconds())"
    )
    return float(steps.process(code, JAX_NUM_CPU_DEVICES=str(count)))


ENTRIES: dict[str, Callable[[], dict[str, Any]]] = {
    "step_resnet18_128": lambda: step("resnet18", 128),
    "step_small": lambda: step("resnet8", 128, rounds=2, released_steps=10),
    "convolution": convolutions,
    "depthwise": lambda: depthwise(gradient=False),
    "depthwise_gradient": lambda: depthwise(gradient=True),
    "knn_50k": lambda: knn(50_000, 128, goal=0.065),
    "knn_1281k": lambda: knn(1_281_167, 64, goal=1.3),
    "views_weak": lambda: views("weak"),
    "views_strong": lambda: views("strong"),
    "views_224": lambda: views("weak", size=224, side=256, batch_size=32),
    "scan": scan,
    "growth_memory": lambda: growth(
        "memory rows N", [25_000, 50_000, 100_000, 200_000], lambda n: step_seconds(images=n)
    ),
    "growth_views": lambda: growth("views T", [2, 4, 6, 8], lambda n: step_seconds(**{"views.num_views": n})),
    "growth_batch": lambda: growth(
        "batch size B", [64, 128, 256, 512], lambda n: step_seconds(**{"train.batch_size": n})
    ),
    "growth_size": lambda: growth(
        "pixels of an image",
        [side**2 for side in (16, 32, 48, 64)],
        lambda n: step_seconds(**{"views.size": math.isqrt(n)}),
    ),
    "growth_devices": lambda: growth("simulated devices, one global batch", [1, 2, 4, 8], spread_seconds),
}
