"""Grafit learns what its paper says, and each part of it is needed: on real digits, with every break shown to break it.

One seed and one small budget, the same for all; the margin lies between what Grafit reaches and what the best broken
Grafit does.
"""

import dataclasses
import functools

import numpy as np
import pytest

from grafit_jax import experiment, losses, parallel, train, train_step
from grafit_jax import memory as memory_lib
from small import on_one_device, small_config

MARGIN = 0.05


def learned(method, *, shuffle=False):
    """Fine mAP on trunk features after training with coarse labels."""
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
    if shuffle:
        records = run.records["train"]
        mixed = np.random.default_rng(0).permutation(records.coarse_label)
        run = dataclasses.replace(
            run, records=run.records | {"train": dataclasses.replace(records, coarse_label=mixed)}
        )
    state, memory = experiment.initial(run)
    records = run.records["train"]
    data = parallel.replicate(train_step.DeviceData(image=records.image, label=records.coarse_label))
    call = train_step.pmap_steps(train._make_step(run), steps_per_call=1)
    for epoch in range(config.train.epochs):
        order = train._epoch_order(0, epoch, len(records), run.steps_per_epoch, config.train.batch_size)
        for _ in range(run.steps_per_epoch):
            state, memory, _ = call(state, memory, data, order)
    return experiment.evaluate(run, state)["map"]


@functools.cache
def baseline():
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch)
        return learned("baseline")


def memory_never_updated(patch):
    patch.setattr(memory_lib, "update", lambda memory, *args, **kwargs: memory)


def own_slot_kept(patch):
    right = losses.knn_loss_and_weight
    patch.setattr(losses, "knn_loss_and_weight", lambda *args, own_slot, **kwargs: right(*args, **kwargs))


def target_not_stopped(patch):
    def attract(predictions, targets):
        # One network on both sides, and gradient through both: nothing keeps all images from falling into one point.
        p = losses.unit(predictions)
        return -(p[0] * p[1]).sum(-1)

    patch.setattr(losses, "instance_loss", attract)


@pytest.mark.slow
def test_grafit_beats_the_baseline(monkeypatch):
    on_one_device(monkeypatch)
    grafit = learned("grafit")
    print(f"grafit {grafit:.3f}, baseline {baseline():.3f}")
    assert grafit > baseline() + MARGIN


@pytest.mark.slow
@pytest.mark.parametrize("damage", [memory_never_updated, own_slot_kept, target_not_stopped, "labels_shuffled"])
def test_a_broken_grafit_does_not(damage, monkeypatch):
    on_one_device(monkeypatch)
    if damage == "labels_shuffled":
        broken = learned("grafit", shuffle=True)
    else:
        damage(monkeypatch)
        broken = learned("grafit")
    print(f"{damage}: {broken:.3f}, baseline {baseline():.3f}")
    assert broken < baseline() + MARGIN
