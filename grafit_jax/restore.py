"""Initial states of runs, and states restored from checkpoints."""

import dataclasses
import functools
import json
import math
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.typing import ArrayLike

from grafit_jax import config as config_lib
from grafit_jax import evaluation, experiment, initial_weights, parallel, pulse
from grafit_jax import memory as memory_lib
from grafit_jax.data import sources
from grafit_jax.data.records import Records
from grafit_jax.errors import UserError, warn
from grafit_jax.experiment import Experiment
from grafit_jax.initial_weights import Variables
from grafit_jax.memory import Memory
from grafit_jax.retrieval.clustering import Clusters, kmeans
from grafit_jax.runs import checkpoint, clusterfit, console, workdir
from grafit_jax.runs.checkpoint import Checkpoints
from grafit_jax.state import TrainState, target_part

# Folded into the seed's key for the random memory.
_MEMORY_KEY = 0x6D656D
# The remedies if the data of a run that is to resume, or is evaluated, have changed.
_CONTINUE = "restore them, or continue from this run in another --workdir, with model.init"
_EVALUATE = (
    "restore them, or embed the images with experiments/embed.py --images and evaluate that file with "
    "experiments/evaluate.py --features"
)


def load(
    config: ml_collections.ConfigDict,
    path: pathlib.Path | None = None,
    *,
    records: dict[str, Records] | None = None,
    training: bool = True,
) -> Experiment:
    """Loads the run of a config as `experiment.load` does, with the clusters of ClusterFit.

    The clusters are those stored in the workdir `path`, or are computed from the features of clusterfit.source. The
    data of a run that has started in `path` must not have changed.
    """

    def check(records: dict[str, Records]) -> None:
        if path is not None:
            found = {split: of_split.fingerprint() for split, of_split in records.items()}
            workdir.check_data(path, found, records, remedy=_CONTINUE if training else _EVALUATE)

    of_run = functools.partial(_clusters, config, path)
    return experiment.load(config, records, clusters=of_run, check=check, training=training)


def _clusters(config: ml_collections.ConfigDict, path: pathlib.Path | None, records: dict[str, Records]) -> Clusters:
    if path is not None and clusterfit.is_saved(path):
        return clusterfit.load(path, len(records["train"]))
    source = pathlib.Path(config.clusterfit.source).expanduser()
    clusterfit.check_source(source, records, config.clusterfit.num_clusters)
    run, state = newest(source, records=records)
    features = run.embed_fn(state.variables, records["train"].image)["trunk"]
    pulse.at(0, "clustering")
    return kmeans(features, config.clusterfit.num_clusters, seed=config.seed, cosine=config.clusterfit.spherical)


def initial(run: Experiment) -> tuple[TrainState, Memory | None]:
    """Returns state and memory before the first step, on their devices."""
    state = initial_state(run)
    return state, initial_memory(run, state)


def initial_state(run: Experiment, *, placeholder: bool = False) -> TrainState:
    """Returns the state before the first step, replicated over the devices.

    A placeholder has the same shapes but other values: it needs no given weights and no pass over images for the queue.
    """
    given = initial_weights.NONE if placeholder else initial_weights.given(run)
    if given.note:
        console.say(given.note)
    state = fresh_state(run, given.variables)
    if run.method.uses_queue:
        state = dataclasses.replace(state, queue=_initial_queue(run, state, placeholder=placeholder))
    return parallel.replicate(state)


def fresh_state(run: Experiment, given: Variables) -> TrainState:
    """Returns the state before the first step, without its queue.

    `given` holds the layers that do not start from the seed; see `initial_weights.given`.
    """

    def initialise(rng, given):
        variables = initial_weights.random(run, rng)
        for kind, parts in given.items():
            for name, layers in parts.items():
                variables[kind][name] |= layers
        params, trained = variables["params"], run.network.trained(variables["params"])
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            # A copy: the step donates params and target_params, and a buffer cannot be donated twice.
            target_params=jax.tree.map(jnp.copy, target_part(trained)) if run.method.uses_target else {},
            batch_stats=variables["batch_stats"],
            opt_state=run.tx.init(trained),
            rng=rng,
        )

    return jax.jit(initialise)(jax.random.PRNGKey(run.config.seed), given)


