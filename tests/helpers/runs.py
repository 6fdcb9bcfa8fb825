"""A small run of milliseconds per step, and the files of a finished run."""

import json

import jax
import numpy as np
import pytest

from grafit_jax import config as config_lib
from grafit_jax import model, objective, train_step


def finish(path, config, metrics, **facts):
    """Writes the files of a finished run into a workdir."""
    path.mkdir(parents=True, exist_ok=True)
    facts = {"train_seconds": 1.0, "train_images": 9, "views_per_image": 1} | facts
    (path / "config.json").write_text(config_lib.to_json(config))
    (path / "run.json").write_text(json.dumps(facts))
    (path / "metrics.json").write_text(json.dumps(metrics))


def interrupted_in_the_second_epoch(config, path):
    """Trains until Ctrl-C at the start of the second epoch."""
    from grafit_jax.commands import training
    from grafit_jax.data import pipeline

    order = pipeline.epoch_order

    def interrupted(seed, epoch, *args):
        if epoch == 1:
            raise KeyboardInterrupt
        return order(seed, epoch, *args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline, "epoch_order", interrupted)
        training.train(config, path)


def small_config(method="grafit", **overrides):
    """Returns a config of digits with a narrow network; a step takes milliseconds."""
    c = config_lib.default()
    values = {
        "method": method,
        "model.trunk": "resnet8",
        "model.stem": "patch2",
        "model.head_hidden_dim": 32,
        "model.embed_dim": 16,
        "views.num_views": 2,
        "views.size": 8,
        "views.mean": (0.3,),
        "views.std": (0.4,),
        "views.flip_prob": 0.0,
        "optimizer.warmup_epochs": 0.0,
        "train.epochs": 2,
        "train.batch_size": 64,
        "train.steps_per_call": 1,  # the CPU default, for accelerators too
        "eval.batch_size": 300,
    }
    c.update_from_flattened_dict(values | overrides)
    return c


def split_features(run, state, split, layer="trunk"):
    """Returns the `Features` of a split, as the network gives them."""
    return model.split_gallery(run, state, "run", split, layer=layer, normalize=False).features


def means(totals):
    """Returns the epoch mean of each metric."""
    epoch_means = objective.EpochMeans()
    for of_call in totals:
        epoch_means.add(of_call)
    epoch_means.record()
    return epoch_means.means()


def log_of(path):
    """Returns the lines of metrics.jsonl without the time measurements."""
    lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if "second" not in k} for line in lines]


def before_calls(monkeypatch, events):
    """Calls `events[n]()` before the n-th call of the step function, counted over all runs."""
    make_call, count = train_step.pmap_steps, [0]

    def made(run, feed, *steps):
        call = make_call(run, feed, *steps)

        def counted(*args):
            count[0] += 1
            events.get(count[0], lambda: None)()
            return call(*args)

        return counted

    monkeypatch.setattr(train_step, "pmap_steps", made)


def assert_close(tree, expected, **tolerance):
    """Applies `np.testing.assert_allclose` to each leaf."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), tree, expected)
