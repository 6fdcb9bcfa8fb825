"""The learning rate and the target network's tau at hand-computed steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grafit_jax import experiment
from grafit_jax.optimizer import make_schedules
from helpers.runs import small_config

# Peak 0.4, 10 warm-up steps of 110. Half-way through the cosine is step 10 + 100/2 = 60, where (1 + cos 90 deg)/2 is
# 1/2; a quarter of the way is step 35, where (1 + cos 45 deg)/2 = 0.8535534.
WARM = {0: 0.0, 5: 0.2, 10: 0.4, 35: 0.4 * 0.8535534, 60: 0.2, 110: 0.0}


def schedules(*, peak=0.4, total_steps=110, warmup_steps=0, **overrides):
    """Schedules for epochs of one step and batches of 256 images."""
    values = {
        "train.batch_size": 256,
        "train.epochs": total_steps,
        "optimizer.learning_rate": peak,
        "optimizer.warmup_epochs": float(warmup_steps),
    }
    return make_schedules(small_config(**values | overrides), steps_per_epoch=1)


@pytest.mark.parametrize("step", WARM)
def test_learning_rate_warms_up_linearly_then_follows_a_cosine_to_zero(step):
    got = schedules(warmup_steps=10).learning_rate(step)
    np.testing.assert_allclose(got, WARM[step], rtol=1e-5, atol=1e-7)


def test_learning_rate_without_warm_up_starts_at_the_base():
    got = [schedules(peak=0.1, total_steps=100).learning_rate(step) for step in (0, 25, 50, 100)]
    np.testing.assert_allclose(got, [0.1, 0.08535534, 0.05, 0.0], rtol=1e-5, atol=1e-8)


def test_learning_rate_rises_then_falls_and_never_leaves_its_range():
    rate = schedules(peak=1.0, total_steps=40, warmup_steps=8).learning_rate
    rates = np.array([rate(s) for s in range(41)])
    assert (np.diff(rates[:9]) > 0).all()
    assert (np.diff(rates[8:]) < 0).all()
    assert rates.min() >= 0
    assert rates.max() <= 1


def test_a_warm_up_longer_than_the_run_is_cut_off():
    rate = schedules(total_steps=10, warmup_steps=20).learning_rate
    np.testing.assert_allclose([rate(s) for s in (0, 5, 10)], [0.0, 0.1, 0.2], rtol=1e-6)


def test_tau_goes_from_its_base_to_one():
    # BYOL: 1 - (1 - base)(cos(pi k/K) + 1)/2. At K/2 the cosine is 0: 1 - 0.004/2 = 0.998; at K/4, cos 45 deg:
    # 1 - 0.004 * 0.8535534 = 0.9965858.
    tau = schedules(total_steps=1000, **{"ema.base": 0.996}).tau
    np.testing.assert_allclose([tau(s) for s in (0, 250, 500, 1000)], [0.996, 0.9965858, 0.998, 1.0], atol=2e-7, rtol=0)
    constant = schedules(**{"ema.base": 1.0, "ema.final": 1.0}).tau
    assert constant(0) == constant(55) == 1


def test_schedules_agree_for_traced_and_concrete_steps():
    steps = jnp.arange(0, 111, 5, dtype=jnp.int32)
    momenta = {"memory.step_epochs": (40, 80), "memory.step_momentum": (0.8, 0.9)}
    for function in schedules(warmup_steps=10, **momenta):
        traced = jax.jit(jax.vmap(function))(steps)
        np.testing.assert_allclose(traced, [function(int(s)) for s in steps], rtol=1e-5, atol=1e-7)


def test_the_warm_up_of_the_config_precedes_the_cosine():
    # 899 // 64 = 14 steps per epoch, and a peak of 0.1 * 64 / 256: half of it after one of two warm-up epochs, and
    # again half-way through the two epochs of the cosine.
    run = experiment.load(small_config(**{"optimizer.warmup_epochs": 2.0, "train.epochs": 4}))
    got = [run.learning_rate(step) for step in (0, 14, 28, 42, 56)]
    np.testing.assert_allclose(got, [0, 0.0125, 0.025, 0.0125, 0], rtol=1e-5, atol=1e-8)
