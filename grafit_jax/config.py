"""Every key of a config with its default, the typed arguments of config files, and the checks before a run."""

import ast
import importlib.util
import itertools
import json
import math
import pathlib
import types
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from grafit_jax import methods
from grafit_jax.errors import UserError
from grafit_jax.models import heads
from grafit_jax.models.trunks import STEMS, TORCHVISION, TRUNKS
from grafit_jax.models.weights import WEIGHTS
from grafit_jax.views import augment
from grafit_jax.views.crops import FITS

# Like what the entries are of a tuple that is empty by default.
_ENTRIES: Mapping[str, tuple[Any]] = {
    "data.coarse_classes": (0,),
    "memory.step_epochs": (40,),
    "memory.step_momentum": (0.8,),
    "optimizer.step_epochs": (40,),
}
# Keys that are not of one type, and what they may be.
_CHOICES: Mapping[str, tuple[Any, ...]] = dict.fromkeys(
    ("views.autoaugment", "key_views.autoaugment"), augment.AUTOAUGMENT
)
_LARGEST = 2**32
# Where the data lie on disk.
PLACES = ("data.data_dir", "data.categories")


def default() -> ml_collections.ConfigDict:
    """The paper's values where they are known, else BYOL's and SNCA's; docs/design.md has each one's standing."""
    c = ml_collections.ConfigDict()
    c.method = "grafit"
    c.seed = 0

    c.data = d = ml_collections.ConfigDict()
    d.source = "digits"  # digits | tfds:NAME | npz:DIR | folder:DIR | csv:FILE
    d.data_dir = ""  # where TFDS keeps its data sets; empty = TFDS's own default
    d.stream = False  # True: the training images stay in their files (not npz), where they do not fit on the devices
    d.train_level = ""  # the level of labels that is trained on, such as fine or family; empty = the coarse one
    d.coarse_classes = ()  # keep only the images of these coarse classes; empty = all
    d.holdout = 0.0  # > 0: test on this share of the training split, to choose settings without touching the test split
    d.image_size = 0  # > 0: images are resized to this many pixels a side as they are read (not npz); 0 = as they are
    d.fit = "squash"  # made square as: squash = the whole image, its proportions lost | centre = a square in its middle
    # Of stanford_online_products: split1 | split2; empty = all images, in TFDS's own splits.
    # Of omniglot: within (or empty) = the same characters in both splits | unseen = TFDS's own splits, other alphabets.
    d.variant = ""
    d.categories = ""  # categories.json of i_naturalist2018, for all but species; empty = in the data set's own folder
    d.test_split = ""  # of folder: and csv:, what the test split is called; empty = test, else val, else validation
    d.broken = "fatal"  # a file of folder: or csv: that cannot be read is an error; skip: it is left out, and listed

    c.model = m = ml_collections.ConfigDict()
    m.trunk = "resnet18"
    m.stem = "cifar"  # imagenet | cifar | patch2
    m.hidden = 4096  # of projector and predictor (BYOL)
    m.dim = 256  # of the embedding (BYOL)
    m.dtype = "float32"  # of the computation; bfloat16 on accelerators. Parameters, statistics and losses: float32
    m.head_batch_norm = True  # in projector and predictor
    m.projector_norm = False  # True: the projector ends in a batch norm without scale and bias
    m.head_init = "lecun"  # of the heads' linear layers: lecun (Flax's default) | pytorch (PyTorch's)
    # What the trunk starts from: a run's workdir, or a .safetensors or .pth file with torchvision's network.
    m.pretrained = ""
    m.remat = False  # True: a residual block's activations are made again in the backward pass: less memory, more time
    m.sync_batch_norm = True  # batch statistics over all devices, so that the device count changes nothing

    c.views = v = ml_collections.ConfigDict()  # see data/augment.py
    v.num_views = 8  # T of Eq. 1; the supervised losses see the first view alone
    v.size = 32
    v.mean = (0.507, 0.487, 0.441)
    v.std = (0.267, 0.256, 0.276)
    v.update(_augmentations())

    c.key_views = _augmentations()  # of the momentum encoder's keys; size, mean and std are those of views

    c.mixing = ml_collections.ConfigDict()  # see data/mixing.py; for cross-entropy alone
    c.mixing.mixup = 0.0
    c.mixing.cutmix = 0.0

    c.loss = ml_collections.ConfigDict()
    c.loss.temperature = 0.05  # sigma of Eq. 2
    c.loss.instance_weight = 1.0  # lambda of Eq. 4
    c.loss.label_smoothing = 0.0  # of cross-entropy
    c.loss.weight = 0.5  # w of protocol "maskcon"
    c.loss.soft_temperature = 0.05  # t of maskcon

    c.memory = ml_collections.ConfigDict()
    c.memory.momentum = 0.5
    c.memory.step_epochs = ()  # from each of these epochs on, the momentum is the one of step_momentum
    c.memory.step_momentum = ()
    c.memory.init = "embed"  # embed: one pass over the training set | random: uniform on the sphere

    c.queue = ml_collections.ConfigDict()
    c.queue.size = 8192  # K, of protocol "maskcon"

    c.clusters = ml_collections.ConfigDict()  # of clusterfit and clusterfit_plus
    c.clusters.workdir = ""  # of the finished run, trained on coarse labels, whose trunk's features are clustered
    c.clusters.k = 0  # how many; ClusterFit's has to be chosen for a data set
    c.clusters.cosine = True  # by cosine, as everything is compared here; False: Euclidean

    c.ema = ml_collections.ConfigDict()
    c.ema.base = 0.996  # tau at the start
    c.ema.final = 1.0  # and at the end (BYOL)

    c.optimizer = o = ml_collections.ConfigDict()
    o.learning_rate = 0.1  # for 256 images a step; scaled in proportion to the batch size
    o.momentum = 0.9
    o.nesterov = True
    o.weight_decay = 1e-4
    o.decay_all = False  # False: on kernels alone, not on biases and batch norms (BYOL)
    o.warmup_epochs = 10.0
    o.layer_decay = 1.0  # the rate of each block is that of the next one above it times this; heads have the full rate
    o.schedule = "cosine"  # cosine: to 0 at the end | step: times step_factor from each of step_epochs on
    o.step_epochs = ()
    o.step_factor = 0.1

    c.train = t = ml_collections.ConfigDict()
    t.epochs = 600
    t.batch_size = 1024  # over all devices
    t.skip_not_finite = False  # True: a step with a loss or gradient that is not finite is left out and counted
    t.steps_per_call = 0  # steps in one lax.scan; 0 = up to 100 on accelerators, 1 on CPU, where XLA's loops are slow
    t.shuffle_buffer = 10_000  # images, still encoded, that a streamed order is drawn from
    # True: streamed images are cropped on the host as they are in their files, T times of one decode; False: on the
    # device, from squares of data.image_size.
    t.host_crops = False

    c.eval = e = ml_collections.ConfigDict()
    e.every_epochs = 0  # 0 = at the end only
    e.batch_size = 500
    # What the network sees of an image: size x size pixels, of which 0 = views.size.
    # whole = the whole image, resized to that (its proportions lost, if it is not square)
    # centre = that much from the middle of an image whose shorter side was resized to `resize` pixels
    e.size = 0
    e.crop = "whole"
    e.resize = 0  # with centre: 0 = 8/7 of size, as 256 for 224
    e.features = ("trunk", "projector")  # the first is the headline, the others get their name as a prefix
    e.recall_at = (1, 2, 5, 10)
    e.knn_k = 30
    e.knn_temperature = 0.05

    c.checkpoint = ml_collections.ConfigDict()
    c.checkpoint.every_epochs = 10
    c.checkpoint.every_steps = 0  # > 0: and after so many steps, wherever in an epoch that is
    c.checkpoint.keep = 2  # the newest ones; the best one by `map` is kept beside them
    return c.lock()


