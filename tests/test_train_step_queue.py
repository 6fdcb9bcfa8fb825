"""The training step of methods with a queue: losses, queue, momentum encoder."""

import dataclasses
import functools
import types

import jax
import numpy as np
import pytest

from grafit_jax import experiment, methods, parallel, restore, train_step
from grafit_jax import state as state_lib
from grafit_jax.views import augment
from helpers import twins
from helpers.devices import use_devices
from helpers.runs import assert_close, means, small_config

METHODS = (
    "selfcon", "supcon", "supce", "grafit_maskcon", "coins", "maskcon", "spread", "ancor", "grafit_own_class",
    "knn_queue",
)  # fmt: skip
TERMS = {"info_nce", "supcon", "maskcon", "spread", "angular", "own_class", "cross_entropy", "knn_loss"}
FAST = ("coins", "maskcon", "ancor", "knn_queue")
# A method with memory and queue, which METHODS lacks.
BOTH = methods.Method("knn_queue", "knn", "info_nce")
BATCH, QUEUE = 64, 150  # not a multiple


@pytest.fixture(scope="module", autouse=True)
def with_both():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(methods.METHODS, BOTH.name, BOTH)
        yield


def config(method, **options):
    return small_config(
        method,
        **{
            "model.head_batch_norm": False,
            "queue.size": QUEUE,
            "loss.temperature": 0.1,
            "loss.maskcon_weight": 0.3,
            "loss.instance_weight": 2.0,
            "ema.base": 0.9,
            "ema.final": 0.9,
            "key_views.crop_scale": (1.0, 1.0),
            "key_views.flip_prob": 0.0,
            "optimizer.learning_rate": 0.4,
        }
        | options,
    )


def start(config):
    run = experiment.load(config)
    state, memory = restore.initial(run)
    feed = experiment.make_feed(run)
    assert (memory is not None) == (config.method in ("knn_queue", "grafit_own_class"))
    return run, state, memory, next(iter(feed.epoch(0))), train_step.pmap_steps(run, feed)


@pytest.fixture(
    scope="module",
    params=[pytest.param(m, marks=() if m in FAST else pytest.mark.slow) for m in METHODS],
)
def one_step(request):
    """A second step, from a state whose momentum encoder differs much from the network, with its inputs and outputs.

    Attributes:
      state, memory: before the step; `new`, `new_memory`: after it; `metrics`: of the step.
      ids: of its images; `label`: their coarse classes.
      out, updated: the online network's outputs for the queries, in train mode, and its batch statistics.
      keys: the momentum encoder's projections of the keys, in train mode; None for a method without one.
    """
    run, state, memory, inputs, call = start(config(request.param, **{"model.sync_batch_norm": False}))
    state, memory = jax.device_get(call(state, memory, inputs)[:2])
    moved = jax.tree.map(lambda x: x * 1.1 + 0.01, state.target_params)
    state = dataclasses.replace(state, target_params=moved)
    copies = jax.tree.map(np.copy, (state, memory))
    new, new_memory, sums = call(parallel.replicate(copies[0]), parallel.shard(copies[1]), inputs)
    ids = np.asarray(inputs[1])[0, 1]

    @jax.jit
    def outputs(state, images, ids):
        query = augment.random_views(images, ids, jax.random.fold_in(state.rng, 1), views=run.views, num_views=1)[0]
        apply = functools.partial(run.network.apply, train=True, mutable=["batch_stats"])
        out, updated = apply({"params": state.params, "batch_stats": state.batch_stats}, query)
        if not state.target_params:
            return out, updated["batch_stats"], None
        # Keys are whole images here, so their views need no draws.
        target = {"params": state.target_params, "batch_stats": state_lib.target_part(state.batch_stats)}
        keys, _ = apply(target, augment.plain_view(images, views=run.views), method="embed")
        return out, updated["batch_stats"], keys.projection

    out, updated, keys = outputs(state, run.records["train"].image[ids], ids)
    return types.SimpleNamespace(
        run=run, state=state, ids=ids, label=run.records["train"].train_label[ids], out=out, updated=updated,
        keys=keys, new=jax.device_get(new), metrics=means([sums]), memory=memory, new_memory=jax.device_get(new_memory),
    )  # fmt: skip


