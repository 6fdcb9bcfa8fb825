"""Every key of a config with its default."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections
from flax import traverse_util

from grafit_jax.errors import UserError, did_you_mean
from grafit_jax.views import augment

# Like what the entries are of a tuple that is empty by default.
_ENTRIES: Mapping[str, tuple[Any]] = {
    "data.coarse_classes": (0,),
    "memory.step_epochs": (40,),
    "memory.step_momentum": (0.8,),
    "optimizer.boundary_epochs": (40,),
}
# Keys that are not of one type, and what they may be.
_CHOICES: Mapping[str, tuple[Any, ...]] = dict.fromkeys(
    ("views.autoaugment", "key_views.autoaugment"), augment.AUTOAUGMENT
)
_LARGEST = 2**32
# Old key -> the key that it is called by now; a workdir, result or embedding file with an old one is read all the same.
RENAMED: Mapping[str, str] = {
    "clusters.workdir": "clusterfit.source",
    "clusters.k": "clusterfit.num_clusters",
    "clusters.cosine": "clusterfit.spherical",
    "data.fit": "data.resize_mode",
    "data.broken": "data.on_unreadable",
    "data.categories": "data.inat_categories_file",
    "eval.features": "eval.layers",
    "key_views.erase": "key_views.erase_prob",
    "key_views.flip": "key_views.flip_prob",
    "key_views.grey": "key_views.grayscale_prob",
    "loss.soft_temperature": "loss.maskcon_temperature",
    "loss.weight": "loss.maskcon_weight",
    "model.dim": "model.embed_dim",
    "model.hidden": "model.head_hidden_dim",
    "optimizer.step_epochs": "optimizer.boundary_epochs",
    "views.erase": "views.erase_prob",
    "views.flip": "views.flip_prob",
    "views.grey": "views.grayscale_prob",
    "from": "init",  # an argument of config files
}
# Where the data lie on disk.
PLACES = ("data.data_dir", "data.inat_categories_file")


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
    # Made square as: squash = the whole image, its proportions lost | centre = a square in its middle.
    d.resize_mode = "squash"
    # Of stanford_online_products: split1 | split2; empty = all images, in TFDS's own splits.
    # Of omniglot: within (or empty) = the same characters in both splits | unseen = TFDS's own splits, other alphabets.
    d.variant = ""
    # categories.json of i_naturalist2018, for all but species; empty = in the data set's own folder.
    d.inat_categories_file = ""
    d.test_split = ""  # of folder: and csv:, what the test split is called; empty = test, else val, else validation
    # A file of folder: or csv: that cannot be read is an error; skip: it is left out, and listed.
    d.on_unreadable = "fatal"

    c.model = m = ml_collections.ConfigDict()
    m.trunk = "resnet18"
    m.stem = "cifar"  # imagenet | cifar | patch2
    m.head_hidden_dim = 4096  # of projector and predictor (BYOL)
    m.embed_dim = 256  # of the embedding (BYOL)
    m.dtype = "float32"  # of the computation; bfloat16 on accelerators. Parameters, statistics and losses: float32
    m.head_batch_norm = True  # in projector and predictor
    m.projector_norm = False  # True: the projector ends in a batch norm without scale and bias
    m.head_init = "lecun"  # of the heads' linear layers: lecun (Flax's default) | pytorch (PyTorch's)
    # What the trunk starts from: a run's workdir, or a .safetensors or .pth file with torchvision's network.
    m.pretrained = ""
    m.remat = False  # True: a residual block's activations are made again in the backward pass: less memory, more time
    m.sync_batch_norm = True  # batch statistics over all devices, so that the device count changes nothing

    c.views = v = ml_collections.ConfigDict()  # see views/augment.py
    v.num_views = 8  # T of Eq. 1; the supervised losses see the first view alone
    v.size = 32
    v.mean = (0.507, 0.487, 0.441)
    v.std = (0.267, 0.256, 0.276)
    v.update(_augmentations())

    c.key_views = _augmentations()  # of the momentum encoder's keys; size, mean and std are those of views

    c.mixing = ml_collections.ConfigDict({"mixup": 0.0, "cutmix": 0.0})  # see views/mixing.py; for cross-entropy alone

    c.loss = ml_collections.ConfigDict()
    c.loss.temperature = 0.05  # sigma of Eq. 2, and t0 of the losses over the queue
    c.loss.instance_weight = 1.0  # lambda of Eq. 4
    c.loss.label_smoothing = 0.0  # of cross-entropy
    c.loss.maskcon_weight = 0.5  # w of protocol "maskcon"
    c.loss.maskcon_temperature = 0.05  # t of maskcon

    c.memory = ml_collections.ConfigDict()
    c.memory.momentum = 0.5
    c.memory.step_epochs = ()  # from each of these epochs on, the momentum is the one of step_momentum
    c.memory.step_momentum = ()
    c.memory.init = "embed"  # embed: one pass over the training set | random: uniform on the sphere

    c.queue = ml_collections.ConfigDict({"size": 8192})  # K, of methods with a queue

    c.clusterfit = ml_collections.ConfigDict()  # of clusterfit and clusterfit_plus
    c.clusterfit.source = ""  # of the finished run, trained on coarse labels, whose trunk's features are clustered
    c.clusterfit.num_clusters = 0  # how many; ClusterFit's has to be chosen for a data set
    c.clusterfit.spherical = True  # by cosine, as everything is compared here; False: Euclidean

    c.ema = ml_collections.ConfigDict({"base": 0.996, "final": 1.0})  # tau at the start, and at the end (BYOL)

    c.optimizer = o = ml_collections.ConfigDict()
    o.learning_rate = 0.1  # for 256 images a step; scaled in proportion to the batch size
    o.momentum = 0.9
    o.nesterov = True
    o.weight_decay = 1e-4
    o.decay_all = False  # False: on kernels alone, not on biases and batch norms (BYOL)
    o.warmup_epochs = 10.0
    o.layer_decay = 1.0  # the rate of each block is that of the next one above it times this; heads have the full rate
    o.schedule = "cosine"  # cosine: to 0 at the end | step: times step_factor from each of boundary_epochs on
    o.boundary_epochs = ()
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
    e.layers = ("trunk", "projector")  # the first is the headline, the others get their name as a prefix
    e.recall_at = (1, 2, 5, 10)
    e.knn_k = 30
    e.knn_temperature = 0.05

    c.checkpoint = ml_collections.ConfigDict()
    c.checkpoint.every_epochs = 10
    c.checkpoint.every_steps = 0  # > 0: and after so many steps, wherever in an epoch that is
    c.checkpoint.keep = 2  # the newest ones; the best one by `map` is kept beside them
    return c.lock()


def _augmentations() -> ml_collections.ConfigDict:
    """What is done to a view, with the defaults of `augment.Views`, which says what each means."""
    fields = dataclasses.fields(augment.Views)
    a = ml_collections.ConfigDict({f.name: f.default for f in fields if f.default is not dataclasses.MISSING})
    del a.resize  # of evaluation: see `eval`
    a.autoaugment = ml_collections.FieldReference(a.autoaugment, field_type=object)  # False, True or text
    return a


def check_schema(config: ml_collections.ConfigDict) -> None:
    """Raises a UserError for keys that are not known, or values that no run can take where the default's stand."""
    known, found = flatten(default()), flatten(config)
    for key in found:
        if key not in known:
            raise unknown_key(key, known)
    for key, like in known.items():
        if key not in found:
            raise UserError(f"config key {key!r} is missing: start from grafit_jax.config.default().")
        wanted = _wanted(key, found[key], like)
        if wanted:
            raise UserError(f"{key} = {found[key]!r}: want {wanted}.")


