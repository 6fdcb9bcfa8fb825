"""The training step of one device, and its mapping over all devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from grafit_jax import memory as memory_lib
from grafit_jax import optimizer, parallel
from grafit_jax.data.pipeline import Resident, Streamed
from grafit_jax.experiment import Experiment
from grafit_jax.memory import Memory
from grafit_jax.objective import Objective, Totals
from grafit_jax.parallel import AXIS
from grafit_jax.state import TrainState, merged, target_part
from grafit_jax.views import augment
from grafit_jax.views.mixing import mix

Step = Callable[[TrainState, Memory | None, dict[str, Array], Array], tuple[TrainState, Memory | None, Totals]]
# (batch statistics, batch) -> (gradient of the mean loss, batch statistics, totals, arrays with a row per example)
Gradient = Callable[[Any, dict[str, Array]], tuple[Any, Any, Totals, dict[str, Any]]]

# Folded into a step's PRNG key for the views of the momentum encoder's keys, which must differ from the queries'.
_KEY_VIEW = 0x6B6579
# Folded into a step's PRNG key for the mixing of images.
_MIX_KEY = 0x6D6978
# The same for the draws of drop path.
_DROP_PATH_KEY = 0x64726F70


def make_train_step(run: Experiment, *, axis_name: str | None = AXIS) -> Step:
    """Returns the pure per-device step of a run, `(state, memory, batch, rng) -> (state, memory, metrics)`.

    A batch has the B examples of the device: image uint8 [B, H, W, C], label int32 [B] (coarse class or cluster) and id
    int32 [B]. With crops on the host, image is [B, T, S, S, C], one crop per view, with the views of keys last.

    Without a queue, the instance loss and the target network use all T views of an image, and the supervised loss uses
    the first (appendix B.1). With a queue, the online network embeds one view, the query, and the target network
    another, the key, made by `run.key_views`. Each network runs once over all of its views. The target network
    normalises with the statistics of its own batch, as in BYOL and MaskCon, and keeps no running averages.

    Frozen layers get no gradient and no update, and both networks share their weights. With `model.freeze` = trunk,
    they share its features, too. Where norms are frozen, both networks use the online network's running averages.
    With `model.drop_path`, the online network drops branches, by draws of its own for each view; the target network
    keeps all of them.

    With `train.microbatches`, steps 1 to 3 below run over one part of the device's examples after another: batch norms
    take their statistics from a part, and losses see memory and queue as they were before the step.

    With `train.skip_not_finite`, a step whose loss or gradient is not finite changes only the step counts, and is
    counted as `skipped`.
    """
    config, network, method = run.config, run.network, run.method
    num_views = config.views.num_views if method.instance == "predict" else 1
    mixed = bool(config.mixing.mixup or config.mixing.cutmix)
    objective = Objective(method, config.loss, num_views, axis_name, run.knn_levels)
    # A frozen trunk is a fixed function: its features, computed once, are the input of both networks.
    frozen = network.trunk.frozen
    whole, embed = ("heads", "project") if frozen else ("__call__", "embed")

    def step(state, memory, batch, rng):
        memory_before, trained = memory, network.trained(state.params)
        key = jax.random.fold_in(rng, state.step)

        def inputs(images: Array) -> Any:
            return network.apply(state.variables, images, method="features") if frozen else images

        def gradient(batch_stats, batch):
            # 1. Views. Draws are keyed by (seed, step, image id, view), so they do not depend on the device.
            image = batch["image"]
            for_queries, for_keys = (image[:, :num_views], image[:, num_views:]) if image.ndim == 5 else (image, image)
            images = _flat_views(for_queries, batch["id"], key, run.views, num_views)
            if mixed:
                partners = jax.random.fold_in(key, _MIX_KEY)
                images, other_label, share = mix(
                    images, batch["label"], batch["id"], partners, **config.mixing, axis_name=axis_name
                )
                batch = batch | {"other_label": other_label, "share": share}
            x, options = inputs(images), dict[str, Any]()
            if network.trunk.drop_path and not frozen:
                options["draws"] = _flat_draws(batch["id"], key, num_views, network.trunk.num_blocks)

            # 2. Targets g_xi(t_j(x)), or keys, outside the differentiated function.
            targets = None
            if method.uses_target:
                seen = x
                if run.key_views is not None:
                    own_key = jax.random.fold_in(key, _KEY_VIEW)
                    seen = inputs(_flat_views(for_keys, batch["id"], own_key, run.key_views, 1))
                params = merged(state.target_params, target_part(state.params))
                variables = {"params": params, "batch_stats": target_part(state.batch_stats)}
                out, _ = network.apply(variables, seen, train=True, mutable=["batch_stats"], method=embed)
                targets = out.projection

            # 3. The loss of these examples, and its gradient. The only collectives are those of batch norms and of the
            # k-NN loss, which define their gradients: any other psum would multiply gradients by the device count.
            def loss_fn(trained):
                variables = {"params": merged(trained, state.params), "batch_stats": batch_stats}
                out, updated = network.apply(variables, x, train=True, mutable=["batch_stats"], method=whole, **options)
                kernel = variables["params"].get("classifier", {}).get("kernel")
                class_weights = None if kernel is None else kernel.T
                per_example, terms = objective(out, targets, batch, memory, state.queue, class_weights)
                projection = None if out.projection is None else out.projection[: len(batch["id"])]
                return jnp.mean(per_example), (merged(updated.get("batch_stats", {}), batch_stats), terms, projection)

            grads, (batch_stats, terms, projection) = jax.grad(loss_fn, has_aux=True)(trained)
            rows = {"projection": projection, "key": None if state.queue is None else targets}
            return grads, batch_stats, terms, rows

        parts = config.train.microbatches
        grads, batch_stats, terms, rows = _over_parts(gradient, trained, state.batch_stats, batch, parts)

        # 4. Mean over the devices, also of per-device batch statistics.
        adapted = network.adapted(batch_stats)
        if axis_name is not None:
            grads, adapted = lax.pmean((grads, adapted), axis_name)
            terms = lax.psum(terms, axis_name)

        # 5. Update theta, then xi <- tau xi + (1 - tau) theta, then memory or queue, after they were scored. MaskCon's
        # code updates xi before the forward pass, which is the same: xi starts as theta, so its first update has no
        # effect, and each later one is the update at the end of the previous step here.
        updates, opt_state = run.tx.update(grads, state.opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        target_params, queue = state.target_params, state.queue
        if method.uses_target:
            target_params = optax.incremental_update(target_part(trained), target_params, 1.0 - run.tau(state.step))
        if queue is not None:
            queue = memory_lib.enqueue(queue, rows["key"], batch["label"], step=state.step, axis_name=axis_name)
        if memory is not None:
            memory = memory_lib.update(
                memory, batch["id"], rows["projection"], momentum=run.memory_momentum(state.step), axis_name=axis_name
            )
        terms["gradient_norm"] = (optax.tree.norm(grads), jnp.ones(()))
        after = state.replace(
            step=state.step + 1,
            params=merged(trained, state.params),
            target_params=target_params,
            batch_stats=merged(adapted, state.batch_stats),
            opt_state=opt_state,
            queue=queue,
        )
        if not config.train.skip_not_finite:
            return after, memory, terms
        # The same on all devices, since the loss is a psum and the gradient a pmean.
        finite = jnp.isfinite(terms["loss"][0]) & jnp.isfinite(terms["gradient_norm"][0])
        terms = jax.tree.map(lambda x: jnp.where(finite, x, 0.0), terms)
        terms["skipped"] = (1.0 - finite, jnp.ones(()))
        # A skipped step advances the count of the schedule too, so that the learning rate follows `state.step`.
        before = (
            state.replace(step=after.step, opt_state=optimizer.skipped(opt_state, state.opt_state)),
            memory_before,
        )
        state, memory = jax.tree.map(lambda new, old: jnp.where(finite, new, old), (after, memory), before)
        return state, memory, terms

    return step


def _flat_views(images: Array, ids: Array, key: Array, views: augment.Views, num_views: int) -> Array:
    """Returns float32 [T*B, S, S, C], ordered by view."""
    images = augment.random_views(images, ids, key, views=views, num_views=num_views)
    return images.reshape(-1, *images.shape[2:])


def _flat_draws(ids: Array, key: Array, num_views: int, number: int) -> Array:
    """Returns uniform draws for drop path, float32 [T*B, number], ordered by view and keyed as those of views are."""

    def draws(view, id_):
        of_image = jax.random.fold_in(jax.random.fold_in(key, _DROP_PATH_KEY), id_)
        return jax.random.uniform(jax.random.fold_in(of_image, view), (number,))

    views, ids = jnp.repeat(jnp.arange(num_views), len(ids)), jnp.tile(ids, num_views)
    return jax.vmap(draws)(views, ids)


def _over_parts(
    gradient: Gradient, trained: Any, batch_stats: Any, batch: dict[str, Array], count: int
) -> tuple[Any, Any, Totals, dict[str, Any]]:
    """Applies `gradient` to `count` equal parts of a device's batch, one after the other.

    Returns:
      The mean gradient, the batch statistics after the last part, the sum of the totals, and the rows of the batch.
    """
    if count == 1:
        return gradient(batch_stats, batch)
    parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)

    def body(carry, part):
        total, batch_stats = carry
        grads, batch_stats, terms, rows = gradient(batch_stats, part)
        return (jax.tree.map(jnp.add, total, grads), batch_stats), (terms, rows)

    nothing = jax.tree.map(jnp.zeros_like, trained)
    # Unrolled on CPU, where XLA's convolutions are slow inside a loop, see `pmap_steps`.
    unroll = jax.default_backend() == "cpu"
    (total, batch_stats), (terms, rows) = lax.scan(body, (nothing, batch_stats), parts, unroll=unroll)
    grads = jax.tree.map(lambda x: x / count, total)
    terms = jax.tree.map(lambda x: jnp.sum(x, axis=0), terms)
    return grads, batch_stats, terms, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)


def pmap_steps(run: Experiment, feed: Resident | Streamed, steps: int | None = None) -> Any:
    """Returns `(state, memory, inputs) -> (state, memory, metrics)`, which scans over several steps on all devices.

    Each device takes its part of every batch from `inputs`, an item of `feed`. State and memory are donated.

    Args:
      run: the run.
      feed: the batches of the run.
      steps: number of steps, for the last call of an epoch; None = `feed.steps_per_call`.
    """
    step, count = make_train_step(run), feed.steps_per_call if steps is None else steps

    def call(state, memory, inputs):
        def body(carry, _):
            state, memory = carry
            state, memory, metrics = step(state, memory, feed.batch_of(inputs, state.step), state.rng)
            return (state, memory), metrics

        if count == 1:
            # No scan for one step: XLA's CPU convolutions are about 15 times slower inside a loop (jax issue 12868).
            (state, memory), metrics = body((state, memory), None)
            return state, memory, metrics
        (state, memory), metrics = lax.scan(body, (state, memory), length=count)
        return state, memory, jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)

    # State and metrics are replicated (axis None), since all of their values come from a pmean or psum.
    return parallel.pmap(
        call, in_axes=(None, 0, feed.in_axes), out_axes=(None, 0, None), donate_argnums=(0, 1), everywhere=True
    )
