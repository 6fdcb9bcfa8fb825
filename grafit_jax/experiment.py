"""From a config and its records to the parts of a run: network, optimiser, state, memory."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
from jax.typing import ArrayLike

from grafit_jax import config as config_lib
from grafit_jax import config_checks, evaluation, methods, parallel, pulse, schedules
from grafit_jax import memory as memory_lib
from grafit_jax import state as state_lib
from grafit_jax.data import hierarchy, sources
from grafit_jax.data.records import Records
from grafit_jax.errors import UserError
from grafit_jax.memory import Memory
from grafit_jax.models import Network, weights
from grafit_jax.retrieval.clustering import Clusters, kmeans
from grafit_jax.retrieval.embeddings import Features
from grafit_jax.runs import clusterfit, integrity, workdir
from grafit_jax.runs.checkpoint import Checkpoints
from grafit_jax.state import TrainState
from grafit_jax.views import augment
from grafit_jax.views.crops import Crops

# Folded into the seed's key for the draws that are not views.
_MEMORY_KEY = 0x6D656D
# How evaluation sees an image.
_SEEN = ("eval.size", "eval.crop", "eval.resize")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts of a run that do not change while it runs.

    Attributes:
      views: how images are seen in training, `key_views` for keys, and `eval_views` in evaluation.
      crops: what the host cuts out of photos, if it is not the device that crops.
    """

    config: ml_collections.ConfigDict
    records: dict[str, Records]
    method: methods.Method
    network: Network
    views: augment.Views
    key_views: augment.Views | None
    crops: Crops | None
    eval_views: augment.Views
    tx: optax.GradientTransformation
    embed_fn: evaluation.EmbedFn
    steps_per_epoch: int
    clusters: Clusters | None = None

    @property
    def training(self) -> Records:
        """The training images with the labels that are trained on: coarse classes, or clusters.

        Evaluation takes `records`, whose coarse labels are always the true ones.
        """
        train = self.records["train"]
        return train if self.clusters is None else clusterfit.relabel(train, self.clusters)

    @property
    def total_steps(self) -> int:
        return self.config.train.epochs * self.steps_per_epoch

    def learning_rate(self, step):
        o = self.config.optimizer
        base = o.learning_rate * self.config.train.batch_size / 256
        warmup_steps = round(o.warmup_epochs * self.steps_per_epoch)
        if o.schedule == "step":
            boundaries = [epoch * self.steps_per_epoch for epoch in o.step_epochs]
            return schedules.step_learning_rate(
                step, base=base, boundaries=boundaries, factor=o.step_factor, warmup_steps=warmup_steps
            )
        return schedules.learning_rate(step, base=base, total_steps=self.total_steps, warmup_steps=warmup_steps)

    def memory_momentum(self, step):
        m = self.config.memory
        boundaries = [epoch * self.steps_per_epoch for epoch in m.step_epochs]
        return schedules.piecewise(step, values=(m.momentum, *m.step_momentum), boundaries=boundaries)

    def tau(self, step):
        e = self.config.ema
        return schedules.ema_tau(step, base=e.base, final=e.final, total_steps=self.total_steps)


def load(
    config: ml_collections.ConfigDict,
    records: dict[str, Records] | None = None,
    *,
    path: pathlib.Path | None = None,
    training: bool = True,
) -> Experiment:
    """Checks the config, loads the data, checks that they can be trained on, and builds the parts.

    Args:
      config: see `config.default`.
      records: "train" and "test", instead of those that `config.data` names.
      path: the run's workdir. ClusterFit finds its clusters there, if it was started, and makes them if not.
      training: on these devices; a run that is only evaluated may have been trained on others.

    Raises:
      UserError: anything about config or data that would go wrong later.
    """
    config_checks.validate(config, num_devices=parallel.num_all_devices() if training else 1)
    records = records or sources.load(**config.data)
    train = records["train"]
    method = methods.get(config.method)
    hierarchy.check_trainable(train, neighbours=method.memory)
    batch_size = config.train.batch_size
    if batch_size > len(train):
        raise UserError(
            f"train.batch_size = {batch_size} is more than the {len(train)} training images: take at most that."
        )
    if max(config.eval.recall_at) >= len(records["test"]):
        raise UserError(
            f"eval.recall_at goes up to {max(config.eval.recall_at)}, and a query has {len(records['test']) - 1} other "
            "test images: lower it or enlarge the test split."
        )
    if training:
        _check_memory(train, config)
    augment.check_channels(train.image.shape[-1], config.views.mean, config.views.std)
    clusters = _clusters(config, records, path) if method.clusters else None
    num_classes = len(train.coarse_names) if clusters is None else len(clusters.centre)
    network = methods.build_network(method, config.model, num_classes=num_classes, axis_name=parallel.AXIS)
    views = augment.Views(**{k: v for k, v in config.views.items() if k != "num_views"})
    key_views = dataclasses.replace(views, **config.key_views) if method.queue else None
    eval_views = _eval_views(config.eval, views)
    crops = None
    if config.train.host_crops:  # which the device does not crop again
        laws = [(method.views_per_image(config.views.num_views), views.crop_scale, views.crop_ratio)]
        views = dataclasses.replace(views, crop_scale=(1, 1))
        if key_views is not None:
            laws = [(1, *laws[0][1:]), (1, key_views.crop_scale, key_views.crop_ratio)]
            key_views = dataclasses.replace(key_views, crop_scale=(1, 1))
        crops = Crops(views.size, tuple(laws))
    experiment = Experiment(
        config=config,
        records=records,
        method=method,
        network=network,
        views=views,
        key_views=key_views,
        crops=crops,
        eval_views=eval_views,
        tx=optax.identity(),
        embed_fn=evaluation.make_embed_fn(network, eval_views, batch_size=config.eval.batch_size),
        steps_per_epoch=len(train) // batch_size,
        clusters=clusters,
    )
    return dataclasses.replace(experiment, tx=_optimizer(experiment))


