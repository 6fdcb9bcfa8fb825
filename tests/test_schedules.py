"""Learning rate and moving-average rate at the steps where their values can be written down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grafit_jax import experiment, schedules
from helpers.runs import small_config

# base 0.4, 10 warm-up steps, 110 in all. Half-way through the cosine is step 10 + 100/2 = 60, where (1 + cos 90 deg)/2
# = 1/2; a quarter of the way is step 35, where (1 + cos 45 deg)/2 = 0.8535534.
WARM = {0: 0.0, 5: 0.2, 10: 0.4, 35: 0.4 * 0.8535534, 60: 0.2, 110: 0.0}


@pytest.mark.parametrize("step", WARM)
def test_learning_rate_warms_up_linearly_then_follows_a_cosine_to_zero(step):
    got = schedules.learning_rate(step, base=0.4, total_steps=110, warmup_steps=10)
    np.testing.assert_allclose(got, WARM[step], rtol=1e-5, atol=1e-7)


def test_learning_rate_without_warm_up_starts_at_the_base():
    got = [schedules.learning_rate(step, base=0.1, total_steps=100, warmup_steps=0) for step in (0, 25, 50, 100)]
    np.testing.assert_allclose(got, [0.1, 0.08535534, 0.05, 0.0], rtol=1e-5, atol=1e-8)


def test_learning_rate_rises_then_falls_and_never_leaves_its_range():
    rates = np.array([schedules.learning_rate(s, base=1.0, total_steps=40, warmup_steps=8) for s in range(41)])
    assert (np.diff(rates[:9]) > 0).all()
    assert (np.diff(rates[8:]) < 0).all()
    assert rates.min() >= 0
    assert rates.max() <= 1


def test_ema_rate_goes_from_its_base_to_one():
    # BYOL: 1 - (1 - base)(cos(pi k/K) + 1)/2. At K/2 the cosine is 0: 1 - 0.004/2 = 0.998; at K/4, cos 45 deg:
    # 1 - 0.004 * 0.8535534 = 0.9965858.
    got = [schedules.ema_tau(step, base=0.996, total_steps=1000) for step in (0, 250, 500, 1000)]
    np.testing.assert_allclose(got, [0.996, 0.9965858, 0.998, 1.0], atol=2e-7, rtol=0)


def test_schedules_are_the_same_functions_of_a_traced_step():
    steps = jnp.arange(0, 111, 5, dtype=jnp.int32)

    def lr(step):
        return schedules.learning_rate(step, base=0.4, total_steps=110, warmup_steps=10)

    def tau(step):
        return schedules.ema_tau(step, base=0.99, total_steps=110)

    np.testing.assert_allclose(jax.jit(jax.vmap(lr))(steps), [lr(int(s)) for s in steps], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(jax.jit(jax.vmap(tau))(steps), [tau(int(s)) for s in steps], rtol=1e-6)


def test_the_configs_warm_up_comes_before_the_cosine():
    # 899 // 64 = 14 steps an epoch, and 0.1 * 64 / 256 at the most: half of it after one of the two epochs of warm-up,
    # and again half-way through the two epochs of the cosine.
    run = experiment.load(small_config(**{"optimizer.warmup_epochs": 2.0, "train.epochs": 4}))
    got = [run.learning_rate(step) for step in (0, 14, 28, 42, 56)]
    np.testing.assert_allclose(got, [0, 0.0125, 0.025, 0.0125, 0], rtol=1e-5, atol=1e-8)
