"""Grafit learns what its paper says, on real digits: fine classes come apart that no label tells apart."""

import dataclasses

import numpy as np
import pytest

from grafit_jax import experiment, parallel, train, train_step
from small import on_one_device, small_config

# On this budget: baseline 54, Grafit 68 to 69, Grafit on shuffled labels 38.
MARGIN = 0.08


def learned(method, *, shuffle=False):
    """Fine mAP on trunk features after a small training with coarse labels, the same for every method."""
    config = small_config(
        method,
        **{
            "model.stem": "cifar",
            "model.hidden": 128,
            "model.dim": 64,
            "views.crop_scale": (0.5, 1.0),
            "ema.base": 0.99,
            "optimizer.learning_rate": 0.3,
            "optimizer.warmup_epochs": 2.0,
            "train.batch_size": 128,
            "train.epochs": 40,
        },
    )
    run = experiment.load(config)
    records = run.records["train"]
    if shuffle:
        mixed = np.random.default_rng(0).permutation(records.coarse_label)
        records = dataclasses.replace(records, coarse_label=mixed)
        run = dataclasses.replace(run, records=run.records | {"train": records})
    state, memory = experiment.initial(run)
    data = parallel.replicate(train_step.DeviceData(records.image, records.coarse_label))
    call = train_step.pmap_steps(train.make_step(run), steps_per_call=1)
    for epoch in range(config.train.epochs):
        order = train._epoch_order(0, epoch, len(records), run.steps_per_epoch, config.train.batch_size)
        for _ in range(run.steps_per_epoch):
            state, memory, _ = call(state, memory, data, order)
    return experiment.evaluate(run, state)["map"]


@pytest.mark.slow
def test_grafit_beats_the_baseline_and_needs_the_labels(monkeypatch):
    on_one_device(monkeypatch)
    baseline, grafit, shuffled = learned("baseline"), learned("grafit"), learned("grafit", shuffle=True)
    assert grafit > baseline + MARGIN, (grafit, baseline)
    assert shuffled < baseline + MARGIN, (shuffled, baseline)
