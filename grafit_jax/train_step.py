"""The training step of one device, and its mapping over all devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from grafit_jax import memory as memory_lib
from grafit_jax import parallel
from grafit_jax.data.pipeline import Resident, Streamed
from grafit_jax.experiment import Experiment
from grafit_jax.memory import Memory
from grafit_jax.objective import Objective, Totals
from grafit_jax.parallel import AXIS
from grafit_jax.state import TrainState, target_part
from grafit_jax.views import augment
from grafit_jax.views.mixing import mix

Step = Callable[[TrainState, Memory | None, dict[str, Array], Array], tuple[TrainState, Memory | None, Totals]]

# Folded into a step's PRNG key for the views of the momentum encoder's keys, which must differ from the queries'.
_KEY_VIEW = 0x6B6579
# Folded into a step's PRNG key for the mixing of images.
_MIX_KEY = 0x6D6978


def make_train_step(run: Experiment, *, axis_name: str | None = AXIS) -> Step:
    """Returns the pure per-device step of a run, `(state, memory, batch, rng) -> (state, memory, metrics)`.

    A batch has the B examples of the device: image uint8 [B, H, W, C], label int32 [B] (coarse class or cluster) and id
    int32 [B]. With crops on the host, image is [B, T, S, S, C], one crop per view, with the views of keys last.

    Without a queue, the instance loss and the target network use all T views of an image, and the supervised loss uses
    the first (appendix B.1). With a queue, the online network embeds one view, the query, and the target network
    another, the key, made by `run.key_views`. Each network runs once over all of its views. The target network
    normalises with the statistics of its own batch, as in BYOL and MaskCon, and keeps no running averages.

    With `train.skip_not_finite`, a step whose loss or gradient is not finite changes only the step counts, and is
    counted as `skipped`.
    """
    config, network, method = run.config, run.network, run.method
    num_views = config.views.num_views if method.instance == "predict" else 1
    mixed = bool(config.mixing.mixup or config.mixing.cutmix)
    objective = Objective(method, config.loss, num_views, axis_name)

    def step(state, memory, batch, rng):
        memory_before = memory
        # 1. Views. Draws are keyed by (seed, step, image id, view), so they do not depend on the device.
        key = jax.random.fold_in(rng, state.step)
        image = batch["image"]
        for_queries, for_keys = (image[:, :num_views], image[:, num_views:]) if image.ndim == 5 else (image, image)
        images = _flat_views(for_queries, batch["id"], key, run.views, num_views)
        if mixed:
            partners = jax.random.fold_in(key, _MIX_KEY)
            images, other_label, share = mix(
                images, batch["label"], batch["id"], partners, **config.mixing, axis_name=axis_name
            )
            batch = batch | {"other_label": other_label, "share": share}

        # 2. Targets g_xi(t_j(x)), or keys, outside the differentiated function.
        targets = None
        if method.uses_target:
            seen = images
            if run.key_views is not None:
                seen = _flat_views(for_keys, batch["id"], jax.random.fold_in(key, _KEY_VIEW), run.key_views, 1)
            variables = {"params": state.target_params, "batch_stats": target_part(state.batch_stats)}
            out, _ = network.apply(variables, seen, train=True, mutable=["batch_stats"], method="embed")
            targets = out.projection

        # 3. The loss of this device's examples, and its gradient. The only collectives are those of batch norms and of
        # the k-NN loss, which define their gradients: any other psum would multiply gradients by the device count.
        def loss_fn(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            out, updated = network.apply(variables, images, train=True, mutable=["batch_stats"])
            per_example, terms = objective(out, targets, batch, memory, state.queue)
            projection = None if out.projection is None else out.projection[: len(batch["id"])]
            return jnp.mean(per_example), (updated["batch_stats"], terms, projection)

        grads, (batch_stats, terms, projection) = jax.grad(loss_fn, has_aux=True)(state.params)

        # 4. Mean over the devices, also of per-device batch statistics.
        if axis_name is not None:
            grads, batch_stats = lax.pmean((grads, batch_stats), axis_name)
            terms = lax.psum(terms, axis_name)

        # 5. Update theta, then xi <- tau xi + (1 - tau) theta, then memory or queue, after they were scored. MaskCon's
        # code updates xi before the forward pass, which is the same: xi starts as theta, so its first update has no
        # effect, and each later one is the update at the end of the previous step here.
        updates, opt_state = run.tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        target_params, queue = state.target_params, state.queue
        if method.uses_target:
            target_params = optax.incremental_update(target_part(params), target_params, 1.0 - run.tau(state.step))
        if queue is not None and targets is not None:
            queue = memory_lib.enqueue(queue, targets, batch["label"], step=state.step, axis_name=axis_name)
        if memory is not None:
            memory = memory_lib.update(
                memory, batch["id"], projection, momentum=run.memory_momentum(state.step), axis_name=axis_name
            )
        terms["gradient_norm"] = (optax.tree.norm(grads), jnp.ones(()))
        after = state.replace(
            step=state.step + 1,
            params=params,
            target_params=target_params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            queue=queue,
        )
        if not config.train.skip_not_finite:
            return after, memory, terms
        # The same on all devices, since the loss is a psum and the gradient a pmean.
        finite = jnp.isfinite(terms["loss"][0]) & jnp.isfinite(terms["gradient_norm"][0])
        terms = jax.tree.map(lambda x: jnp.where(finite, x, 0.0), terms)
        terms["skipped"] = (1.0 - finite, jnp.ones(()))
        # A skipped step advances the optimizer's count too, so that the learning rate follows `state.step`.
        count = optax.tree.get(opt_state, "count")
        before = (
            state.replace(step=after.step, opt_state=optax.tree.set(state.opt_state, count=count)),
            memory_before,
        )
        state, memory = jax.tree.map(lambda new, old: jnp.where(finite, new, old), (after, memory), before)
        return state, memory, terms

    return step


def _flat_views(images: Array, ids: Array, key: Array, views: augment.Views, num_views: int) -> Array:
    """Returns float32 [T*B, S, S, C], ordered by view."""
    images = augment.random_views(images, ids, key, views=views, num_views=num_views)
    return images.reshape(-1, *images.shape[2:])


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
