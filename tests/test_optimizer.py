"""Learning rate and tau at hand-computed steps, and AdamW and layer decay against twins."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grafit_jax import experiment, models, optimizer
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


def test_learning_rate_warms_up_linearly_then_follows_a_cosine_to_zero():
    rate = schedules(warmup_steps=10).learning_rate
    for step, expected in WARM.items():
        np.testing.assert_allclose(rate(step), expected, rtol=1e-5, atol=1e-7, err_msg=f"step {step}")


def test_learning_rate_without_warm_up_starts_at_the_base():
    got = [schedules(peak=0.1, total_steps=100).learning_rate(step) for step in (0, 25, 50, 100)]
    np.testing.assert_allclose(got, [0.1, 0.08535534, 0.05, 0.0], rtol=1e-5, atol=1e-8)


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


# AdamW

# Of a trunk of two blocks: layer -> its rate with layer decay 0.5, and whether its arrays other than kernels decay.
RATES = {"cls_token": 0.125, "patches": 0.125, "EncoderBlock_0": 0.25, "EncoderBlock_1": 0.5, "last_norm": 0.5}


def parameters(rng):
    """Returns parameters of a small vision transformer with a classifier, or gradients for them."""

    def linear():
        return {"kernel": rng.normal(size=(3, 2)).astype(np.float32), "bias": rng.normal(size=2).astype(np.float32)}

    trunk = {
        "cls_token": rng.normal(size=(1, 1, 3)).astype(np.float32),
        "patches": linear(),
        "EncoderBlock_0": {"Dense_0": linear()},
        "EncoderBlock_1": {"Dense_0": linear()},
        "last_norm": {"scale": rng.normal(size=3).astype(np.float32)},
    }
    return {"trunk": trunk, "classifier": linear()}


def groups(params, weight_decay):
    """Returns (array, rate, weight decay) of each array of `params` in the order of `jax.tree.leaves`."""
    found = []
    for path, leaf in jax.tree.leaves_with_path(params):
        names = [key.key for key in path]
        rate = RATES[names[1]] if names[0] == "trunk" else 1.0
        found.append((leaf, rate, weight_decay if names[-1] == "kernel" else 0.0))
    return found


def numpy_adamw(groups, gradients, rates, beta1, beta2):
    """AdamW as in algorithm 2 of Loshchilov and Hutter (2019), float64."""
    arrays = []
    for i, (x, scale, decay) in enumerate(groups):
        x, m, v = np.asarray(x, np.float64), 0.0, 0.0
        for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
            g = np.asarray(jax.tree.leaves(gradient)[i], np.float64)
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
            step = (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + 1e-8)
            x = x - rate * scale * (step + decay * x)
        arrays.append(x)
    return arrays


def torch_adamw(groups, gradients, rates, beta1, beta2):
    import torch

    tensors = [torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=True) for x, _, _ in groups]
    of_torch = torch.optim.AdamW(
        [{"params": [x], "weight_decay": decay} for x, (_, _, decay) in zip(tensors, groups, strict=True)],
        betas=(beta1, beta2),
    )
    for gradient, rate in zip(gradients, rates, strict=True):
        for group, (_, scale, _), g in zip(of_torch.param_groups, groups, jax.tree.leaves(gradient), strict=True):
            group["lr"], group["params"][0].grad = float(rate) * scale, torch.tensor(g, dtype=torch.float64)
        of_torch.step()
    return [x.detach().numpy() for x in tensors]


def check_adamw(twin):
    rng = np.random.default_rng(0)
    params, gradients = parameters(rng), [parameters(rng) for _ in range(5)]
    c = small_config(
        **{
            "optimizer.name": "adamw",
            "optimizer.momentum": 0.8,
            "optimizer.beta2": 0.95,
            "optimizer.weight_decay": 0.3,
            "optimizer.layer_decay": 0.5,
        }
    )
    rates = [0.1, 0.2, 0.05, 0.3, 0.1]
    tx = optimizer.make_optimizer(c.optimizer, lambda step: jnp.asarray(rates)[step])
    found, opt_state = params, tx.init(params)
    for gradient in gradients:
        updates, opt_state = tx.update(gradient, opt_state, found)
        found = optax.apply_updates(found, updates)
    expected = twin(groups(params, 0.3), gradients, rates, 0.8, 0.95)
    for got, twins in zip(jax.tree.leaves(found), expected, strict=True):
        np.testing.assert_allclose(got, twins, rtol=1e-4, atol=1e-5)


def test_adamw_with_layer_decay_equals_a_twin():
    check_adamw(numpy_adamw)


def test_adamw_with_layer_decay_equals_that_of_pytorch(torch):
    check_adamw(torch_adamw)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "vit_small_patch14_dinov2"])
def test_layer_rates_are_those_of_timm(name, timm):
    from timm.optim import param_groups_layer_decay

    network = timm.create_model(name, num_classes=10)
    names = {id(x): key for key, x in network.named_parameters()}
    expected = {}
    for group in param_groups_layer_decay(network, layer_decay=0.7):
        expected |= {names[id(x)].rpartition(".")[0]: group["lr_scale"] for x in group["params"]}
    trunk = models.build_trunk(name)
    params = jax.eval_shape(lambda: trunk.init(jax.random.key(0), jnp.zeros((1, 28, 28, 3)), train=False))["params"]
    ones = {"trunk": jax.tree.map(lambda x: jnp.ones(x.shape), params)}
    c = small_config(**{"optimizer.layer_decay": 0.7, "optimizer.weight_decay": 0.0, "optimizer.momentum": 0.0})
    tx = optimizer.make_optimizer(c.optimizer, lambda step: jnp.ones(()))
    updates, _ = tx.update(ones, tx.init(ones), ones)
    found = {}
    for path, leaf in jax.tree.leaves_with_path(updates["trunk"]):
        found.setdefault(trunk.torch_name([key.key for key in path[:-1]]), -float(jnp.ravel(leaf)[0]))
    head = expected.pop(trunk.torch_head)
    assert head == 1 and found.keys() == expected.keys()
    for layer, rate in expected.items():
        np.testing.assert_allclose(found[layer], rate, rtol=1e-5, err_msg=layer)


def test_a_skipped_step_of_adamw_advances_the_schedule_only():
    params = {"classifier": {"kernel": jnp.ones((2, 2))}}
    tx = optimizer.make_optimizer(small_config(**{"optimizer.name": "adamw"}).optimizer, lambda step: 0.1 / (1 + step))
    first = tx.init(params)
    _, second = tx.update(params, first, params)
    kept = optimizer.skipped(second, first)
    # The schedule and Adam's bias correction count steps; the schedule's count advances, Adam's stays with its moments.
    counts = sorted(int(x) for x in jax.tree.leaves(kept) if x.ndim == 0)
    assert counts == [0, 1]
    assert all(not np.any(x) for x in jax.tree.leaves(kept) if x.ndim)
    a, _ = tx.update(params, kept, params)
    b, _ = tx.update(params, first, params)
    np.testing.assert_allclose(a["classifier"]["kernel"], b["classifier"]["kernel"] / 2, rtol=1e-6)