def test_losses_equal_the_twins_for_the_outputs_of_the_networks(one_step):
    s = one_step
    terms = {}
    if s.keys is not None:
        arrays = s.out.projection, s.keys, s.state.queue.embedding
        labels = s.label, s.state.queue.label
        terms |= {
            "info_nce": twins.info_nce(*arrays, 0.1),
            "supcon": twins.supcon_queue(*arrays, *labels, 0.1),
            "maskcon": twins.maskcon(*arrays, *labels, 0.1, 0.05, 0.3),
            "spread": twins.spread(*arrays, *labels, 0.1, 0.3),
            "own_class": twins.own_class_info_nce(*arrays, *labels, 0.1),
        }
        if s.run.method.name == "ancor":
            weights = s.state.params["classifier"]["kernel"].T
            terms["angular"] = twins.angular_info_nce(*arrays, *labels, weights, 0.1)
    if s.memory is not None:
        slots = s.memory.embedding[0], s.memory.label[0]
        terms["knn_loss"] = twins.knn_loss(s.out.projection, s.label, *slots, temperature=0.1, own_slot=s.ids)
    if s.out.logits is not None:
        terms["cross_entropy"] = twins.cross_entropy(s.out.logits, s.label)
    found = set(s.metrics) & TERMS
    for name in found:
        np.testing.assert_allclose(s.metrics[name], np.mean(terms[name]), rtol=1e-4, err_msg=name)
    # docs/paper.md section 3 with w = 0.3, and Eq. 4 with lambda = 2.
    mixture = {
        "selfcon": {"info_nce": 1.0},
        "supcon": {"supcon": 1.0},
        "supce": {"cross_entropy": 1.0},
        "grafit_maskcon": {"supcon": 0.3, "info_nce": 0.7},
        "coins": {"cross_entropy": 0.3, "info_nce": 0.7},
        "maskcon": {"maskcon": 1.0},
        "spread": {"spread": 1.0},
        "ancor": {"cross_entropy": 1.0, "angular": 2.0},
        "knn_queue": {"knn_loss": 1.0, "info_nce": 2.0},
        "grafit_own_class": {"knn_loss": 1.0, "own_class": 2.0},
    }[s.run.method.name]
    assert found == set(mixture)
    expected = sum(weight * np.mean(terms[name]) for name, weight in mixture.items())
    np.testing.assert_allclose(s.metrics["loss"], expected, rtol=1e-4)


def test_queue_and_momentum_encoder_are_updated_after_scoring(one_step):
    s = one_step
    state, new = s.state, s.new
    if not s.run.method.uses_queue:
        assert state.queue is None and new.queue is None and not new.target_params
        return
    expected, label = np.array(state.queue.embedding), np.array(state.queue.label)
    place = (BATCH + np.arange(BATCH)) % QUEUE  # the second batch
    expected[place], label[place] = twins.unit(s.keys), s.label
    np.testing.assert_allclose(new.queue.embedding, expected, atol=1e-5)
    np.testing.assert_array_equal(new.queue.label, label)
    for name in ("trunk", "projector"):
        follows = jax.tree.map(lambda xi, theta: 0.9 * xi + 0.1 * theta, state.target_params[name], new.params[name])
        assert_close(new.target_params[name], follows, rtol=1e-4, atol=1e-6)
    # Statistics come from the online network only.
    assert_close(new.batch_stats, dict(s.updated), rtol=1e-4, atol=1e-6)


def test_memory_is_updated_with_the_query_after_scoring(one_step):
    s = one_step
    if s.memory is None:
        assert s.new_memory is None
        return
    expected = twins.memory_update(s.memory.embedding[0], s.ids, s.out.projection, momentum=0.5)
    np.testing.assert_allclose(s.new_memory.embedding[0], expected, atol=1e-5)


def test_heads_of_a_method(one_step):
    run, state = one_step.run, one_step.state
    both = {"projector", "classifier"}
    heads = {"supce": {"classifier"}, "coins": both, "ancor": both}.get(run.method.name, {"projector"})
    assert set(state.params) == {"trunk"} | heads
    if "classifier" in heads:
        # Its input is the trunk's features, or for ANCOR the ReLU of the projection.
        out = one_step.out
        seen = np.maximum(out.projection, 0) if run.method.name == "ancor" else out.features
        expected = seen @ state.params["classifier"]["kernel"] + state.params["classifier"]["bias"]
        np.testing.assert_allclose(out.logits, expected, rtol=1e-4, atol=1e-5)
    if "projector" in heads:  # two linear layers with biases, no batch norm
        assert {k: set(v) for k, v in state.params["projector"].items()} == {
            "Dense_0": {"kernel", "bias"},
            "Dense_1": {"kernel", "bias"},
        }


