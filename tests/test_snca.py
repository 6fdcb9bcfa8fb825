"""SNCA with its published recipe: linear projector, learning-rate steps, memory momentum."""

import jax
import numpy as np
import pytest

from grafit_jax import (
    config_checks,
    config_files,
    experiment,
    parallel,
    restore,
    train_step,
)
from grafit_jax.errors import UserError
from grafit_jax.optimizer import make_schedules
from grafit_jax.views import augment
from helpers import twins
from helpers.command_lines import ROOT
from helpers.runs import means, small_config


def recipe(dataset):
    return config_files.load_file(ROOT / "configs" / "snca.py", f"dataset={dataset}")


def schedules_of(config, num_images):
    return make_schedules(config, steps_per_epoch=num_images // config.train.batch_size)


# CIFAR-100: 50,000 // 128 = 390 steps an epoch; epochs 50, 100, 150 begin at 19,500, 39,000, 58,500 of 78,000.
# ImageNet: 1,281,167 // 256 = 5,004; epochs 40, 80, 120 at 200,160, 400,320, 600,480 of 650,520.
RATES = {
    ("cifar100", 50_000): {0: 0.1, 19_499: 0.1, 19_500: 1e-2, 38_999: 1e-2, 39_000: 1e-3, 58_500: 1e-4, 77_999: 1e-4},
    ("imagenet", 1_281_167): {0: 0.1, 200_159: 0.1, 200_160: 1e-2, 400_320: 1e-3, 600_479: 1e-3, 600_480: 1e-4},
}
MOMENTA = {
    ("cifar100", 50_000): {0: 0.5, 31_200: 0.5, 46_800: 0.5, 77_999: 0.5},
    ("imagenet", 1_281_167): {0: 0.5, 400_319: 0.5, 400_320: 0.8, 600_479: 0.8, 600_480: 0.9, 650_519: 0.9},
}


@pytest.mark.parametrize("data", RATES)
def test_the_recipe_has_the_published_rate_and_momentum_at_every_step(data):
    config = recipe(data[0])
    config_checks.validate(config, num_devices=8)
    run = schedules_of(config, data[1])
    for step, rate in RATES[data].items():
        np.testing.assert_allclose(run.learning_rate(step), rate, rtol=1e-6, err_msg=str(step))
    for step, momentum in MOMENTA[data].items():
        np.testing.assert_allclose(run.memory_momentum(step), momentum, rtol=1e-6, err_msg=str(step))
    assert (config.method, config.model.embed_dim, config.loss.temperature) == ("snca", 128, 0.05)
    expected = {"cifar100": ("resnet18", 200, 128, 5e-4), "imagenet": ("resnet50", 130, 256, 1e-4)}[data[0]]
    assert (config.model.trunk, config.train.epochs, config.train.batch_size, config.optimizer.weight_decay) == expected
    assert config.optimizer.nesterov and config.optimizer.momentum == 0.9
    assert (
        config.train.epochs * (data[1] // config.train.batch_size) == {"cifar100": 78_000, "imagenet": 650_520}[data[0]]
    )
    v = config.views
    assert (v.crop_scale, v.flip_prob, v.jitter, v.jitter_prob if any(v.jitter) else None, v.grayscale_prob) == {
        "cifar100": ((0.2, 1.0), 0.5, (0.4,) * 4, 1.0, 0.2),
        "imagenet": ((0.08, 1.0), 0.5, (0.0,) * 4, None, 0.0),
    }[data[0]]


def test_steps_of_the_learning_rate_after_a_warm_up_and_under_jit():
    # Base 0.4 after 10 warm-up steps, halved at steps 20 and 30.
    expected = {0: 0.0, 5: 0.2, 10: 0.4, 19: 0.4, 20: 0.2, 29: 0.2, 30: 0.1, 1000: 0.1}
    options = {"optimizer.learning_rate": 0.4, "train.batch_size": 256, "optimizer.warmup_epochs": 10.0}
    options |= {"optimizer.schedule": "step", "optimizer.boundary_epochs": (20, 30), "optimizer.step_factor": 0.5}
    schedules = make_schedules(small_config("snca", **options), steps_per_epoch=1)
    got = jax.jit(jax.vmap(schedules.learning_rate))(np.array(list(expected)))
    np.testing.assert_allclose(got, list(expected.values()), rtol=1e-6)
    assert schedules.memory_momentum(10**6) == 0.5


def test_the_optimizer_lowers_the_rate_at_the_boundary():
    # 899 // 448 = 2 steps per epoch: the third step belongs to epoch 1.
    options = {"train.batch_size": 448, "optimizer.schedule": "step", "optimizer.boundary_epochs": (1,)}
    options |= {"optimizer.momentum": 0.0, "optimizer.nesterov": False, "optimizer.weight_decay": 0.0}
    tx = experiment.load(small_config("snca", **options)).tx
    state, moves = tx.init({"w": np.ones(3)}), []
    for _ in range(3):
        move, state = tx.update({"w": np.ones(3)}, state, {"w": np.ones(3)})
        moves.append(move["w"][0])
    # The rate is 0.1 per 256 images, and a step has 448.
    np.testing.assert_allclose(moves, [-0.175, -0.175, -0.0175], rtol=1e-6)


@pytest.mark.slow
def test_a_step_projects_with_one_linear_layer_and_updates_memory_with_the_momentum_of_its_epoch():
    options = {"model.sync_batch_norm": False, "memory.step_epochs": (1,), "memory.step_momentum": (0.8,)}
    run = experiment.load(small_config("snca", **options))
    state, memory = jax.device_get(restore.initial(run))
    layer = state.params["projector"]["Dense_0"]
    assert set(state.params) == {"trunk", "projector"} and set(state.params["projector"]) == {"Dense_0"}
    assert set(state.batch_stats) == {"trunk"} and not state.target_params
    assert layer["kernel"].shape[1] == layer["bias"].shape[0] == 16
    feed = experiment.make_feed(run)
    inputs = next(iter(feed.epoch(1)))
    ids = np.asarray(inputs[1])[0, 0]
    label = run.records["train"].train_label
    call = train_step.pmap_steps(run, feed)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    apply = jax.jit(lambda images: run.network.apply(variables, images, train=True, mutable=["batch_stats"])[0])
    for step, momentum in ((0, 0.5), (14, 0.8)):  # 14 steps per epoch; both steps use the first batch of the order
        at = state.replace(step=np.int32(step))
        key = jax.random.fold_in(state.rng, step)
        images = augment.random_views(run.records["train"].image[ids], ids, key, views=run.views, num_views=1)[0]
        out = apply(images)
        z = np.asarray(out.features, np.float64) @ layer["kernel"] + layer["bias"]
        np.testing.assert_allclose(out.projection, z, atol=1e-5)

        _, updated, sums = call(parallel.replicate(at), parallel.shard(memory), inputs)
        loss = twins.knn_loss(z, label[ids], memory.embedding[0], label, temperature=0.05, own_slot=ids)
        np.testing.assert_allclose(means([sums])["knn_loss"], np.mean(loss), rtol=1e-4)
        expected = twins.memory_update(memory.embedding[0], ids, z, momentum=momentum)
        np.testing.assert_allclose(updated.embedding[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optimizer.schedule": "stpe"}, r"unknown optimizer\.schedule 'stpe' \(did you mean 'step'\?\)"),
        (
            {"optimizer.schedule": "step"},
            r"optimizer\.boundary_epochs = \(\); expected at least one epoch with schedule step",
        ),
        (
            {"optimizer.boundary_epochs": (80, 40)},
            r"optimizer\.boundary_epochs = \(80, 40\); expected ascending epochs > 0",
        ),
        (
            {"optimizer.boundary_epochs": (0, 40)},
            r"optimizer\.boundary_epochs = \(0, 40\); expected ascending epochs > 0",
        ),
        ({"optimizer.step_factor": 0.0}, r"optimizer\.step_factor = 0\.0; expected a value in \(0, 1\]"),
        (
            {"memory.step_epochs": (80,)},
            r"memory\.step_momentum = \(\); expected one value for each of memory\.step_epochs",
        ),
        (
            {"memory.step_epochs": (2,), "memory.step_momentum": (1.0,)},
            r"step_momentum = \(1\.0,\); expected values in \[",
        ),
    ],
)
def test_invalid_schedules_are_errors(overrides, message):
    with pytest.raises(UserError, match=message):
        config_checks.validate(small_config("snca", **overrides), num_devices=8)
