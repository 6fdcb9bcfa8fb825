"""The training step of one device, and the one place where it is pmapped (Promise 2 of the design)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from grafit_jax import losses, parallel
from grafit_jax import memory as memory_lib
from grafit_jax.data import augment
from grafit_jax.memory import Memory
from grafit_jax.methods import Method
from grafit_jax.models import Network
from grafit_jax.parallel import AXIS
from grafit_jax.state import TrainState, target_part

# name -> (sum, count) over all examples of all devices: the mean is taken once, on the host.
Metrics = dict[str, tuple[Array, Array]]
Step = Callable[[TrainState, Memory | None, dict[str, Array], Array], tuple[TrainState, Memory | None, Metrics]]


def make_train_step(
    *,
    network: Network,
    method: Method,
    tx: optax.GradientTransformation,
    views: augment.Views,
    num_views: int,
    tau: Callable[[Array], Array],
    temperature: float,
    instance_weight: float,
    memory_momentum: float,
    axis_name: str | None = AXIS,
) -> Step:
    """The pure per-device function `(state, memory, batch, rng) -> (state, memory, metrics)`.

    A batch holds image uint8 [B, H, W, C], label int32 [B] (coarse) and id int32 [B], the device's own B examples.

    Of the T views of an image the supervised loss sees the first (appendix B.1), the instance loss all. Online and
    target network each run once, over all T*B views, both with the statistics of that batch: the target, as in BYOL,
    normalises with its own batch and never with running averages, which it does not keep.
    """
    num_views = num_views if method.instance else 1

    def step(state, memory, batch, rng):
        # 1. Views, made here from uint8: keyed by (seed, step, image id, view), so the device makes no difference.
        key = jax.random.fold_in(rng, state.step)
        images = augment.random_views(batch["image"], batch["id"], key, views=views, num_views=num_views)
        batch_size = images.shape[1]
        flat = images.reshape(-1, *images.shape[2:])

        # 2. Targets g_xi(t_j(x)), outside of what is differentiated.
        if method.instance:
            variables = {"params": state.target_params, "batch_stats": target_part(state.batch_stats)}
            out, _ = network.apply(variables, flat, train=True, mutable=["batch_stats"], method="embed")
            targets = _by_view(out.projection, num_views)

        # 3. The loss of this device's examples, and its gradient. No collective on the way but in batch norms and the
        # k-NN loss, which define their own gradients: a psum here would multiply gradients by the device count.
        def loss_fn(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            out, updated = network.apply(variables, flat, train=True, mutable=["batch_stats"])
            first = jax.tree.map(lambda x: x[:batch_size], out)  # the first view alone
            loss, terms = jnp.zeros(batch_size), {}
            if method.supervised == "cross_entropy":
                term = losses.cross_entropy(first.logits, batch["label"])
                loss = loss + term
                terms["cross_entropy"] = _total(term)
                terms["coarse_accuracy"] = _total(jnp.argmax(first.logits, -1) == batch["label"])
            if method.supervised == "knn":
                term, weight = losses.knn_loss_and_weight(
                    first.projection,
                    batch["label"],
                    memory.embedding,
                    memory.label,
                    temperature=temperature,
                    own_slot=batch["id"],
                    axis_name=axis_name,
                )
                loss = loss + term
                terms["knn_loss"] = (jnp.sum(term), jnp.sum(weight))
                terms["without_positive"] = _total(1.0 - weight)
            if method.instance:
                term = losses.instance_loss(_by_view(out.prediction, num_views), targets)
                loss = loss + instance_weight * term  # Eq. 4
                terms["instance_loss"] = _total(term)
            terms["loss"] = _total(loss)
            return jnp.mean(loss), (updated["batch_stats"], terms, first.projection)

        grads, (batch_stats, terms, projection) = jax.grad(loss_fn, has_aux=True)(state.params)

        # 4. One mean over the devices; per-device batch statistics become one running average too.
        if axis_name is not None:
            grads, batch_stats = lax.pmean((grads, batch_stats), axis_name)
            terms = lax.psum(terms, axis_name)

        # 5. Update theta, then xi <- tau xi + (1 - tau) theta, then the memory, scored before it is written.
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        target_params = state.target_params
        if method.instance:
            rate = tau(state.step)
            target_params = optax.incremental_update(target_part(params), target_params, 1.0 - rate)
        if memory is not None:
            memory = memory_lib.update(memory, batch["id"], projection, momentum=memory_momentum, axis_name=axis_name)
        terms["gradient_norm"] = (optax.tree.norm(grads), jnp.ones(()))
        state = state.replace(
            step=state.step + 1,
            params=params,
            target_params=target_params,
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return state, memory, terms

    return step


def pmap_steps(
    step: Step, *, batch_of: Callable[[Any, Array], dict[str, Array]], in_axes: Any, steps_per_call: int
) -> Callable[..., Any]:
    """`(state, memory, inputs) -> (state, memory, metrics)`: `steps_per_call` steps in one scan on all devices.

    Each device takes its own part of every batch out of `inputs` by `batch_of(inputs, state.step)`; `inputs` and
    `in_axes` are those of `data.pipeline`. State and memory are donated.
    """

    def steps(state, memory, inputs):
        def body(carry, _):
            state, memory = carry
            state, memory, metrics = step(state, memory, batch_of(inputs, state.step), state.rng)
            return (state, memory), metrics

        if steps_per_call == 1:
            # No scan of one: XLA's CPU convolutions are some 15 times slower inside of a loop (jax issue 12868).
            (state, memory), metrics = body((state, memory), None)
            return state, memory, metrics
        (state, memory), metrics = lax.scan(body, (state, memory), length=steps_per_call)
        return state, memory, jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics)

    # Replicated results (axis None) are trusted, not checked: everything in state and metrics is a pmean or psum.
    return jax.pmap(
        steps,
        axis_name=AXIS,
        in_axes=(None, 0, in_axes),
        out_axes=(None, 0, None),
        donate_argnums=(0, 1),
        devices=parallel.devices(),
    )


def _by_view(x: Array, num_views: int) -> Array:
    return x.reshape(num_views, -1, x.shape[-1])


def _total(per_example: Array) -> tuple[Array, Array]:
    return jnp.sum(per_example.astype(jnp.float32)), jnp.asarray(per_example.size, jnp.float32)
