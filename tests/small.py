"""A run that takes milliseconds a step, for the tests of everything around it, and command lines as a user has them."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np

from grafit_jax import config as config_lib
from grafit_jax import parallel

ROOT = pathlib.Path(__file__).parent.parent


def shell_environment():
    """As a user's shell has it: one CPU device, not the eight of the tests."""
    return {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}


def command(script, *arguments):
    return [sys.executable, str(ROOT / "experiments" / f"{script}.py"), *arguments]


def run(script, *arguments):
    return subprocess.run(
        command(script, *arguments), capture_output=True, text=True, env=shell_environment(), cwd=ROOT
    )


def small_config(method="grafit", **overrides):
    """Digits through a narrow net: a step takes milliseconds."""
    c = config_lib.default()
    values = {
        "method": method,
        "model.trunk": "resnet8",
        "model.stem": "patch2",
        "model.hidden": 32,
        "model.dim": 16,
        "views.num_views": 2,
        "views.size": 8,
        "views.mean": (0.3,),
        "views.std": (0.4,),
        "views.flip": 0.0,
        "optimizer.warmup_epochs": 0.0,
        "train.epochs": 2,
        "train.batch_size": 64,
        "eval.batch_size": 300,
    }
    c.update_from_flattened_dict(values | overrides)
    return c


def on_one_device(monkeypatch):
    monkeypatch.setattr(parallel, "devices", lambda: jax.local_devices()[:1])


def make_builder(
    data_dir, *, shape=(6, 5, 3), withheld=False, coarse=True, splits=("train", "test"), file_format="tfrecord"
):
    """Prepares 90 random images a split, in 3 files each: 6 fine classes in 3 coarse ones."""
    import tensorflow_datasets as tfds

    names = {"label": list("abcdef"), "coarse_label": list("xyz")}
    if not coarse:
        del names["coarse_label"]

    def generate(self, split):
        rng = np.random.default_rng(len(split))
        for i in range(90):
            size = (int(rng.integers(4, 9)), 5, 3) if shape[0] is None else shape
            label = {"label": -1 if withheld and split == "test" else i % 6, "coarse_label": i % 6 // 2}
            yield i, {"image": rng.integers(0, 256, size, np.uint8), **{key: label[key] for key in names}}

    def info(self):
        features = {key: tfds.features.ClassLabel(names=n) for key, n in names.items()}
        features |= {"image": tfds.features.Image(shape=shape)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    body = {
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": info,
        "_generate_examples": generate,
        "_split_generators": lambda self, _: {s: self._generate_examples(s) for s in splits},
    }
    # Not registered: so it is read from its files alone, as another process does.
    with tfds.core.registered.skip_registration():
        cls = type("TinyHierarchy", (tfds.core.GeneratorBasedBuilder,), body)
    builder = cls(data_dir=data_dir, file_format=file_format)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