def _wanted(key: str, value: Any, like: Any) -> str | None:
    """What is wanted in place of a value where one like `like` should be; None where it is one."""
    if key in _CHOICES:
        known = any(type(value) is type(choice) and value == choice for choice in _CHOICES[key])
        return None if known else f"one of {', '.join(map(repr, _CHOICES[key]))}"
    if isinstance(like, tuple):
        entries = like or _ENTRIES[key]
        if not isinstance(value, tuple):
            return f"a tuple, such as {entries}"
        return next(filter(None, (_wanted(key, entry, entries[0]) for entry in value)), None)
    if type(value) is not type(like) and not (type(value) is int and isinstance(like, float)):
        return f"a {type(like).__name__}, such as {like!r}"
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if isinstance(value, int) and not -_LARGEST < value < _LARGEST:
        return "a number that fits into 32 bits"
    if isinstance(value, str) and "\0" in value:
        return "text without NUL"
    return None


def unknown_key(key: str, known: Iterable[str] = ()) -> UserError:
    """What to raise for a key that is not known, or a part of one: an old key's message names the present one."""
    renamed = [f"{old} is called {new} now" for old, new in RENAMED.items() if f".{key}." in f".{old}."]
    hint = f": {', '.join(renamed)}" if renamed else did_you_mean(key, known)
    return UserError(f"unknown config key {key!r}{hint}.")


def renamed(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys to values, old keys by their present names."""
    return {RENAMED.get(key, key): value for key, value in flat.items()}


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys to values."""
    nested = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else {**config}
    return traverse_util.flatten_dict(nested, sep=".")


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
            {k: tuple(v) if isinstance(v, list) else v for k, v in renamed(flatten(json.loads(text))).items()}
        )
    check_schema(config)
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