def _augmentations() -> ml_collections.ConfigDict:
    """What is done to a view; see data/augment.py."""
    a = ml_collections.ConfigDict()
    a.crop_scale = (0.2, 1.0)
    a.crop_ratio = (0.75, 4 / 3)
    a.flip = 0.5
    a.jitter = (0.0, 0.0, 0.0, 0.0)
    a.jitter_prob = 0.8
    a.grey = 0.0
    a.randaugment_ops = 0
    a.randaugment_magnitude = 9
    a.erase = 0.0
    # AutoAugment's policy for CIFAR-10: True as in torchvision | "maskcon" as in MaskCon's code.
    a.autoaugment = ml_collections.FieldReference(False, field_type=object)
    a.perspective = 0.0
    a.perspective_prob = 0.5
    a.blur = (0.0, 0.0)
    a.blur_prob = 0.5
    return a


def load_module(path: pathlib.Path) -> types.ModuleType:
    """A config file."""
    spec = importlib.util.spec_from_file_location("config_file", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_file(path: pathlib.Path, arg: str) -> ml_collections.ConfigDict:
    """The config that a config file makes of `arg`, which stands behind the colon on a command line."""
    return load_module(path).get_config(arg)


def parse_arg(arg: str | None, **defaults: Any) -> ml_collections.ConfigDict:
    """The `key=value,key=value` behind the colon of `--config=file.py:…`, typed like `defaults`.

    Raises:
      UserError: a key that is not in `defaults` (with the nearest known one), or a value of another type.
    """
    values = dict(defaults)
    for part in filter(None, (arg or "").split(",")):
        key, equals, text = part.partition("=")
        if not equals and key not in defaults:
            raise UserError(
                f"config argument {part!r} is no key=value: want a key of {', '.join(defaults)}; a value that holds a "
                "comma has to be given behind its own flag, as --config.data.source=VALUE."
            )
        if key not in defaults:
            raise UserError(
                f"unknown config argument {key!r}{methods.did_you_mean(key, defaults)}: want key=value with a key of "
                f"{', '.join(defaults)}."
            )
        if not equals:
            raise UserError(f"config argument {part!r} has no value: write {key}=VALUE.")
        values[key] = typed(key, text, defaults[key])
    return ml_collections.ConfigDict(values)


def typed(key: str, text: str, like: Any) -> Any:
    """The value of an argument of type `like`'s, from text; UserError for text of another type."""
    if isinstance(like, str):
        return text
    try:
        value = ast.literal_eval(text.title() if isinstance(like, bool) else text)
        if isinstance(like, float) and type(value) is int:
            value = float(value)
        if type(value) is type(like):
            return value
    # Nested brackets run out of stack, {[]: 1} does not hash, and 10**400 is no float.
    except (ValueError, SyntaxError, TypeError, OverflowError, RecursionError, MemoryError):
        pass
    raise UserError(f"config argument {key}={text}: want a value of type {type(like).__name__}, like {like!r}.")


def choose(name: str, what: str, known: Iterable[str]) -> str:
    """`name`, if it is among the `known` ones; else a UserError that says what there is."""
    known = tuple(known)
    if name not in known:
        raise UserError(f"unknown {what} {name!r}{methods.did_you_mean(name, known)}: want one of {', '.join(known)}.")
    return name


def validate(config: ml_collections.ConfigDict, *, num_devices: int) -> None:
    """Raises a UserError for what can be seen to be wrong before data or devices are touched."""
    _check_keys(config)
    _check_types(config)
    method = methods.get(config.method)
    choose(config.model.trunk, "trunk", TRUNKS)
    choose(config.model.stem, "stem", STEMS)
    if config.model.pretrained.endswith(WEIGHTS):
        choose(config.model.trunk, "trunk with pretrained weights", TORCHVISION)
    choose(config.model.dtype, "model.dtype", ("float32", "bfloat16"))
    if config.model.projector_norm and method.projector != "mlp":
        raise UserError(f"model.projector_norm is on, and {method.name} has no projector of two layers: leave it off.")
    choose(config.model.head_init, "model.head_init", heads.INITS)
    choose(config.memory.init, "memory.init", ("embed", "random"))
    choose(config.data.broken, "data.broken", ("fatal", "skip"))
    choose(config.optimizer.schedule, "optimizer.schedule", ("cosine", "step"))
    if not config.eval.features:
        raise UserError("eval.features is empty: name trunk, projector or both, the headline first.")
    for name in config.eval.features:
        choose(name, "entry of eval.features", ("trunk", "projector"))
    if config.eval.features[0] == "projector" and not method.projector:
        raise UserError(f"eval.features starts with projector, but {method.name} has none: put trunk first.")

    def want(condition: bool, key: str, wanted: str) -> None:
        if not condition:
            value = config
            for part in key.split("."):
                value = value[part]
            raise UserError(f"{key} = {value}: want {wanted}.")

    if method.instance == "predict":
        want(config.views.num_views >= 2, "views.num_views", "T >= 2, since Eq. 1 compares one view with another")
    if len(set(config.eval.features)) < len(config.eval.features):
        raise UserError(f"eval.features = {config.eval.features} names one twice: name each once.")
    want(config.seed >= 0, "seed", "0 or more")
    want(config.data.image_size >= 0, "data.image_size", "0 (as they are) or the pixels of a side")
    want(config.model.hidden >= 1, "model.hidden", "at least 1")
    want(config.model.dim >= 1, "model.dim", "at least 1")
    patches = config.model.stem == "patch2"
    want(not patches or config.views.size % 2 == 0, "views.size", "an even number for the stem patch2")
    want(config.loss.temperature > 0, "loss.temperature", "sigma > 0 (the paper's is 0.05)")
    want(config.eval.knn_temperature > 0, "eval.knn_temperature", "sigma > 0 (SNCA's is 0.05)")
    want(0 <= config.memory.momentum < 1, "memory.momentum", "a value in [0, 1) (the paper's is 0.5)")
    for key, steps in (("memory", config.memory.step_epochs), ("optimizer", config.optimizer.step_epochs)):
        ascending = all(a < b for a, b in itertools.pairwise((0, *steps)))
        want(ascending, f"{key}.step_epochs", "epochs > 0 in ascending order, as (40, 80)")
    want(all(0 <= m < 1 for m in config.memory.step_momentum), "memory.step_momentum", "values in [0, 1)")
    want(
        len(config.memory.step_momentum) == len(config.memory.step_epochs),
        "memory.step_momentum",
        f"a value for each of memory.step_epochs, {config.memory.step_epochs}",
    )
    if config.optimizer.schedule == "step":
        want(len(config.optimizer.step_epochs) > 0, "optimizer.step_epochs", "at least one epoch with schedule step")
    want(0 < config.optimizer.step_factor <= 1, "optimizer.step_factor", "a value in (0, 1]")
    if method.clusters:
        want(bool(config.clusters.workdir), "clusters.workdir", "the workdir of a finished baseline")
        want(config.clusters.k >= 2, "clusters.k", "at least 2 clusters")
    want(0 <= config.ema.base <= 1, "ema.base", "a value in [0, 1] (BYOL's is 0.996)")
    want(0 <= config.ema.final <= 1, "ema.final", "a value in [0, 1] (BYOL's is 1)")
    want(0 <= config.loss.label_smoothing < 1, "loss.label_smoothing", "a value in [0, 1)")
    if method.supervised != "cross_entropy":
        smoothed = config.loss.label_smoothing
        want(smoothed == 0, "loss.label_smoothing", f"0, since {method.name} trains no cross-entropy")
    want(0 < config.optimizer.layer_decay <= 1, "optimizer.layer_decay", "a factor in (0, 1]")
    want(config.eval.size >= 0, "eval.size", "0 (as views.size) or the pixels of a side")
    choose(config.eval.crop, "eval.crop", augment.EVAL_CROPS)
    if config.eval.crop == "whole":
        want(config.eval.resize == 0, "eval.resize", "0, since eval.crop is whole; or eval.crop = centre")
    else:
        size = config.eval.size or config.views.size
        fits = config.eval.resize == 0 or config.eval.resize >= size
        want(fits, "eval.resize", f"0 (8/7 of the size) or at least the size, {size} pixels")
        kept = config.eval.resize or augment.resize_for(size)
        enough = config.data.image_size == 0 or config.data.image_size >= kept
        want(enough, "data.image_size", f"0 (as they are) or at least {kept}, what is cropped in evaluation")
    want(not patches or config.eval.size % 2 == 0, "eval.size", "an even number for the stem patch2")
    for key in ("mixup", "cutmix"):
        want(config.mixing[key] >= 0, f"mixing.{key}", "alpha > 0, or 0 for none")
        if method.supervised != "cross_entropy" or method.instance:
            want(config.mixing[key] == 0, f"mixing.{key}", f"0, since {method.name} does not train cross-entropy alone")
    want(config.loss.instance_weight >= 0, "loss.instance_weight", "lambda >= 0 (the paper's is 1)")
    want(0 <= config.loss.weight <= 1, "loss.weight", "w in [0, 1]")
    want(config.loss.soft_temperature > 0, "loss.soft_temperature", "t > 0 (MaskCon's is 0.05)")
    if method.queue:
        want(
            config.queue.size >= config.train.batch_size,
            "queue.size",
            f"K of at least a batch, which has {config.train.batch_size} keys (MaskCon's is 8192)",
        )
    want(config.optimizer.learning_rate > 0, "optimizer.learning_rate", "a value > 0")
    want(config.optimizer.weight_decay >= 0, "optimizer.weight_decay", "0 or more")
    want(0 <= config.optimizer.momentum < 1, "optimizer.momentum", "a value in [0, 1)")
    want(config.optimizer.warmup_epochs >= 0, "optimizer.warmup_epochs", "0 or more")
    want(config.train.epochs >= 1, "train.epochs", "at least 1")
    want(config.train.batch_size >= 1, "train.batch_size", "at least 1")
    want(config.train.steps_per_call >= 0, "train.steps_per_call", "0 (chosen for the device) or more")
    if config.data.stream:
        want(
            config.train.steps_per_call <= 1,
            "train.steps_per_call",
            "0 or 1 with data.stream: each step is handed its batch",
        )
    want(config.data.stream or not config.train.host_crops, "train.host_crops", "False unless data.stream is on")
    choose(config.data.fit, "fit", FITS)
    want(config.train.shuffle_buffer >= 1, "train.shuffle_buffer", "at least 1")
    want(config.eval.batch_size >= 1, "eval.batch_size", "at least 1")
    positive = all(k >= 1 for k in config.eval.recall_at)
    want(len(config.eval.recall_at) > 0 and positive, "eval.recall_at", "whole numbers k >= 1")
    want(config.eval.every_epochs >= 0, "eval.every_epochs", "0 (at the end alone) or more")
    want(config.eval.knn_k >= 1, "eval.knn_k", "at least 1")
    want(config.checkpoint.every_epochs >= 1, "checkpoint.every_epochs", "at least 1")
    want(config.checkpoint.every_steps >= 0, "checkpoint.every_steps", "0 (at the end of epochs alone) or more")
    want(config.checkpoint.keep >= 1, "checkpoint.keep", "at least 1")
    if config.train.batch_size % num_devices:
        below = config.train.batch_size // num_devices * num_devices
        near = f"{below} or {below + num_devices}" if below else str(num_devices)
        raise UserError(
            f"train.batch_size = {config.train.batch_size} does not divide over {num_devices} devices: take {near}."
        )


def _check_keys(config: ml_collections.ConfigDict) -> None:
    known, found = flatten(default()), flatten(config)
    for key in found:
        if key not in known:
            raise UserError(f"unknown config key {key!r}{methods.did_you_mean(key, known)}.")
    for key in known:
        if key not in found:
            raise UserError(f"config key {key!r} is missing: start from grafit_jax.config.default().")


def _check_types(config: ml_collections.ConfigDict) -> None:
    """Raises a UserError for a value of another kind than the default's, or one that no run can take."""
    found = flatten(config)
    for key, default_value in flatten(default()).items():
        if key in _CHOICES:
            if not any(type(found[key]) is type(choice) and found[key] == choice for choice in _CHOICES[key]):
                raise UserError(f"{key} = {found[key]!r}: want one of {', '.join(map(repr, _CHOICES[key]))}.")
            continue
        likes, values = (default_value,), (found[key],)
        if isinstance(default_value, tuple):
            likes = default_value[:1] or _ENTRIES[key]
            if not isinstance(values[0], tuple):
                raise UserError(f"{key} = {values[0]!r}: want a tuple, such as {default_value or likes}.")
            values = values[0]
        for value in values:
            wanted = _wanted(value, likes[0])
            if wanted:
                raise UserError(f"{key} = {found[key]!r}: want {wanted}.")


def _wanted(value: Any, like: Any) -> str | None:
    """What is wanted in place of a value where one like `like` should be; None where it is one."""
    if type(value) is not type(like) and not (type(value) is int and isinstance(like, float)):
        return f"a {type(like).__name__}, such as {like!r}"
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if isinstance(value, int) and not -_LARGEST < value < _LARGEST:
        return "a number that fits into 32 bits"
    if isinstance(value, str) and "\0" in value:
        return "text without NUL"
    return None


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict | dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def to_json(config: ml_collections.ConfigDict) -> str:
    return json.dumps(config.to_dict(), indent=2)


def from_json(text: str) -> ml_collections.ConfigDict:
    """The config of `to_json`. JSON's lists become tuples again.

    Raises:
      UserError: keys that are not known, or values of another type than the default's.
      ValueError, KeyError, TypeError, AttributeError, RecursionError: text of another kind.
    """
    config = default()
    with config.ignore_type():
        config.update_from_flattened_dict(
            {k: tuple(v) if isinstance(v, list) else v for k, v in flatten(json.loads(text)).items()}
        )
    _check_keys(config)
    _check_types(config)
    return config


def without_places(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """`flatten`, without where the data lie on disk, which makes no difference."""
    return {key: value for key, value in flatten(config).items() if key not in PLACES}


def differences(old: ml_collections.ConfigDict, new: ml_collections.ConfigDict) -> list[str]:
    """'key: old -> new' for every key that differs; where the data lie on disk makes no difference."""
    a, b = without_places(old), without_places(new)
    return [
        f"{key}: {a.get(key)!r} -> {b.get(key)!r}" for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)
    ]