def num_parameters(run: Experiment) -> int:
    """Returns the number of parameters of the online network, without initialising it."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(initial_weights.shapes(run)["params"]))


def check_start(run: Experiment) -> str:
    """Checks the given weights, or raises UserError; returns their digests for the hosts to compare."""
    given = initial_weights.given(run).variables
    if run.config.model.freeze and parallel.is_first():
        trunk = initial_weights.shapes(run)["params"]["trunk"]
        drawn = sorted(filter(run.network.trunk.is_frozen, trunk.keys() - given["params"].get("trunk", {})))
        if drawn:
            more = f" and {len(drawn) - 1} more" if len(drawn) > 1 else ""
            warn(
                f"found model.freeze = {run.config.model.freeze} but no given weights of {drawn[0]}{more}: frozen "
                "layers keep random weights; usually model.pretrained or model.init gives them others (without the "
                "first convolution if the stem is another)"
            )
    return json.dumps(checkpoint.digests(given), sort_keys=True) if jax.process_count() > 1 else ""


def _embed_whole(run: Experiment, state: TrainState, images: Any) -> dict[str, np.ndarray]:
    """Embeds whole images at the training size, so that `eval` keys do not change how a run starts."""
    views, embed_fn = dataclasses.replace(run.eval_views, size=run.views.size, resize=0), run.embed_fn
    if views != run.eval_views:
        embed_fn = evaluation.make_embed_fn(run.network, views, batch_size=run.config.eval.batch_size)
    return embed_fn(state.variables, images)


def _initial_queue(run: Experiment, state: TrainState, *, placeholder: bool) -> memory_lib.Queue:
    """Returns a queue of K random training images, embedded whole in evaluation mode [ours]."""
    config, train = run.config, run.records["train"]
    size = min(config.queue.size, len(train))
    drawn = np.zeros(len(train), bool)
    drawn[np.random.default_rng(config.seed).permutation(len(train))[:size]] = True
    if placeholder:
        rows = {"projector": np.zeros((size, config.model.embed_dim), np.float32)}
    else:
        rows = _embed_whole(run, state, train.image[drawn])
    read = evaluation.readable(rows)
    return memory_lib.fill_queue(rows["projector"][read], train.train_label[drawn][read], config.queue.size)


def initial_memory(run: Experiment, state: TrainState, *, placeholder: bool = False) -> Memory | None:
    """Returns the memory before the first step, sharded over the devices; None for a method without one.

    A placeholder has the same shapes but random values: it needs no pass over the training set.
    """
    config, train = run.config, run.records["train"]
    if not run.method.uses_memory:
        return None
    label = train.train_label
    if config.memory.init == "random" or placeholder:
        key = jax.random.fold_in(jax.random.PRNGKey(config.seed), _MEMORY_KEY)
        embeddings: ArrayLike = memory_lib.random(key, len(train), config.model.embed_dim)
    else:
        rows = _embed_whole(run, state, train.image)
        embeddings = rows["projector"]
        label = np.where(evaluation.readable(rows), label, -1)  # masked, as padding rows are
    memory = memory_lib.create(embeddings, label, parallel.num_all_devices())
    return parallel.shard(jax.tree.map(parallel.own, memory))


def newest(
    path: pathlib.Path, *, data_dir: str | None = None, records: dict[str, Records] | None = None
) -> tuple[Experiment, TrainState]:
    """Loads the run in the workdir `path` and the state of its newest checkpoint.

    Args:
      path: the workdir.
      data_dir: where the data are now: TFDS's data directory, or the folder or CSV of images; None uses the place of
        the training.
      records: the data of the run, if loaded already.

    Raises:
      UserError: the workdir holds no run or no usable checkpoint, or the data are not found or have changed.
    """
    config = workdir.read_config(path)
    checkpoints = Checkpoints(path, read_only=True)
    if checkpoints.latest_step() is None:
        raise UserError(f"{path}: found no checkpoint; let experiments/train.py save its first one.")
    # The config keeps the place of the training, which embedding files store.
    run = load(config, path, records=records or _records(path, config, data_dir), training=False)
    workdir.check_data(path, run.fingerprints())  # clusters, too
    restored = checkpoints.restore_newest(initial_state(run, placeholder=True))
    checkpoints.close()
    if restored is None:
        raise UserError(f"{path}: found damaged checkpoints only; train again in another --workdir.")
    return run, restored[0]


def _records(path: pathlib.Path, config: ml_collections.ConfigDict, data_dir: str | None) -> dict[str, Records]:
    """Loads the data of a run from the place of the training or, if not None, from `data_dir`."""
    data = config.data.to_dict() | {"cache": ""}  # which may be a folder of another machine
    kind, _, place = config_lib.absolute(data["source"]).partition(":")
    if data_dir is not None and kind not in (*config_lib.FILES, "tfds"):
        raise UserError(f"found --data_dir={data_dir} for {kind}, which is in memory; remove --data_dir.")
    if kind not in config_lib.FILES:
        return sources.load(**data if data_dir is None else {**data, "data_dir": data_dir})
    place = place if data_dir is None else os.path.abspath(os.path.expanduser(data_dir))
    if not os.path.exists(place):
        raise UserError(
            f"{path}: found no {place}; expected the images of the run; use --data_dir for the place where they are "
            "now, as in --data_dir=photos."
        )
    return sources.load(**data | {"source": f"{kind}:{place}"})


def resumed(run: Experiment, checkpoints: Checkpoints) -> tuple[Any, Any, dict[str, Any]] | None:
    """Restores state, memory and the progress of an unfinished epoch from the newest checkpoint; None without one."""
    if checkpoints.latest_step() is None:
        return None
    state = initial_state(run, placeholder=True)
    memory = initial_memory(run, state, placeholder=True)
    found = checkpoints.restore_newest(state, memory)
    return found and (found[0], found[1], found[2].get("progress", {}))
