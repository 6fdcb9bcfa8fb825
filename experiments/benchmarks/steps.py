"""A training step of ours with random images, timed; and the peer's, where torch is there."""

import dataclasses
from typing import Any

import jax
import numpy as np

from benchmarks import timing
from grafit_jax import config as config_lib
from grafit_jax import experiment, parallel, train
from grafit_jax.data.sources import Records

# Images that the memory has a slot for, unless an entry says otherwise: CIFAR-100's.
IMAGES = 50_000


def records(num_images: int, size: int = 32) -> dict[str, Records]:
    """Random images of 20 coarse and 100 fine classes."""
    fine = np.arange(num_images, dtype=np.int32) % 100
    image = np.random.default_rng(0).integers(0, 256, (num_images, size, size, 3), np.uint8)
    train = Records(image, fine, fine // 5, tuple(map(str, range(100))), tuple(map(str, range(20))))
    return {
        "train": train,
        "test": dataclasses.replace(train, image=image[:100], label=fine[:100], coarse_label=fine[:100] // 5),
    }


def config(trunk: str, batch_size: int, **overrides: Any):
    """Grafit on CIFAR's shapes; the views are crop and flip, which the peer has as well."""
    c = config_lib.default()
    small = trunk == "resnet8"
    values = {
        "model.trunk": trunk,
        "model.stem": "patch2" if small else "cifar",
        "model.hidden": 256 if small else 1024,
        "model.dim": 128,
        "views.num_views": 2,
        "memory.init": "random",
        "train.batch_size": batch_size,
        "optimizer.warmup_epochs": 0.0,
    }
    c.update_from_flattened_dict(values | overrides)
    return c


@dataclasses.dataclass
class Ours:
    """A run that makes `steps` steps a call."""

    steps: int
    images: int
    first_call: float
    call: Any


def ours(config, data: dict[str, Records] | None = None) -> Ours:
    run = experiment.load(config, data or records(IMAGES))
    feed = train.make_feed(run)
    compiled = train.make_call(run, feed)
    inputs = next(iter(feed.epoch(0)))
    carry = list(experiment.initial(run))

    def call():
        carry[0], carry[1], metrics = compiled(carry[0], carry[1], inputs)
        jax.block_until_ready((carry, metrics))

    first = timing.seconds(call)
    return Ours(feed.steps_per_call, feed.steps_per_call * config.train.batch_size, first, call)


def peer(config, data: dict[str, Records], *, tuned: bool, dtype: str = "float32") -> Any:
    """The peer's trainer for the same step, or None where torch is not installed."""
    try:
        import torch

        from benchmarks import torch_peer
    except ImportError:
        return None
    return torch_peer.Trainer(
        config.model.trunk,
        data["train"].image,
        data["train"].coarse_label,
        hidden=config.model.hidden,
        dim=config.model.dim,
        num_views=config.views.num_views,
        batch_size=config.train.batch_size,
        tuned=tuned,
        device="cuda" if parallel.devices()[0].platform == "gpu" else "cpu",
        dtype=getattr(torch, dtype),
    )