@pytest.mark.parametrize("method", ["ancor", "maskcon", "knn_queue"])
def test_eight_devices_compute_the_steps_of_one(method, monkeypatch, eight_devices):
    def after(steps):
        _, state, memory, inputs, call = start(config(method))
        totals = []
        for _ in range(steps):
            state, memory, sums = call(state, memory, inputs)
            totals.append(sums)
        for leaf in jax.tree.leaves(state.queue):  # replicated
            first, *others = (np.asarray(shard.data) for shard in leaf.addressable_shards)
            for other in others:
                np.testing.assert_array_equal(other, first)
        return jax.device_get(state), means(totals)

    state8, metrics8 = after(3)
    use_devices(monkeypatch, 1)
    state1, metrics1 = after(3)
    for name in metrics1:
        np.testing.assert_allclose(metrics8[name], metrics1[name], rtol=2e-4, err_msg=name)
    np.testing.assert_array_equal(state8.queue.label, state1.queue.label)
    assert_close(state8, state1, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_query_and_key_are_views_with_their_own_augmentations(monkeypatch):
    drawn, made = [], {}
    random_views = augment.random_views

    def noted(images, ids, key, *, views, num_views):
        out = random_views(images, ids, key, views=views, num_views=num_views)
        drawn.append((views, num_views))
        jax.debug.callback(functools.partial(made.setdefault, len(drawn)), out)
        return out

    monkeypatch.setattr(augment, "random_views", noted)
    crops = {f"{side}.crop_scale": (0.2, 0.5) for side in ("views", "key_views")}
    options = {"views.jitter": (0.1, 0, 0, 0), "views.num_views": 5, "model.sync_batch_norm": False}
    run = experiment.load(config("selfcon", **crops, **options))
    records = run.records["train"]
    batch = {"image": records.image[:8], "label": records.train_label[:8], "id": np.arange(8)}
    state = restore.initial_state(run, placeholder=True)
    jax.block_until_ready(jax.jit(train_step.make_train_step(run, axis_name=None))(state, None, batch, state.rng))
    (query, one), (key, other) = drawn
    assert one == other == 1  # for any T
    assert (query.jitter, key.jitter) == ((0.1, 0, 0, 0), (0, 0, 0, 0))
    assert (key.size, key.mean, key.std) == (query.size, query.mean, query.std)
    # Same crop distribution, different draws: otherwise the two views would be identical.
    assert np.abs(np.asarray(made[1]) - np.asarray(made[2])).max(axis=(0, 2, 3, 4)).min() > 0.3


def test_initial_queue_has_embeddings_of_training_images():
    for size, repeated in ((150, 1), (2000, 3)):  # of 899 images
        run = experiment.load(config("selfcon", **{"queue.size": size}))
        state = restore.initial_state(run)
        embedded = twins.unit(run.embed_fn(state.variables, run.records["train"].image)["projector"])
        similarity = np.asarray(state.queue.embedding, np.float64) @ embedded.T
        image = similarity.argmax(1)
        np.testing.assert_allclose(similarity.max(1), 1, atol=1e-5)
        np.testing.assert_array_equal(run.records["train"].train_label[image], state.queue.label)
        assert np.bincount(image).max() == repeated


def test_weight_decay_on_everything_and_plain_momentum():
    params = {"kernel": np.full((2, 2), 1.0, np.float32), "bias": np.full(2, 1.0, np.float32)}
    zero = jax.tree.map(np.zeros_like, params)
    base = {"optimizer.weight_decay": 0.1, "optimizer.learning_rate": 1.0, "train.batch_size": 256, "queue.size": 256}
    for decay_all, nesterov, bias, second in (
        (True, False, 0.1, 0.19),
        (False, False, 0.0, 0.0),
        (True, True, 0.19, 0),
    ):
        options = base | {"optimizer.decay_all": decay_all, "optimizer.nesterov": nesterov}
        tx = experiment.load(config("selfcon", **options)).tx
        updates, opt_state = tx.update(zero, tx.init(params), params)
        # Learning rate 1 at step 0 and gradient 0.1; Nesterov momentum adds 0.9 of it.
        np.testing.assert_allclose(updates["bias"], -bias, rtol=1e-5)
        np.testing.assert_allclose(updates["kernel"], -(0.19 if nesterov else 0.1), rtol=1e-5)
        if not nesterov:  # 0.9 of the first update plus the gradient, times a rate just below 1
            updates, _ = tx.update(zero, opt_state, params)
            np.testing.assert_allclose(updates["bias"], -second, rtol=0.2)


def test_queries_and_keys_have_different_draws(monkeypatch):
    keys = []

    def noted(images, ids, key, **_):
        keys.append(np.asarray(key))
        if len(keys) == 2:
            raise InterruptedError  # stop before a network is applied
        return images[None]

    monkeypatch.setattr(augment, "random_views", noted)
    run = experiment.load(config("selfcon"))
    records, state = run.records["train"], types.SimpleNamespace(step=3, params={}, batch_stats={})
    batch = {"image": records.image[:8], "label": records.train_label[:8], "id": np.arange(8)}
    with pytest.raises(InterruptedError):
        train_step.make_train_step(run, axis_name=None)(state, None, batch, jax.random.PRNGKey(0))
    assert not np.array_equal(*keys)
