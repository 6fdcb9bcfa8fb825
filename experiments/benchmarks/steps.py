"""A training step, timed next to the peer's if torch is installed, on CPUs and accelerators."""

import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import numpy as np

from benchmarks import timing
from grafit_jax import config as config_lib
from grafit_jax import config_files, experiment, restore, train_step
from grafit_jax.data import sources
from grafit_jax.data.records import Records, two_levels

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
source = ""  # of images; empty for random ones


def records(num_images: int = 50_000, size: int = 32) -> dict[str, Records]:
    """Returns random images of 20 coarse and 100 fine classes, by default as many as CIFAR-100 has."""
    fine = np.arange(num_images, dtype=np.int32) % 100
    image = np.random.default_rng(0).integers(0, 256, (num_images, size, size, 3), np.uint8)
    train_split = Records(image, two_levels(fine, fine // 5, map(str, range(100)), map(str, range(20))))
    return {"train": train_split, "test": train_split.take(np.arange(num_images) < 200)}


def data() -> dict[str, Records]:
    """Returns the images of `source`, or random ones."""
    return sources.load(source=source) if source else records()


def from_file(name: str, arg: str = ""):
    """Returns the config of configs/NAME.py with the arguments `arg`."""
    return config_files.load_file(ROOT / "configs" / f"{name}.py", arg)


def config(trunk: str, batch_size: int, **overrides: Any):
    """Returns a config of Grafit on CIFAR's shapes, with crops and flips, which the peer has too."""
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


def process(code: str, *arguments: object, **environment: str) -> str:
    """Runs `code` in a Python process that can import these modules, and returns its output."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "experiments"), os.environ.get("PYTHONPATH", "")])
    environ = os.environ | {"PYTHONPATH": paths} | environment
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True).stdout


class Ours:
    """A run that repeats its first batches. `data` replaces the data of its config."""

    def __init__(self, config, data: dict[str, Records] | None = None):
        self.run = experiment.load(config, data)
        feed = experiment.make_feed(self.run)
        self.steps = feed.steps_per_call
        self._compiled, self._inputs = train_step.pmap_steps(self.run, feed), next(iter(feed.epoch(0)))
        self.carry: Any = restore.initial(self.run)  # state and memory
        self.first_call = timing.seconds(self.call)  # with compilation

    def call(self) -> None:
        *self.carry, _ = jax.block_until_ready(self._compiled(*self.carry, self._inputs))

    def seconds(self, rounds: int, peer: Any = None) -> list[float]:
        """Returns seconds of a step and, measured in turns with it, of a step of the peer, if any."""
        calls = [self.call, *([lambda: peer.run(self.steps)] if peer else [])]
        return [seconds / self.steps for seconds in timing.best(calls, rounds)]


def peer(config, data: dict[str, Records], device: str, *, tuned: bool) -> Any:
    """Returns the peer's trainer for the same step, warmed up, or None if torch is not installed.

    Call it before JAX starts threads: the loader of the untuned trainer forks its workers.
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
    """Measures a step of ours in turns with the well-tuned peer, and before them the peer as released."""
    facts: dict[str, Any] = {"goal": goal}
    if released := peer(config, data, device, tuned=False):
        released.run(released.loaded_ahead)  # drain the batches loaded in advance
        facts["peer_as_released_seconds"] = timing.seconds(lambda: released.run(released_steps)) / released_steps
        timing.say("PyTorch, as released", facts["peer_as_released_seconds"])
        del released
    tuned = peer(config, data, device, tuned=True)
    if tuned:
        timing.say("PyTorch, well tuned", timing.seconds(lambda: tuned.run(2)) / 2)
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
