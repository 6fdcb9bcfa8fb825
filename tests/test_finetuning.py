"""The training step with frozen layers, fixed batch norms, drop path and microbatches."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grafit_jax import experiment, initial_weights, restore, train_step
from grafit_jax.runs.checkpoint import Checkpoints
from grafit_jax.state import merged, target_part
from grafit_jax.views import augment
from helpers import twins
from helpers.devices import use_devices
from helpers.runs import assert_close, means, small_config

# A network whose training mode is its evaluation mode, but for drop path.
FIXED = {"model.freeze_batch_norm": True, "model.head_batch_norm": False}


def load(method="grafit", **options):
    """Returns a run whose step needs no devices, and the state before its first step."""
    base = {"memory.init": "random", "queue.size": 64, "model.sync_batch_norm": False}
    run = experiment.load(small_config(method, **base | options))
    return run, restore.initial_state(run, placeholder=True)


def batch_of(run, size=8):
    records = run.records["train"]
    return {"image": records.image[:size], "label": records.train_label[:size], "id": np.arange(size)}


def memory_of(run, state):
    memory = restore.initial_memory(run, state)
    return memory and jax.tree.map(lambda x: jnp.asarray(x)[0], jax.device_get(memory))


def stepped(run, state, batch=None, steps=1):
    """Takes steps with the same batch on one device; returns state, memory before and after, and the last metrics."""
    step = jax.jit(train_step.make_train_step(run, axis_name=None))
    before = memory = memory_of(run, state)
    for _ in range(steps):
        state, memory, totals = step(state, memory, batch or batch_of(run), state.rng)
    return jax.device_get(state), before, memory, means([totals])


def traced(run, state, batch=None):
    """Returns the jaxpr of a step, and (images, draws) of each call of the trunk."""
    calls, axis_free = [], train_step.make_train_step(run, axis_name=None)

    def note(next_call, args, options, context):
        if context.module.name == "trunk" and context.method_name == "__call__":
            calls.append((args[0], options.get("draws")))
        return next_call(*args, **options)

    with nn.intercept_methods(note):
        jaxpr = jax.make_jaxpr(axis_free)(state, memory_of(run, state), batch or batch_of(run), state.rng)
    return jaxpr.jaxpr, calls


def trunk_layers(tree):
    """Returns the names of the trunk's layers that have an array in the tree."""
    paths = [[getattr(key, "key", None) for key in path] for path, _ in jax.tree.leaves_with_path(tree)]
    return {path[path.index("trunk") + 1] for path in paths if "trunk" in path}


# Frozen layers


@pytest.mark.parametrize("freeze", ["trunk", "2"])
def test_frozen_layers_have_no_optimizer_state_and_no_copy_in_the_target_network(freeze):
    _, state = load(**{"model.freeze": freeze, "optimizer.name": "adamw"})
    expected = {"BasicBlock_2"} if freeze == "2" else set()
    assert trunk_layers(state.opt_state) == trunk_layers(state.target_params) == expected
    assert "projector" in state.target_params
    assert trunk_layers(state.params) == {"Conv_0", "BatchNorm_0", "BasicBlock_0", "BasicBlock_1", "BasicBlock_2"}


@pytest.mark.parametrize(
    ("given", "warned"),
    [((), "BasicBlock_0 and 3 more"), (("BatchNorm_0", "BasicBlock_0", "BasicBlock_1"), "Conv_0:"), (None, "")],
)
def test_frozen_layers_with_random_weights_are_warned_of(monkeypatch, capsys, given, warned):
    run, state = load(**{"model.freeze": "2"})
    trunk = {name: layer for name, layer in state.params["trunk"].items() if given is None or name in given}
    found = initial_weights.Given({"params": {"trunk": trunk}, "batch_stats": {}})
    monkeypatch.setattr(initial_weights, "given", lambda run: found)
    restore.check_start(run)
    shown = capsys.readouterr().err
    assert f"warning: found model.freeze = 2 but no given weights of {warned}" in shown if warned else not shown


@pytest.mark.parametrize("freeze", ["2", pytest.param("trunk", marks=pytest.mark.slow)])
def test_frozen_layers_keep_their_bits(freeze):
    decay = {"optimizer.weight_decay": 0.1, "optimizer.decay_all": True, "optimizer.layer_decay": 0.5, "ema.base": 0.5}
    run, before = load("byol", **{"model.freeze": freeze} | decay)
    after = stepped(run, before, steps=2)[0]
    for kind in ("params", "batch_stats"):
        old, new = (getattr(state, kind) for state in (jax.device_get(before), after))
        for layer in old["trunk"]:
            same = all(
                a.tobytes() == b.tobytes()
                for a, b in zip(jax.tree.leaves(old["trunk"][layer]), jax.tree.leaves(new["trunk"][layer]), strict=True)
            )
            assert same == (freeze == "trunk" or layer != "BasicBlock_2"), layer
        changes = jax.tree.map(lambda a, b: bool(np.any(a != b)), old["projector"], new["projector"])
        assert all(jax.tree.leaves(changes))


