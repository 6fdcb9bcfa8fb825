"""A training step of ours, timed beside the peer's, where torch is there; on CPU as on an accelerator."""

import pathlib
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks import timing
from grafit_jax import config as config_lib
from grafit_jax import config_files, experiment, restore, train_step
from grafit_jax.data import sources
from grafit_jax.data.records import Records, two_levels

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SOURCE = flags.DEFINE_string("data_source", "", "images of steps: npz:DIR, tfds:NAME; empty: random ones like CIFAR's")


def records(num_images: int = 50_000, size: int = 32) -> dict[str, Records]:
    """Random images of 20 coarse and 100 fine classes, by default as many as CIFAR-100 has."""
    fine = np.arange(num_images, dtype=np.int32) % 100
    image = np.random.default_rng(0).integers(0, 256, (num_images, size, size, 3), np.uint8)
    train_split = Records(image, two_levels(fine, fine // 5, map(str, range(100)), map(str, range(20))))
    return {"train": train_split, "test": train_split.take(np.arange(num_images) < 200)}


def data() -> dict[str, Records]:
    """The images of --data_source, or random ones."""
    return sources.load(source=SOURCE.value) if SOURCE.value else records()


def from_file(name: str, arg: str = ""):
    """The config that configs/NAME.py makes of `arg`."""
    return config_files.load_file(ROOT / "configs" / f"{name}.py", arg)


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


class Ours:
    """A run at its first batches, over and over. Its data may be others than its config's."""

    def __init__(self, config, data: dict[str, Records] | None = None):
        self.run = experiment.load(config, data)
        feed = experiment.make_feed(self.run)
        self.steps = feed.steps_per_call  # a call
        self._compiled, self._inputs = train_step.pmap_steps(self.run, feed), next(iter(feed.epoch(0)))
        self.carry: Any = restore.initial(self.run)  # state and memory
        self.first_call = timing.seconds(self.call)  # with compilation

    def call(self) -> None:
        *self.carry, _ = jax.block_until_ready(self._compiled(*self.carry, self._inputs))

    def seconds(self, rounds: int, peer: Any = None) -> list[float]:
        """Of a step, and in turns with it of a step of the peer, if there is one."""
        calls = [self.call, *([lambda: peer.run(self.steps)] if peer else [])]
        return [seconds / self.steps for seconds in timing.best(calls, rounds)]


def peer(config, data: dict[str, Records], device: str, *, tuned: bool) -> Any:
    """The peer's trainer for the same step, warmed up; None where torch is not installed.

    To be made before JAX has threads, since the loader of the untuned one forks its workers.
    """
    try:
        from benchmarks import torch_peer
    except ImportError:
        return None
    train = data["train"]
    trainer = torch_peer.Trainer(config, train.image, train.train_label, tuned=tuned, device=device)
    trainer.run(3)
    return trainer


def compare(
    config, data: dict[str, Records], *, device: str, rounds: int, released_steps: int, goal: float
) -> tuple[dict[str, Any], Ours]:
    """Seconds a step of ours, of the peer well tuned (in turns), and of the peer as released (before them)."""
    facts: dict[str, Any] = {"goal": goal}
    if released := peer(config, data, device, tuned=False):
        released.run(released.loaded_ahead)  # what its loader had ready in advance
        facts["peer_as_released_seconds"] = timing.seconds(lambda: released.run(released_steps)) / released_steps
        timing.say("PyTorch, as released", facts["peer_as_released_seconds"])
        del released
    tuned = peer(config, data, device, tuned=True)
    if tuned:
        timing.say("PyTorch, well tuned", timing.seconds(lambda: tuned.run(8)) / 8)
    timing.reset_peak()
    mine = Ours(config, data)
    seconds, *theirs = mine.seconds(rounds, tuned)
    if theirs:
        facts["ratio_as_released"] = seconds / facts["peer_as_released_seconds"]
    facts |= {"images_per_second": config.train.batch_size / seconds, "peak_gigabytes": timing.gigabytes("VmHWM")}
    work = f"{config.method} step, {config.model.trunk}, batch {config.train.batch_size}, T = {config.views.num_views}"
    name = "PyTorch, well tuned" if theirs else "torch: not installed"
    line = timing.line(f"{work}, {config.model.dtype}", seconds, name, *theirs, first_call_s=mine.first_call, **facts)
    return line, mine