def _eval_views(config: ml_collections.ConfigDict, views: augment.Views) -> augment.Views:
    """How evaluation sees an image. `config` is the config's `eval`."""
    size = config.size or views.size
    resize = 0 if config.crop == "whole" else config.resize or augment.resize_for(size)
    return dataclasses.replace(views, size=size, resize=resize)


def _clusters(config: ml_collections.ConfigDict, records: dict[str, Records], path: pathlib.Path | None) -> Clusters:
    """The clusters that the run in `path` was started with, or those of the features of the run that it starts from."""
    if path is not None and clusterfit.is_saved(path):
        return clusterfit.load(path, len(records["train"]))
    source = pathlib.Path(config.clusters.workdir).expanduser()
    clusterfit.check_source(source, records, config.clusters.k)
    run, state = restore_newest(source, records=records)
    features = run.embed_fn(variables(state), records["train"].image)["trunk"]
    pulse.at(0, "clustering")
    return kmeans(features, config.clusters.k, seed=config.seed, cosine=config.clusters.cosine)


def _check_memory(train: Records, config: ml_collections.ConfigDict) -> None:
    """Raises UserError where a resident training set would leave the devices less than half of their memory."""
    limit = (parallel.devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit and not config.data.stream and train.image.nbytes > limit / 2:
        raise UserError(
            f"the training images take {train.image.nbytes / 2**30:.1f} GiB and a device has {limit / 2**30:.1f} GiB: "
            "leave them in their files by data.stream = True."
        )


def _optimizer(experiment: Experiment) -> optax.GradientTransformation:
    o = experiment.config.optimizer
    parts = [
        optax.add_decayed_weights(
            o.weight_decay, mask=lambda params: jax.tree.map(lambda p: o.decay_all or p.ndim > 1, params)
        ),
        optax.sgd(experiment.learning_rate, momentum=o.momentum, nesterov=o.nesterov),
    ]
    if o.layer_decay < 1:
        parts.append(optax.stateless(lambda updates, _: _layer_rates(updates, o.layer_decay)))
    return optax.chain(*parts)


def _layer_rates(updates: dict[str, Any], decay: float) -> dict[str, Any]:
    """The updates of the trunk's blocks times `decay`, once for the last, twice for the one before it, and so on.

    The stem counts as the block before the first one.
    """
    blocks = sorted({_block(name) for name in updates["trunk"]}, reverse=True)
    power = {block: power for power, block in enumerate(blocks, 1)}
    rate = {name: decay ** power[_block(name)] for name in updates["trunk"]}
    trunk = {name: optax.tree.scale(rate[name], layer) for name, layer in updates["trunk"].items()}
    return {**updates, "trunk": trunk}


def _block(name: str) -> int:
    """The number of a block of a trunk by the name of its variables, such as YBlock_3; -1 of the stem's layers."""
    kind, _, number = name.rpartition("_")
    return int(number) if kind.endswith("Block") else -1


def initial(experiment: Experiment) -> tuple[TrainState, Memory | None]:
    """State and memory before the first step, on their devices."""
    state = initial_state(experiment)
    return state, initial_memory(experiment, state)


def initial_state(experiment: Experiment, *, placeholder: bool = False) -> TrainState:
    """The state before the first step, on every device.

    A placeholder has the right shapes, and is made without the file of pretrained weights and without a pass over
    images for the queue.
    """
    state = _fresh(experiment, None if placeholder else pretrained_trunk(experiment.config))
    if experiment.method.queue:
        state = dataclasses.replace(state, queue=_initial_queue(experiment, state, placeholder=placeholder))
    return parallel.replicate(state)


def _fresh(experiment: Experiment, trunk: dict[str, Any] | None) -> TrainState:
    size, channels = experiment.views.size, experiment.records["train"].image.shape[-1]
    return state_lib.create(
        experiment.network,
        experiment.tx,
        image_shape=(size, size, channels),
        seed=experiment.config.seed,
        has_target=experiment.method.target,
        trunk=trunk,
        head_init=experiment.config.model.head_init,
    )


def num_parameters(experiment: Experiment) -> int:
    """Of the online network; nothing is computed."""
    state = jax.eval_shape(lambda: _fresh(experiment, None))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))