def test_both_networks_share_the_pass_of_a_frozen_trunk():
    for method, freeze, sizes in (("grafit", "trunk", [16]), ("grafit", "", [16, 16]), ("maskcon", "trunk", [8, 8])):
        _, calls = traced(*load(method, **{"model.freeze": freeze}))
        assert [len(images) for images, _ in calls] == sizes  # T = 2 views, or query and key


@pytest.mark.parametrize(("freeze", "expected"), [("", 9 + 17), ("2", 9 + 4), ("trunk", 9)])
def test_frozen_layers_have_no_backward_pass(freeze, expected):
    # resnet8 has convolutions in its stem (1) and its blocks (2, 3 and 3, of which one is the shortcut). Each has a
    # gradient for its kernel and one for its input. Without that of the first input, or of what enters block 2:
    jaxpr, _ = traced(*load("baseline", **{"model.freeze": freeze}))
    names = [equation.primitive.name for equation in twins.equations(jaxpr)]
    assert names.count("conv_general_dilated") == expected


@pytest.mark.parametrize(
    "options",
    [
        FIXED | {"model.freeze": "2"},
        pytest.param({"model.freeze": "trunk", "model.head_batch_norm": False}, marks=pytest.mark.slow),
    ],
)
def test_fixed_trunks_compute_as_in_evaluation(options):
    run, state = load("byol", **options)
    shifted = jax.tree.map(lambda x: x * 1.2 + 0.1, state.batch_stats)
    moved = jax.tree.map(lambda x: x * 1.1 + 0.01, state.target_params)
    state = dataclasses.replace(state, batch_stats=shifted, target_params=moved)
    batch = batch_of(run)
    after, _, _, metrics = stepped(run, state)

    key = jax.random.fold_in(state.rng, 0)
    views = augment.random_views(batch["image"], batch["id"], key, views=run.views, num_views=2)
    flat = views.reshape(-1, *views.shape[2:])
    target = {"params": merged(moved, target_part(state.params)), "batch_stats": target_part(shifted)}
    online, targets = jax.jit(
        lambda: (
            run.network.apply(state.variables, flat, train=False),
            run.network.apply(target, flat, train=False, method="embed").projection,
        )
    )()
    by_view = [np.asarray(x, np.float64).reshape(2, len(batch["id"]), -1) for x in (online.prediction, targets)]
    np.testing.assert_allclose(metrics["instance_loss"], np.mean(twins.instance_loss(*by_view)), rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, after.batch_stats, jax.device_get(shifted))


def test_a_checkpoint_of_a_frozen_run_is_restored(tmp_path):
    run, state = load("snca", **{"model.freeze": "trunk"})
    state = dataclasses.replace(state, step=state.step + 5, params=jax.tree.map(lambda x: x + 1, state.params))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, state, None)
    checkpoints.wait()
    found, _, _ = checkpoints.restore_newest(restore.initial_state(run, placeholder=True))
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(state))


# Drop path


def test_draws_of_drop_path_belong_to_the_image_and_the_view():
    key = jax.random.key(0)
    draws = np.asarray(train_step._flat_draws(np.arange(400), key, 2, 5)).reshape(2, 400, 5)
    again = np.asarray(train_step._flat_draws(np.array([7, 3]), key, 2, 5)).reshape(2, 2, 5)
    np.testing.assert_array_equal(again, draws[:, [7, 3]])
    assert len(np.unique(draws)) > 0.99 * draws.size  # each view, image and block has its own
    # Uniform: standard errors are 0.0046 and, for the share below 0.1, 0.0047.
    assert abs(draws.mean() - 0.5) < 0.02 and abs(np.mean(draws < 0.1) - 0.1) < 0.02


def test_only_the_online_network_drops_branches():
    run, state = load(**{"model.drop_path": 0.2})
    _, ((of_target, none), (images, draws)) = traced(run, state)
    assert images.shape == of_target.shape and none is None and draws.shape == (16, 3)
    for options in ({"model.drop_path": 0.0}, {"model.drop_path": 0.2, "model.freeze": "trunk"}):
        assert {draws for _, draws in traced(*load(**options))[1]} == {None}


