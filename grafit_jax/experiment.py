"""Builds the parts of a run from its config and records: network, views, schedules, optimizer."""

import dataclasses
from collections.abc import Callable, Mapping

import ml_collections
import numpy as np
import optax

from grafit_jax import config_checks, evaluation, methods, parallel
from grafit_jax.data import hierarchy, sources
from grafit_jax.data.pipeline import Resident, Streamed
from grafit_jax.data.records import Records
from grafit_jax.errors import UserError
from grafit_jax.models import Network
from grafit_jax.objective import KnnLevel
from grafit_jax.optimizer import make_optimizer, make_schedules
from grafit_jax.retrieval import evaluate as retrieval_metrics
from grafit_jax.retrieval import neighbors
from grafit_jax.retrieval.clustering import Clusters
from grafit_jax.runs import clusterfit
from grafit_jax.state import TrainState
from grafit_jax.views import augment
from grafit_jax.views.crops import Crops

# Remedy for embeddings of a network that has diverged.
_DIVERGED = "lower optimizer.learning_rate or raise loss.temperature, in a new --workdir"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The immutable parts of a run.

    Attributes:
      config: the validated config.
      records: "train" and "test", with their true labels.
      training: the training images with the labels that are trained on: coarse classes, or clusters.
      views: augmentation of training images.
      key_views: augmentation of the keys of a queue; None without a queue.
      crops: crops that the host takes while decoding; None if the device crops.
      eval_views: preprocessing in evaluation.
      learning_rate, memory_momentum, tau: functions of the step; see `optimizer.Schedules`.
      clusters: the clusters of ClusterFit, else None.
      knn_levels: the levels of the k-NN loss; empty for the training labels alone.
    """

    config: ml_collections.ConfigDict
    records: dict[str, Records]
    training: Records
    method: methods.Method
    network: Network
    views: augment.Views
    key_views: augment.Views | None
    crops: Crops | None
    eval_views: augment.Views
    learning_rate: optax.Schedule
    memory_momentum: optax.Schedule
    tau: optax.Schedule
    tx: optax.GradientTransformation
    embed_fn: evaluation.EmbedFn
    steps_per_epoch: int
    clusters: Clusters | None = None
    knn_levels: tuple[KnnLevel, ...] = ()

    @property
    def epochs(self) -> int:
        return self.config.train.epochs if self.method.trains else 0

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def fingerprints(self) -> dict[str, str]:
        """Returns split -> fingerprint of its images and labels in order; also "clusters" for ClusterFit."""
        found = {split: records.fingerprint() for split, records in self.records.items()}
        return found if self.clusters is None else found | {"clusters": clusterfit.fingerprint(self.clusters)}


def load(
    config: ml_collections.ConfigDict,
    records: dict[str, Records] | None = None,
    *,
    clusters: Callable[[dict[str, Records]], Clusters] | None = None,
    check: Callable[[dict[str, Records]], None] | None = None,
    training: bool = True,
) -> Experiment:
    """Validates the config, loads and checks the data, and builds the parts of the run.

    Args:
      config: see `config.default`.
      records: "train" and "test", instead of those that `config.data` names.
      clusters: computes the clusters of the training images, for ClusterFit; see `restore.load`.
      check: checks the records before anything else does, or raises UserError; see `restore.load`.
      training: whether the run trains here; if not, requirements on devices are not checked.

    Raises:
      UserError: the config or the data are invalid.
    """
    # 1. Config and data.
    config_checks.validate(config, num_devices=parallel.num_all_devices() if training else 1)
    records = records or sources.load(**config.data)
    if check is not None:
        check(records)
    method = methods.get(config.method)
    _check_records(config, records, method)
    if training:
        _check_memory(config, records["train"])

    # 2. Training labels and network.
    train, computed = records["train"], None
    if method.uses_clusters:
        assert clusters is not None, "restore.load passes it"
        computed = clusters(records)
        train = clusterfit.relabel(train, computed)
    network = methods.build_network(method, config.model, num_classes=len(train.train_names), axis_name=parallel.AXIS)

    # 3. Views.
    views = augment.Views(**{k: v for k, v in config.views.items() if k != "num_views"})
    key_views = dataclasses.replace(views, **config.key_views) if method.uses_queue else None
    eval_views = evaluation.eval_views(config)
    crops = None
    if config.train.host_crops:  # then the device does not crop again
        each = [views] if key_views is None else [views, key_views]
        number = method.views_per_image(config.views.num_views) // len(each)
        crops = Crops(views.size, tuple((number, v.crop_scale, v.crop_ratio) for v in each))
        views = dataclasses.replace(views, crop_scale=(1, 1))
        key_views = key_views and dataclasses.replace(key_views, crop_scale=(1, 1))

    # 4. Schedules and optimizer.
    steps_per_epoch = len(train) // config.train.batch_size or 1  # at least 1 is required to train
    schedules = make_schedules(config, steps_per_epoch=steps_per_epoch)
    return Experiment(
        config=config,
        records=records,
        training=train,
        method=method,
        network=network,
        views=views,
        key_views=key_views,
        crops=crops,
        eval_views=eval_views,
        **schedules._asdict(),
        tx=make_optimizer(config.optimizer, schedules.learning_rate),
        embed_fn=evaluation.make_embed_fn(network, eval_views, batch_size=config.eval.batch_size),
        steps_per_epoch=steps_per_epoch,
        clusters=computed,
        knn_levels=_knn_levels(config.loss, train),
    )


def _knn_levels(loss: ml_collections.ConfigDict, train: Records) -> tuple[KnnLevel, ...]:
    weights = loss.level_weights or (1.0,) * len(loss.levels)
    return tuple(
        KnnLevel(name, float(weight), hierarchy.ancestors(train, name, "loss.levels"))
        for name, weight in zip(loss.levels, weights, strict=True)
    )


def _check_records(config: ml_collections.ConfigDict, records: dict[str, Records], method: methods.Method) -> None:
    """Raises UserError for data that cannot be trained on, or evaluated, with the config."""
    train, most = records["train"], max(config.eval.recall_at)
    hierarchy.check_trainable(train, neighbours=method.uses_memory)
    if method.trains and config.train.batch_size > len(train):
        raise UserError(
            f"found train.batch_size = {config.train.batch_size}; expected at most {len(train)}, the number of "
            "training images."
        )
    if most >= len(records["test"]):
        raise UserError(
            f"found eval.recall_at up to {most}; expected at most {len(records['test']) - 1}, the number of other test "
            "images; lower it or enlarge the test split."
        )
    augment.check_channels(train.image.shape[-1], config.views.mean, config.views.std)


def _check_memory(config: ml_collections.ConfigDict, train: Records) -> None:
    """Raises UserError if the resident training set would fill more than half of a device's memory."""
    limit = (parallel.devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit and not config.data.stream and train.image.nbytes > limit / 2:
        raise UserError(
            f"found {train.image.nbytes / 2**30:.1f} GiB of training images; expected at most half of a device's "
            f"{limit / 2**30:.1f} GiB; use data.stream = True."
        )


def make_feed(run: Experiment) -> Resident | Streamed:
    """Returns the batches of a run: resident on the devices, or streamed from files."""
    config, records = run.config, run.training
    batches = {"seed": config.seed, "batch_size": config.train.batch_size}
    if config.data.stream:
        return Streamed(records, shuffle_buffer=config.train.shuffle_buffer, crops=run.crops, **batches)
    return Resident(records, steps_per_call=config.train.steps_per_call, **batches)


def evaluate(run: Experiment, state: TrainState, *, probe: bool = False, clusters: bool = False) -> dict[str, float]:
    """Returns the step and the test metrics of a state (docs/paper.md section 1), from one embedding pass.

    Metrics of the first of `eval.layers` have plain names (`map`, `recall@1`, `coarse/knn_top1`, …), those of other
    layers have the layer as a prefix (`projector/map`). Without a projector, only the trunk is evaluated. A classifier
    adds `top1` at the train level, unless its classes are clusters. `probe` adds the metrics of a logistic probe on
    trunk features. `clusters`, and `eval.clusters` after the last step, add those of k-means clusters of the
    finest level.

    Raises:
      UserError: the network has diverged, or image files can no longer be read.
    """
    config, test = run.config.eval, run.records["test"]
    clusters = clusters or (config.clusters and int(state.step) == run.total_steps)
    embedded, labels = {}, {}
    for split, records in run.records.items():
        rows = run.embed_fn(state.variables, records.image)
        read = evaluation.readable(rows)
        complete = read.all()  # avoids a copy of all rows
        embedded[split] = {name: x if complete else x[read] for name, x in rows.items() if name != "unread"}
        for name in ("trunk", "projector"):
            if name in rows:
                neighbors.check_embeddings(f"{name} of split {split}", embedded[split][name], remedy=_DIVERGED)
        labels[split] = {level: label[read] for level, label in records.labels.items()}
    result: dict[str, float] = {}
    layers = config.layers if "projector" in embedded["test"] else ("trunk",)
    for i, name in enumerate(layers):
        values = retrieval_metrics.evaluate(
            *(
                retrieval_metrics.Embedded(evaluation.of_layer(embedded[split], name), labels[split])
                for split in ("test", "train")
            ),
            ks=config.recall_at,
            knn_k=config.knn_k,
            knn_temperature=config.knn_temperature,
            probe=probe and name == "trunk",
            clusters=clusters,
        )
        result |= values if i == 0 else {f"{name}/{key}": value for key, value in values.items()}
    level = "" if test.train_level == test.finest else test.train_level
    label = labels["test"].get(level)
    if run.clusters is None and "class" in embedded["test"] and label is not None:
        result[f"{level}/top1" if level else "top1"] = float(np.mean(embedded["test"]["class"][:, 0] == label))
    return result | {"step": int(state.step)}


def contents(records: Mapping[str, Records]) -> dict[str, str]:
    """Returns split -> digest of its images and labels in any order; skips splits whose images stay in files."""
    found = {split: of_split.content() for split, of_split in records.items()}
    return {split: content for split, content in found.items() if content is not None}