def check_start(experiment: Experiment) -> str:
    """Checks the pretrained weights; returns their digests where several hosts have to compare them, else "".

    Raises:
      UserError: they are missing or do not fit.
    """
    trunk = pretrained_trunk(experiment.config)
    if trunk is None:
        return ""
    jax.eval_shape(lambda: _fresh(experiment, trunk))
    return json.dumps(integrity.digests(trunk), sort_keys=True) if jax.process_count() > 1 else ""


def pretrained_trunk(config: ml_collections.ConfigDict) -> dict[str, Any] | None:
    """What a trunk starts from, if it does not start from scratch; UserError for a file that does not fit."""
    m = config.model
    if not m.pretrained:
        return None
    path = pathlib.Path(m.pretrained).expanduser()
    if os.path.isdir(path):
        return _trunk_of_run(path, m)
    if not os.path.exists(path):
        raise UserError(
            f"model.pretrained = {m.pretrained} is not there: want a run's workdir, or a .safetensors or .pth file of "
            "weights."
        )
    return weights.load_trunk(path, m.trunk, stem=m.stem)


def _trunk_of_run(path: pathlib.Path, model: ml_collections.ConfigDict) -> dict[str, Any]:
    """The trunk of the newest checkpoint in a workdir; the convolution of a stem of another kind stays fresh."""
    theirs = workdir.read_config(path).model
    if theirs.trunk != model.trunk:
        raise UserError(
            f"model.pretrained = {path} has the trunk {theirs.trunk}, and model.trunk = {model.trunk}: want the same."
        )
    checkpoints = Checkpoints(path, read_only=True)
    state = checkpoints.read_newest("state")
    checkpoints.close()
    if state is None:
        raise UserError(f"model.pretrained = {path} holds no checkpoint: let experiments/train.py reach its first one.")
    same_stem = theirs.stem == model.stem
    return {
        kind: {name: layer for name, layer in state[kind]["trunk"].items() if same_stem or name != "Conv_0"}
        for kind in ("params", "batch_stats")
    }


def _embed_whole(experiment: Experiment, state: TrainState, images: Any) -> dict[str, np.ndarray]:
    """Embeddings of whole images at the size of training: however test images are seen, a run starts the same."""
    views = dataclasses.replace(experiment.eval_views, size=experiment.views.size, resize=0)
    if views == experiment.eval_views:
        return experiment.embed_fn(variables(state), images)
    batch_size = experiment.config.eval.batch_size
    return evaluation.make_embed_fn(experiment.network, views, batch_size=batch_size)(variables(state), images)


def _initial_queue(experiment: Experiment, state: TrainState, *, placeholder: bool) -> memory_lib.Queue:
    """K keys of training images drawn by the seed: whole images, embedded in evaluation mode [ours]."""
    config, train = experiment.config, experiment.records["train"]
    size = min(config.queue.size, len(train))
    drawn = np.zeros(len(train), bool)
    drawn[np.random.default_rng(config.seed).permutation(len(train))[:size]] = True
    if placeholder:
        rows = {"projector": np.zeros((size, config.model.dim), np.float32)}
    else:
        rows = _embed_whole(experiment, state, train.image[drawn])
    read = evaluation.readable(rows)
    return memory_lib.fill_queue(rows["projector"][read], train.coarse_label[drawn][read], config.queue.size)


