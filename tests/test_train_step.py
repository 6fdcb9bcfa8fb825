"""The pmapped step against its parts, and on eight devices against one."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grafit_jax import experiment, methods, parallel, restore, train_step
from grafit_jax import state as state_lib
from grafit_jax.memory import Memory
from grafit_jax.models import Outputs
from grafit_jax.models.heads import Cosine
from grafit_jax.objective import KnnLevel, Objective
from grafit_jax.views import augment
from helpers import twins
from helpers.devices import use_devices
from helpers.runs import assert_close, means, small_config

METHODS = ("baseline", "baseline_mlp", "snca", "snca_plus", "byol", "grafit_fc", "grafit", "grafit_cosine")


def start(config):
    run = experiment.load(config)
    state, memory = restore.initial(run)
    feed = experiment.make_feed(run)
    return run, state, memory, next(iter(feed.epoch(0))), train_step.pmap_steps(run, feed)


def rows(memory):
    """Returns memory rows in the order of ids, without padding."""
    embedding, label = np.asarray(memory.embedding), np.asarray(memory.label)
    return embedding.reshape(-1, embedding.shape[-1])[label.reshape(-1) >= 0]


def after(config, steps):
    run, state, memory, inputs, call = start(config)
    totals = []
    for _ in range(steps):
        state, memory, sums = call(state, memory, inputs)
        totals.append(sums)
    return run, jax.device_get(state), memory, means(totals)


@pytest.mark.parametrize(
    ("method", "options"), [("baseline", {}), ("grafit", {}), ("grafit_fc", {"model.projector_norm": True})]
)
def test_eight_devices_compute_the_steps_of_one(method, options, monkeypatch, eight_devices):
    # 899 images over 8 devices: 113 rows each; the last 5 are padding.
    _, state8, memory8, metrics8 = after(small_config(method, **options), steps=3)
    use_devices(monkeypatch, 1)
    _, state1, memory1, metrics1 = after(small_config(method, **options), steps=3)

    assert metrics8.keys() == metrics1.keys()
    for name in metrics1:
        np.testing.assert_allclose(metrics8[name], metrics1[name], rtol=2e-4, err_msg=name)
    assert_close(state8, state1, atol=3e-5, rtol=1e-3)
    if method == "grafit":
        assert memory8.embedding.shape == (8, 113, 16)
        assert len(memory8.embedding.sharding.device_set) == 8
        np.testing.assert_allclose(rows(memory8), rows(memory1), atol=1e-4)


@pytest.mark.slow
def test_a_scan_of_steps_equals_single_steps():
    _, state, memory, metrics = after(small_config(), steps=7)
    _, state7, memory7, metrics7 = after(small_config(**{"train.steps_per_call": 7}), steps=1)
    for name in metrics:
        np.testing.assert_allclose(metrics7[name], metrics[name], rtol=1e-3, err_msg=name)
    np.testing.assert_allclose(rows(memory7), rows(memory), atol=3e-4)
    assert int(state7.step) == int(state.step) == 7


def test_state_and_memory_are_donated_but_not_the_data():
    _, state, memory, inputs, call = start(small_config())
    call(state, memory, inputs)
    assert all(x.is_deleted() for x in jax.tree.leaves((state, memory)))
    assert not any(x.is_deleted() for x in jax.tree.leaves(inputs))


@pytest.fixture(scope="module")
def grafit_step():
    """A Grafit step from a state whose target network differs much from the online one, with its inputs and outputs.

    Attributes:
      state, memory: before the step; `new_state`, `new_memory`: after it; `metrics`: of the step.
      ids: of its images.
      out, updated: the online network's outputs for the T*B views, in train mode, and its batch statistics.
      target: the target network's outputs for the same views, with the statistics of its own batch.
    """
    # Without shared statistics, so that the networks can be applied outside the pmapped step.
    run, state, memory, inputs, call = start(small_config(**{"model.sync_batch_norm": False}))
    state, memory, _ = call(state, memory, inputs)
    state, memory = jax.device_get((state, memory))
    state = state.replace(target_params=jax.tree.map(lambda x: x * 1.1 + 0.01, state.target_params))
    new_state, new_memory, sums = call(parallel.replicate(state), parallel.shard(memory), inputs)
    ids = np.asarray(inputs[1])[0, 1]

    @jax.jit
    def outputs(state, images, ids):
        key = jax.random.fold_in(state.rng, 1)
        views = augment.random_views(images, ids, key, views=run.views, num_views=2)
        flat = views.reshape(-1, *views.shape[2:])
        apply = functools.partial(run.network.apply, train=True, mutable=["batch_stats"])
        out, updated = apply({"params": state.params, "batch_stats": state.batch_stats}, flat)
        statistics = state_lib.target_part(state.batch_stats)
        target, _ = apply({"params": state.target_params, "batch_stats": statistics}, flat, method="embed")
        return out, updated["batch_stats"], target

    out, updated, target = outputs(state, run.records["train"].image[ids], ids)
    return types.SimpleNamespace(
        run=run, state=state, memory=memory, ids=ids, out=out, updated=updated, target=target,
        new_state=jax.device_get(new_state), new_memory=jax.device_get(new_memory), metrics=means([sums]),
    )  # fmt: skip


def by_view(x):
    """Returns float64 [T, B, D]."""
    return np.asarray(x, np.float64).reshape(2, -1, x.shape[-1])


def test_losses_equal_the_twins_for_the_outputs_of_the_networks(grafit_step):
    s = grafit_step
    label, slots = s.run.records["train"].train_label, s.memory
    # Eq. 2-3 for the first view, with the memory before the step.
    first = by_view(s.out.projection)[0]
    expected = twins.knn_loss(first, label[s.ids], slots.embedding[0], slots.label[0], temperature=0.05, own_slot=s.ids)
    np.testing.assert_allclose(s.metrics["knn_loss"], np.mean(expected), rtol=1e-4)
    # Eq. 1: target network in train mode, same views, statistics of its own batch.
    expected = twins.instance_loss(by_view(s.out.prediction), by_view(s.target.projection))
    np.testing.assert_allclose(s.metrics["instance_loss"], np.mean(expected), rtol=1e-4)
    np.testing.assert_allclose(s.metrics["loss"], s.metrics["knn_loss"] + s.metrics["instance_loss"], rtol=1e-5)


def test_memory_is_updated_with_the_first_view_after_scoring(grafit_step):
    s = grafit_step
    first = by_view(s.out.projection)[0]
    expected = twins.memory_update(s.memory.embedding[0], s.ids, first, momentum=0.5)
    np.testing.assert_allclose(s.new_memory.embedding[0], expected, atol=1e-5)


def test_target_follows_the_updated_network_and_keeps_no_statistics(grafit_step):
    s = grafit_step
    # BYOL's schedule at step 1 of 28, from 0.996.
    tau = 1 - (1 - 0.996) * (np.cos(np.pi * 1 / s.run.total_steps) + 1) / 2
    old, new = s.state, s.new_state
    assert set(new.target_params) == {"trunk", "projector"}
    for name in ("trunk", "projector"):
        expected = jax.tree.map(
            lambda xi, theta: tau * xi + (1 - tau) * theta, old.target_params[name], new.params[name]
        )
        assert_close(new.target_params[name], expected, rtol=1e-5, atol=1e-7)
    # Running statistics come from the online network only; the target's, which differ much here, are not used.
    assert_close(new.batch_stats, dict(s.updated), rtol=1e-4, atol=1e-6)


def test_target_never_uses_running_statistics():
    _, state, memory, inputs, call = start(small_config())
    state = jax.device_get(state)
    metrics = []
    for shift in (0.0, 3.0):
        shifted = state.replace(batch_stats=jax.tree.map(lambda x, s=shift: x + s, state.batch_stats))
        fresh = parallel.shard(jax.device_get(memory))
        metrics.append(means([call(parallel.replicate(shifted), fresh, inputs)[2]]))
    assert metrics[0]["instance_loss"] == metrics[1]["instance_loss"]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_the_metrics_and_the_state_of_its_losses(method):
    run = experiment.load(small_config(method, **{"model.sync_batch_norm": False, "memory.init": "random"}))
    images = run.records["train"].image[:4]
    batch = {"image": images, "label": np.array([0, 1, 0, 1]), "id": np.arange(4)}

    def one_step():
        state, memory = restore.initial(run)
        memory = jax.tree.map(lambda x: x[0], memory)
        step = train_step.make_train_step(run, axis_name=None)
        return step(state, memory, batch, state.rng)

    state, memory, metrics = jax.eval_shape(one_step)
    expected = {"loss", "gradient_norm"}
    of_instances = ("byol", "grafit_fc", "grafit", "grafit_cosine")
    of_neighbours = ("snca", "snca_plus", "grafit", "grafit_cosine")
    expected |= {"instance_loss"} if method in of_instances else set()
    expected |= {"knn_loss", "without_positive"} if method in of_neighbours else set()
    classified = method in ("baseline", "baseline_mlp", "grafit_fc", "grafit_cosine")
    expected |= {"cross_entropy", "coarse_accuracy"} if classified else set()
    assert set(metrics) == expected
    assert (memory is not None) == (method in of_neighbours)
    assert bool(state.target_params) == (method in of_instances)


@pytest.mark.slow
def test_byol_ignores_labels():
    _, state, memory, inputs, call = start(small_config("byol"))
    state = jax.device_get(state)
    params = []
    data, order = inputs
    for labels in (data["label"], 1 - data["label"]):
        new_state, _, _ = call(parallel.replicate(state), memory, (data | {"label": labels}, order))
        params.append(jax.device_get(new_state.params))
    jax.tree.map(np.testing.assert_array_equal, *params)


def test_a_cosine_classifier_is_scored_at_the_temperature_of_the_neighbours():
    # The projection has cosine 1 with the weights of class 0 and 0 with those of class 1, of any length.
    head = Cosine(2)
    logits = head.apply({"params": {"kernel": jnp.array([[3.0, 0.0], [0.0, 0.1]])}}, jnp.array([[5.0, 0.0]]))
    np.testing.assert_allclose(logits, [[1, 0]], atol=1e-6)
    projection = jnp.array([[1.0, 0.0]])
    out = Outputs(features=projection, projection=projection, prediction=jnp.tile(projection, (2, 1)), logits=logits)
    memory = Memory(embedding=jnp.eye(2), label=jnp.array([0, 1]))
    batch = {"label": jnp.array([0]), "id": jnp.array([-1])}
    loss = types.SimpleNamespace(instance_weight=0.0, maskcon_weight=1.0, temperature=0.5, label_smoothing=0.0)
    objective = Objective(methods.get("grafit_cosine"), loss, 2, None)
    per_example, terms = objective(out, jnp.tile(projection, (2, 1)), batch, memory, None)
    each = np.log(1 + np.exp(-2))  # of the neighbours, and of the classifier
    np.testing.assert_allclose(per_example, [2 * each], rtol=1e-5)
    np.testing.assert_allclose([terms["cross_entropy"][0], terms["coarse_accuracy"][0]], [each, 1], rtol=1e-5)


@pytest.mark.parametrize(("method", "knn_loss"), [("byol", 0.0), ("grafit", 0.3132617)])
def test_lambda_weighs_the_instance_loss(method, knn_loss):
    # Each prediction equals the other view's target: the instance loss is -1. At temperature 1, the memory row of the
    # image's class has cosine 1 and the other one 0: the k-NN loss is log(1 + 1/e).
    views = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    out = Outputs(features=views, projection=views, prediction=views)
    memory = Memory(embedding=views, label=jnp.array([0, 1]))
    batch = {"label": jnp.array([0]), "id": jnp.array([-1])}
    loss = types.SimpleNamespace(instance_weight=0.3, maskcon_weight=1.0, temperature=1.0)
    per_example, terms = Objective(methods.get(method), loss, 2, None)(out, views[::-1], batch, memory, None)
    np.testing.assert_allclose(per_example, [knn_loss - 0.3], atol=1e-6)
    np.testing.assert_allclose(terms["instance_loss"], [-1, 1], rtol=1e-6)


def test_a_step_on_several_levels_has_the_loss_of_each():
    # The first step has the same views, network and memory at every level.
    def metrics(level, **options):
        return after(small_config("snca", **{"data.train_level": level} | options), steps=1)[3]

    several = metrics("fine", **{"loss.levels": ("coarse", "fine"), "loss.level_weights": (0.25, 1.0)})
    coarse, fine = (metrics(level)["knn_loss"] for level in ("coarse", "fine"))
    assert several["knn_loss_coarse"] == pytest.approx(coarse, rel=1e-5)
    assert several["knn_loss_fine"] == pytest.approx(fine, rel=1e-5)
    assert several["loss"] == pytest.approx(0.25 * coarse + fine, rel=1e-5)


def test_the_knn_losses_of_several_levels_are_summed():
    rng = np.random.default_rng(0)
    projection, embedding = (rng.normal(size=(n, 4)).astype(np.float32) for n in (6, 20))
    fine, of_memory = rng.integers(0, 5, 6), np.append(rng.integers(0, 5, 18), [-1, -1])  # two empty slots
    coarse_of = np.array([1, 0, 1, 0, 0], np.int32)
    levels = (KnnLevel("coarse", 0.25, coarse_of), KnnLevel("fine", 1.0, np.arange(5, dtype=np.int32)))
    own = np.arange(6)
    expected = {
        "fine": twins.knn_loss(projection, fine, embedding, of_memory, temperature=0.2, own_slot=own),
        "coarse": twins.knn_loss(
            projection, coarse_of[fine], embedding, np.where(of_memory < 0, -1, coarse_of[of_memory]),
            temperature=0.2, own_slot=own,
        ),
    }  # fmt: skip
    loss = types.SimpleNamespace(instance_weight=1.0, maskcon_weight=1.0, temperature=0.2)
    objective = Objective(methods.get("snca_plus"), loss, 1, None, levels)
    memory = Memory(embedding=jnp.asarray(embedding), label=jnp.asarray(of_memory))
    out = Outputs(features=jnp.asarray(projection), projection=jnp.asarray(projection))
    per_example, terms = objective(out, None, {"label": jnp.asarray(fine), "id": jnp.asarray(own)}, memory, None)
    np.testing.assert_allclose(per_example, expected["fine"] + 0.25 * expected["coarse"], rtol=1e-5)
    for name, values in expected.items():
        mean, count = terms[f"knn_loss_{name}"][0] / terms[f"knn_loss_{name}"][1], terms[f"without_positive_{name}"][1]
        np.testing.assert_allclose(mean, np.mean(values), rtol=1e-5)
        assert count == 6


def test_gradients_are_averaged_over_two_devices():
    # vmap replaces pmap: it has the same collectives and needs no second device.
    run = experiment.load(small_config("baseline"))
    state = jax.device_get(restore.initial_state(run))
    records, ids = run.records["train"], np.arange(16)
    batch = {"image": records.image[ids], "label": records.train_label[ids], "id": ids}

    def after(devices):
        split = {name: x.reshape(devices, -1, *x.shape[1:]) for name, x in batch.items()}
        step = jax.vmap(train_step.make_train_step(run), in_axes=(None, None, 0, None), axis_name=parallel.AXIS)
        new, _, terms = jax.jit(step)(state, None, split, state.rng)
        return jax.tree.map(lambda x: np.asarray(x)[-1], (new.params, new.batch_stats, terms))

    assert_close(after(2), after(1), rtol=1e-3, atol=1e-5)
