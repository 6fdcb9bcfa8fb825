"""A training step of ours, timed beside the peer's, where torch is there; on CPU as on an accelerator."""

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks import timing
from grafit_jax import config as config_lib
from grafit_jax import experiment, restore, train_step
from grafit_jax.commands import profiling
from grafit_jax.data import sources
from grafit_jax.data.records import Records, two_levels

SOURCE = flags.DEFINE_string("data_source", "", "images of steps: npz:DIR, tfds:NAME; empty: random ones like CIFAR's")
# What a slot of the memory is for, unless an entry says otherwise: CIFAR-100's images.
_IMAGES = 50_000


def records(num_images: int = _IMAGES, size: int = 32) -> dict[str, Records]:
    """Random images of 20 coarse and 100 fine classes."""
    fine = np.arange(num_images, dtype=np.int32) % 100
    image = np.random.default_rng(0).integers(0, 256, (num_images, size, size, 3), np.uint8)
    train_split = Records(image, two_levels(fine, fine // 5, map(str, range(100)), map(str, range(20))))
    return {"train": train_split, "test": train_split.take(np.arange(num_images) < 200)}


def data() -> dict[str, Records]:
    """The images of --data_source, or random ones."""
    return sources.load(source=SOURCE.value) if SOURCE.value else records()


def config(trunk: str, batch_size: int, **overrides: Any):
    """Grafit on CIFAR's shapes; the views are crop and flip, which the peer has as well."""
    c = config_lib.default()
    small = trunk == "resnet8"
    values = {
        "model.trunk": trunk,
        "model.stem": "patch2" if small else "cifar",
        "model.head_hidden_dim": 256 if small else 1024,
        "model.embed_dim": 128,
        "views.num_views": 2,
        "memory.init": "random",
        "train.batch_size": batch_size,
        "optimizer.warmup_epochs": 0.0,
    }
    c.update_from_flattened_dict(values | overrides)
    return c


@dataclasses.dataclass
class Ours:
    """A run that makes `steps` steps a call; `first_call` are the seconds of the first one."""

    run: experiment.Experiment
    steps: int
    first_call: float
    call: Callable[[], Any]


def ours(config, data: dict[str, Records]) -> Ours:
    run = experiment.load(config, data)
    feed = experiment.make_feed(run)
    compiled = train_step.pmap_steps(run, feed)
    inputs = next(iter(feed.epoch(0)))
    carry = list(restore.initial(run))

    def call():
        carry[0], carry[1], metrics = compiled(carry[0], carry[1], inputs)
        jax.block_until_ready((carry, metrics))

    return Ours(run, feed.steps_per_call, timing.seconds(call), call)


def peer(config, data: dict[str, Records], device: str, *, tuned: bool) -> Any:
    """The peer's trainer for the same step, warmed up; None where torch is not installed.

    To be made before JAX has threads, since the loader of the untuned one forks its workers.
    """
    try:
        import torch

        from benchmarks import torch_peer
    except ImportError:
        return None
    trainer = torch_peer.Trainer(
        config.model.trunk,
        data["train"].image,
        data["train"].train_label,
        hidden=config.model.head_hidden_dim,
        dim=config.model.embed_dim,
        num_views=config.views.num_views,
        batch_size=config.train.batch_size,
        tuned=tuned,
        device=device,
        dtype=getattr(torch, config.model.dtype if tuned else "float32"),
    )
    trainer.run(3)
    return trainer


def _released_seconds(config, data: dict[str, Records], device: str, steps: int) -> float | None:
    """A step of the peer as released, once what its loader had ready in advance is used up."""
    trainer = peer(config, data, device, tuned=False)
    if trainer is None:
        return None
    trainer.run(trainer.loaded_ahead)
    return timing.seconds(lambda: trainer.run(steps)) / steps


def compare(
    config, data: dict[str, Records], *, device: str, rounds: int, released_steps: int, goal: float
) -> tuple[dict[str, Any], Ours]:
    """Seconds a step of ours, of the peer well tuned (in turns), and of the peer as released (before them)."""
    batch_size = config.train.batch_size
    work = f"{config.method} step, {config.model.trunk}, batch {batch_size}, T = {config.views.num_views}"
    released = _released_seconds(config, data, device, released_steps)
    tuned = peer(config, data, device, tuned=True)
    timing.reset_peak()
    mine = ours(config, data)
    result = {"work": f"{work}, {config.model.dtype}", "goal": goal, "first_call_s": mine.first_call}
    if tuned is None or released is None:
        seconds = timing.best([mine.call], rounds)[0] / mine.steps
        result["peer"] = "torch: not installed"
    else:
        seconds, theirs = (s / mine.steps for s in timing.best([mine.call, lambda: tuned.run(mine.steps)], rounds))
        result |= {
            "peer": "PyTorch, well tuned", "peer_seconds": theirs,
            "ratio": seconds / theirs, "peer_as_released_seconds": released, "ratio_as_released": seconds / released,
        }  # fmt: skip
    result |= {
        "seconds": seconds, "images_per_second": batch_size / seconds, "peak_gigabytes": timing.gigabytes("VmHWM"),
    }  # fmt: skip
    return result, mine


def outside_convolutions(config) -> dict[str, Any]:
    """The share of a step's operations that is not convolutions, from a trace."""
    with tempfile.TemporaryDirectory() as directory:
        operations, _ = profiling.profile_step(config, pathlib.Path(directory), data())
    kinds = {o.kind: profiling.share(operations, o.kind) for o in operations}
    return {
        "work": f"share outside of convolutions, {config.model.trunk}, batch {config.train.batch_size}",
        "share": 1 - kinds.get("convolution", 0.0),
        "shares": kinds,
    }