@pytest.mark.slow
def test_a_step_drops_the_branches_of_its_draws():
    run, state = load("baseline", **FIXED, **{"model.drop_path": 0.5})
    batch, key = batch_of(run), jax.random.fold_in(state.rng, 0)
    # Norms of branches start at zero, so that branches would have no effect.
    params = jax.tree.map(lambda x: x + 0.1, state.params)
    _, _, _, metrics = stepped(run, dataclasses.replace(state, params=params))
    views = augment.random_views(batch["image"], batch["id"], key, views=run.views, num_views=1)[0]
    variables = {"params": params, "batch_stats": state.batch_stats}
    draws = train_step._flat_draws(batch["id"], key, 1, 3)
    dropped, whole = (run.network.apply(variables, views, train=False, draws=d).logits for d in (draws, None))
    np.testing.assert_allclose(
        metrics["cross_entropy"], np.mean(twins.cross_entropy(dropped, batch["label"])), rtol=1e-4
    )
    assert np.abs(dropped - whole).max() > 1e-3


def after(config, steps=2):
    run = experiment.load(config)
    state, memory = restore.initial(run)
    feed = experiment.make_feed(run)
    inputs, call = next(iter(feed.epoch(0))), train_step.pmap_steps(run, feed)
    totals = []
    for _ in range(steps):
        state, memory, sums = call(state, memory, inputs)
        totals.append(sums)
    return jax.device_get((state, memory)), means(totals)


def test_eight_devices_drop_the_branches_of_one(monkeypatch, eight_devices):
    config = small_config("baseline", **{"model.drop_path": 0.5})
    eight, metrics8 = after(config, steps=3)
    use_devices(monkeypatch, 1)
    one, metrics1 = after(config, steps=3)
    for name in metrics1:
        np.testing.assert_allclose(metrics8[name], metrics1[name], rtol=2e-4, err_msg=name)
    assert_close(eight[0], one[0], atol=3e-5, rtol=1e-3)


# Microbatches


def test_parts_are_taken_in_order_and_their_gradients_averaged():
    def gradient(statistics, batch):  # of w * mean(x), and a statistic that depends on the order
        total = jnp.sum(batch["x"])
        return (
            {"w": total / 3},
            0.5 * statistics + total,
            {"loss": (total, jnp.float32(3))},
            {"row": batch["x"][:, None]},
        )

    batch = {"x": jnp.arange(6.0)}
    grads, statistics, totals, rows = train_step._over_parts(gradient, {"w": jnp.zeros(())}, jnp.float32(8), batch, 2)
    # Parts 0 + 1 + 2 = 3 and 3 + 4 + 5 = 12: gradients 1 and 4; statistics 4 + 3 = 7, then 3.5 + 12.
    assert (float(grads["w"]), float(statistics)) == (2.5, 15.5)
    assert [float(x) for x in totals["loss"]] == [15, 6]
    np.testing.assert_array_equal(rows["row"], np.arange(6.0)[:, None])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grafit", "maskcon"])
def test_parts_of_a_batch_give_the_update_of_the_whole(method, monkeypatch):
    use_devices(monkeypatch, 2)
    config = functools.partial(small_config, method, **FIXED, **{"queue.size": 150, "memory.init": "random"})
    whole, metrics = after(config())
    parts, metrics_of_parts = after(config(**{"train.microbatches": 4}))
    for name in metrics:
        np.testing.assert_allclose(metrics_of_parts[name], metrics[name], rtol=1e-4, err_msg=name)
    assert_close(parts, whole, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_batch_statistics_are_taken_part_after_part():
    run, state = load("baseline", **{"train.microbatches": 2})
    batch = batch_of(run)
    found = stepped(run, state)[0].batch_stats
    views = augment.random_views(
        batch["image"], batch["id"], jax.random.fold_in(state.rng, 0), views=run.views, num_views=1
    )[0]
    apply = jax.jit(lambda *args: run.network.apply(*args, train=True, mutable=["batch_stats"])[1])
    statistics = state.batch_stats
    for part in (views[:4], views[4:]):
        statistics = apply({"params": state.params, "batch_stats": statistics}, part)["batch_stats"]
    assert_close(found, statistics, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_mixed_images_have_partners_of_their_part():
    # In parts of one image each is its own partner, so mixing changes nothing.
    run, state = load("baseline", **FIXED, **{"train.microbatches": 2, "mixing.mixup": 1.0})
    batch = batch_of(run, 2)
    batch["label"] = np.array([0, 1])
    mixed = stepped(run, state, batch)[3]["cross_entropy"]
    plain = stepped(*load("baseline", **FIXED), batch)[3]["cross_entropy"]
    np.testing.assert_allclose(mixed, plain, rtol=1e-5)


@pytest.mark.slow
def test_crops_of_the_host_are_split_with_their_images():
    found = []
    for parts in (1, 2):
        run, state = load("maskcon", **FIXED, **{"train.microbatches": parts, "model.stem": "cifar"})
        batch = batch_of(run, 4)
        batch["image"] = np.stack([batch["image"], batch["image"][:, ::-1]], axis=1)  # query and key
        found.append(stepped(run, state, batch))
    assert_close(found[0][0], found[1][0], atol=2e-5, rtol=1e-4)