def initial_memory(experiment: Experiment, state: TrainState, *, placeholder: bool = False) -> Memory | None:
    """The memory before the first step, spread over the devices; None for a method without one.

    A placeholder has the right shapes, and is made without a pass over the training set.
    """
    config, train = experiment.config, experiment.records["train"]
    if not experiment.method.memory:
        return None
    label = train.coarse_label
    if config.memory.init == "random" or placeholder:
        key = jax.random.fold_in(jax.random.PRNGKey(config.seed), _MEMORY_KEY)
        embeddings: ArrayLike = memory_lib.random(key, len(train), config.model.dim)
    else:
        rows = _embed_whole(experiment, state, train.image)
        embeddings = rows["projector"]
        label = np.where(evaluation.readable(rows), label, -1)  # the others are as padding is
    memory = memory_lib.create(embeddings, label, parallel.num_all_devices())
    return parallel.shard(jax.tree.map(parallel.own, memory))


def variables(state: TrainState) -> dict[str, Any]:
    """What evaluation applies: the online network, never the target."""
    return {"params": state.params, "batch_stats": state.batch_stats}


def evaluate(experiment: Experiment, state: TrainState, *, probe: bool = False) -> dict[str, float]:
    """The metrics of a state on the test split (PAPER.md section 1), with a probe's if wanted, and their step."""
    metrics = evaluation.evaluate_network(
        experiment.embed_fn,
        variables(state),
        experiment.records,
        experiment.config.eval,
        classified=experiment.clusters is None,
        probe=probe,
    )
    return metrics | {"step": int(state.step)}


def check_layer(experiment: Experiment, layer: str) -> None:
    """Raises UserError unless the network has this layer's embeddings, "trunk" or "projector"."""
    if layer == "projector" and not experiment.method.projector:
        raise UserError(f"method {experiment.config.method} has no projector: take --layer=trunk.")


def embed(experiment: Experiment, state: TrainState, split: str, layer: str) -> Features:
    """The embeddings of a split with the names of its labels; ids are "split/row"."""
    check_layer(experiment, layer)
    records = experiment.records[split]
    embedded = experiment.embed_fn(variables(state), records.image)
    read = evaluation.readable(embedded)
    named = {
        name: np.array(level.names)[level.label[read]]
        for name, level in records.levels.items()
        if level.label is not None
    }
    return Features(
        embedding=embedded[layer][read],
        id=np.array([f"{split}/{row}" for row in np.flatnonzero(read)]),
        label=named.pop(records.finest, None),
        coarse_label=named.pop("coarse", None),
        further=named,
        filename=None if records.filename is None else records.filename[read],
        made_by=made_by(experiment, state, layer),
    )


def made_by(experiment: Experiment, state: TrainState, layer: str) -> dict[str, Any]:
    """What tells the embeddings of this network and layer from those of others."""
    config = config_lib.without_places(experiment.config)
    config = {
        key: value for key, value in config.items() if key in _SEEN or not key.startswith(("eval.", "checkpoint."))
    }
    return {"layer": layer, "step": int(state.step), "config": config, "data": fingerprints(experiment)}


def restore_newest(
    path: pathlib.Path, *, data_dir: str | None = None, records: dict[str, Records] | None = None
) -> tuple[Experiment, TrainState]:
    """The run in a workdir with the state of its newest checkpoint.

    Args:
      path: the workdir.
      data_dir: where the data lie, if elsewhere by now.
      records: its data, where they are at hand.
    """
    config = workdir.read_config(path)
    if data_dir is not None:
        config.data.data_dir = data_dir
    checkpoints = Checkpoints(path, read_only=True)
    if checkpoints.latest_step() is None:
        raise UserError(f"{path} holds no checkpoint yet: let experiments/train.py reach its first one.")
    experiment = load(config, records, path=path, training=False)
    workdir.check_data(path, fingerprints(experiment))
    restored = checkpoints.restore_newest(initial_state(experiment, placeholder=True))
    checkpoints.close()
    if restored is None:
        raise UserError(f"{path} holds no checkpoint that is whole: train again, in another --workdir.")
    return experiment, restored[0]


def fingerprints(experiment: Experiment) -> dict[str, str]:
    """split -> what tells its images and labels from others; "clusters" -> the same of ClusterFit's labels."""
    found = {split: records.fingerprint() for split, records in experiment.records.items()}
    return found if experiment.clusters is None else found | {"clusters": clusterfit.fingerprint(experiment.clusters)}


def contents(records: Mapping[str, Records]) -> dict[str, str]:
    """split -> what tells its images and labels from others in any order; none of images that stay in files."""
    found = {split: of_split.content() for split, of_split in records.items()}
    return {split: content for split, content in found.items() if content is not None}
