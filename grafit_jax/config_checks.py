"""Checks of a config before a run, made before data or devices are used."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import ml_collections

from grafit_jax import config as config_lib
from grafit_jax import methods, open_keys
from grafit_jax.data.readers.folder import ON_UNREADABLE
from grafit_jax.errors import UserError, choose
from grafit_jax.methods import Method
from grafit_jax.models import heads
from grafit_jax.models.layers import STEMS
from grafit_jax.models.trunks import PRETRAINED, TRUNKS
from grafit_jax.models.weights import WEIGHTS
from grafit_jax.views import augment
from grafit_jax.views.crops import RESIZE_MODES

_CHOICES: Mapping[str, Iterable[str]] = {
    "model.trunk": TRUNKS,
    "model.stem": STEMS,
    "model.dtype": ("float32", "bfloat16"),
    "model.head_init": heads.INITS,
    "memory.init": ("embed", "random"),
    "data.on_unreadable": ON_UNREADABLE,
    "data.resize_mode": RESIZE_MODES,
    "optimizer.name": ("sgd", "adamw"),
    "optimizer.schedule": ("cosine", "step"),
    "eval.crop": ("whole", "centre"),
}

# A predicate of a value, and a description of the values that satisfy it.
_Rule = tuple[Callable[[Any], bool], str]
_FROM_0: _Rule = (lambda v: v >= 0, "0 or more")
_FROM_1: _Rule = (lambda v: v >= 1, "at least 1")
_BELOW_1: _Rule = (lambda v: 0 <= v < 1, "a value in [0, 1)")
_ASCENDING: _Rule = (
    lambda v: all(a < b for a, b in itertools.pairwise((0, *v))),
    "ascending epochs > 0, such as (40, 80)",
)
_COUNTS = (
    "model.head_hidden_dim", "model.embed_dim", "train.epochs", "train.batch_size", "train.microbatches",
    "train.shuffle_buffer", "eval.batch_size", "eval.knn_k", "checkpoint.every_epochs", "checkpoint.keep",
)  # fmt: skip
_RULES: Mapping[str, _Rule] = dict.fromkeys(_COUNTS, _FROM_1) | {
    "seed": _FROM_0,
    "data.image_size": (lambda v: v >= 0, "0 (not resized) or the side in pixels"),
    "model.drop_path": _BELOW_1,
    "mixing.mixup": (lambda v: v >= 0, "alpha > 0, or 0 (off)"),
    "mixing.cutmix": (lambda v: v >= 0, "alpha > 0, or 0 (off)"),
    "loss.temperature": (lambda v: v > 0, "sigma > 0 (the paper uses 0.05)"),
    "loss.instance_weight": (lambda v: v >= 0, "lambda >= 0 (the paper uses 1)"),
    "loss.levels": (lambda v: len({*v}) == len(v), "names of levels, each once"),
    "loss.level_weights": (lambda v: all(w >= 0 for w in v), "weights >= 0"),
    "loss.label_smoothing": _BELOW_1,
    "loss.maskcon_weight": (lambda v: 0 <= v <= 1, "w in [0, 1]"),
    "loss.maskcon_temperature": (lambda v: v > 0, "t > 0 (MaskCon uses 0.05)"),
    "memory.momentum": (lambda v: 0 <= v < 1, "a value in [0, 1) (the paper uses 0.5)"),
    "memory.step_epochs": _ASCENDING,
    "memory.step_momentum": (lambda v: all(0 <= m < 1 for m in v), "values in [0, 1)"),
    "ema.base": (lambda v: 0 <= v <= 1, "a value in [0, 1] (BYOL uses 0.996)"),
    "ema.final": (lambda v: 0 <= v <= 1, "a value in [0, 1] (BYOL uses 1)"),
    "optimizer.learning_rate": (lambda v: v > 0, "a value > 0"),
    "optimizer.momentum": _BELOW_1,
    "optimizer.beta2": _BELOW_1,
    "optimizer.weight_decay": _FROM_0,
    "optimizer.warmup_epochs": _FROM_0,
    "optimizer.layer_decay": (lambda v: 0 < v <= 1, "a factor in (0, 1]"),
    "optimizer.boundary_epochs": _ASCENDING,
    "optimizer.step_factor": (lambda v: 0 < v <= 1, "a value in (0, 1]"),
    "train.steps_per_call": (lambda v: v >= 0, "0 (chosen for the device) or more"),
    "eval.every_epochs": (lambda v: v >= 0, "0 (at the end only) or more"),
    "eval.size": (lambda v: v >= 0, "0 (views.size) or the side in pixels"),
    "eval.layers": (
        lambda v: 0 < len({*v}) == len(v),
        "trunk, projector or concat, each once, the headline first",
    ),
    "eval.recall_at": (lambda v: len(v) > 0 and all(k >= 1 for k in v), "integers k >= 1"),
    "eval.knn_temperature": (lambda v: v > 0, "sigma > 0 (SNCA uses 0.05)"),
    "checkpoint.every_steps": (lambda v: v >= 0, "0 (none within epochs) or more"),
}


def _relations(c: ml_collections.ConfigDict, m: Method) -> Iterator[tuple[str, bool, str]]:
    """Yields checks across keys: (key to change, whether its value is valid, description of the valid values)."""
    trunk, classified = TRUNKS[c.model.trunk](stem=c.model.stem), m.supervised == "cross_entropy"
    centre, size = c.eval.crop == "centre", c.eval.size or c.views.size
    cropped = c.eval.resize or augment.resize_for(size)
    several = m.instance != "predict" or c.views.num_views >= 2
    yield "views.num_views", several, "T >= 2, since Eq. 1 compares one view with another"
    normed = c.model.projector_norm and m.projector != "mlp"
    yield "model.projector_norm", not normed, f"False, since {m.name} has no MLP projector"
    headless = c.eval.layers[0] != "trunk" and not m.projector
    yield "eval.layers", not headless, f"trunk first, since {m.name} has no projector"
    own = m.recipe.get("eval.layers", c.eval.layers)[0]
    yield "eval.layers", own in c.eval.layers, f"{own} among them with {m.name}, as by method={m.name} of a config file"
    fits = c.model.stem in trunk.stems
    yield "model.stem", fits, f"{' or '.join(trunk.stems)} with {c.model.trunk}, whose stem is its patches"
    yield "views.size", c.views.size % trunk.multiple == 0, _multiple(c, trunk.multiple, c.views.size)
    freeze, blocks = c.model.freeze, trunk.num_blocks
    part = freeze in ("", "trunk") or (freeze.isdecimal() and 1 <= int(freeze) < blocks)
    yield "model.freeze", part, f"trunk, a number of blocks, 1 to {blocks - 1} for {c.model.trunk}, or '' (nothing)"
    idle = m.trains and freeze == "trunk" and m.projector in (None, "identity") and not classified
    yield "model.freeze", not idle, f"'' or a number of blocks, since {m.name} trains neither projector nor classifier"
    each = len(c.memory.step_momentum) == len(c.memory.step_epochs)
    yield "memory.step_momentum", each, f"one value for each of memory.step_epochs = {c.memory.step_epochs}"
    stepped = c.optimizer.schedule != "step" or len(c.optimizer.boundary_epochs) > 0
    yield "optimizer.boundary_epochs", stepped, "at least one epoch with schedule step"
    yield "clusterfit.source", bool(c.clusterfit.source) or not m.uses_clusters, "the workdir of a finished baseline"
    yield "clusterfit.num_clusters", c.clusterfit.num_clusters >= 2 or not m.uses_clusters, "at least 2 clusters"
    yield "loss.levels", m.uses_memory or not c.loss.levels, f"empty, since {m.name} has no k-NN loss"
    each = not c.loss.level_weights or len(c.loss.level_weights) == len(c.loss.levels)
    yield "loss.level_weights", each, f"empty, or one weight for each of loss.levels = {c.loss.levels}"
    smoothed = c.loss.label_smoothing > 0 and not classified
    yield "loss.label_smoothing", not smoothed, f"0, since the supervised loss of {m.name} is no cross-entropy"
    for key in ("mixup", "cutmix"):
        mixed = c.mixing[key] > 0 and (m.instance or not classified)
        yield f"mixing.{key}", not mixed, f"0, since cross-entropy is not the only loss of {m.name}"
    yield "eval.resize", centre or c.eval.resize == 0, "0 with eval.crop = whole; use 0, or eval.crop = centre"
    fits = c.eval.resize == 0 or c.eval.resize >= size
    yield "eval.resize", fits, f"0 (8/7 of the size) or at least the size, {size} pixels"
    given = bool(c.model.init and c.model.pretrained)
    yield "model.init", not given, "none with model.pretrained, which gives another trunk; use one of them"
    enough = not centre or c.data.image_size == 0 or c.data.image_size >= cropped
    yield "data.image_size", enough, f"0 (not resized) or at least {cropped}, the side that evaluation crops from"
    yield "eval.size", c.eval.size % trunk.multiple == 0, _multiple(c, trunk.multiple, c.eval.size)
    short = m.uses_queue and c.queue.size < c.train.batch_size
    yield "queue.size", not short, f"at least train.batch_size = {c.train.batch_size} keys (MaskCon uses 8192)"
    single = not c.data.stream or c.train.steps_per_call <= 1
    yield "train.steps_per_call", single, "0 or 1 with data.stream, since the host feeds each step its batch"
    yield "train.host_crops", c.data.stream or not c.train.host_crops, "False unless data.stream is on"


def _multiple(c: ml_collections.ConfigDict, number: int, size: int) -> str:
    """Describes the sizes of images that the first layer divides into patches, with the one nearest to `size`."""
    if c.model.stem == "patch2":
        return "an even number for the stem patch2"
    near = max(round(size / number), 1) * number
    return f"a multiple of {number}, the patch of {c.model.trunk}; use {near}"


def validate(config: ml_collections.ConfigDict, *, num_devices: int) -> None:
    """Checks a config without using data or devices.

    Raises:
      UserError: an unknown key, or a value that is invalid by itself or together with others.
    """
    config_lib.check_schema(config)
    flat = config_lib.flatten(config)
    method = methods.get(config.method)
    for key, choices in _CHOICES.items():
        choose(flat[key], key, choices)
    if config.model.pretrained.startswith(open_keys.HUB) or config.model.pretrained.endswith(WEIGHTS):
        choose(config.model.trunk, "model.trunk with pretrained weights", PRETRAINED)
    for name in config.eval.layers:
        choose(name, "entry of eval.layers", config_lib.LAYERS)
    rules = ((key, is_valid(flat[key]), expected) for key, (is_valid, expected) in _RULES.items())
    for key, valid, expected in itertools.chain(rules, _relations(config, method)):
        if not valid:
            raise UserError(f"found {key} = {flat[key]!r}; expected {expected}.")
    parts, of = num_devices * config.train.microbatches, f"the {num_devices} devices"
    if config.train.microbatches > 1:
        of = f"{parts}, the number of devices ({num_devices}) times train.microbatches"
    if method.trains and config.train.batch_size % parts:
        below = config.train.batch_size // parts * parts
        near = f"{below} or {below + parts}" if below else str(parts)
        raise UserError(f"found train.batch_size = {config.train.batch_size}; expected a multiple of {of}; use {near}.")
