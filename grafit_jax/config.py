"""The config schema: every key with its default, and the conversion of configs to and from JSON."""

import copy
import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections
from flax import traverse_util

from grafit_jax import open_keys
from grafit_jax.errors import UserError, did_you_mean
from grafit_jax.views import augment

# Example entries, one of each type, of each tuple that is empty by default.
_ENTRIES: Mapping[str, tuple[Any, ...]] = {
    "data.coarse_classes": (0, "cats"),
    "loss.levels": ("coarse",),
    "loss.level_weights": (1.0,),
    "memory.step_epochs": (40,),
    "memory.step_momentum": (0.8,),
    "optimizer.boundary_epochs": (40,),
}
# Allowed values of the keys whose values have several types.
_CHOICES: Mapping[str, tuple[Any, ...]] = dict.fromkeys(
    ("views.autoaugment", "key_views.autoaugment"), augment.AUTOAUGMENT
)
_LARGEST = 2**32
# Keys with the location of the data on disk, which have no effect on results.
PLACES = ("data.data_dir", "data.cache", "data.inat_categories_file")
# Keys with the path of a run or of weights to start from.
STARTS = ("clusterfit.source", "model.init", "model.pretrained")
# The layers that can be evaluated and give embeddings: the first of a network without a projector, else all.
LAYERS = ("trunk", "projector", "concat")
# The kinds of data.source that are followed by a path.
FILES = ("folder", "csv", "npz")


def default() -> ml_collections.ConfigDict:
    """Returns the default config, locked: the paper's values where they are known, else BYOL's and SNCA's.

    docs/design.md lists the sources of the main choices. The comment after or above a key becomes its entry in
    docs/config.md.
    """
    c = ml_collections.ConfigDict()
    # Method to train, a name in grafit_jax.methods.METHODS: grafit | grafit_fc | snca_plus | snca | byol | baseline | …
    c.method = "grafit"
    c.seed = 0  # Seed of the initial weights, the order of the images and the augmentations, >= 0.

    c.data = d = ml_collections.ConfigDict()
    d.source = "digits"  # Data set: digits | tfds:NAME | npz:DIR | folder:DIR | csv:FILE.
    d.data_dir = ""  # Folder of the prepared TFDS data sets; empty = TFDS's default folder.
    # Whether training images stay in their files, for sets that exceed device memory; for tfds:, folder: and csv:.
    d.stream = False
    d.train_level = ""  # Label level to train on, such as fine or family; empty = the coarse level.
    d.coarse_classes = ()  # Numbers or names of the coarse classes to keep; empty = all.
    # Share of the training split, in [0, 1), held out and used as the test split; 0 = use the data set's test split.
    d.holdout = 0.0
    # Side in pixels to which images are resized when they are read, for tfds:, folder: and csv:; 0 = not resized.
    d.image_size = 0
    # How images become square: squash = resize both sides, changing the proportions | centre = crop the central square.
    d.resize_mode = "squash"
    # Variant of the data set. stanford_online_products: split1 | split2; empty = TFDS's splits with all images.
    # omniglot: within (or empty) = the same characters in both splits | unseen = TFDS's splits, with other alphabets.
    d.variant = ""
    # Path of i_naturalist2018's categories.json, read for every level but species; empty = in the data set's folder.
    d.inat_categories_file = ""
    # Name of the test split of a folder: or csv: data set; empty = the first of test, val and validation that exists.
    d.test_split = ""
    # Handling of unreadable image files, for folder: and csv:. fatal = raise an error | skip = leave out and list them.
    d.on_unreadable = "fatal"
    # Folder in which decoded images are kept for later runs on the same files, for tfds:, folder: and csv: without
    # data.stream; empty = none. Runs of a sweep may share it.
    d.cache = ""

    c.model = m = ml_collections.ConfigDict()
    # Trunk: resnet8 | resnet18 | resnet34 | resnet50 | regnet_y_200mf … regnet_y_16gf | tf_efficientnet_lite0 |
    # vit_small_patch16_224 | vit_small_patch14_dinov2 | vit_small_patch14_reg4_dinov2, also with base instead of small.
    m.trunk = "resnet18"
    # First layers: imagenet (stride 2, then max pooling for ResNets; the patches of vit_*, which have no other stem) |
    # cifar (stride 1) | patch2 (2x2 pixels folded into channels).
    m.stem = "cifar"
    m.head_hidden_dim = 4096  # Hidden width of projector and predictor, >= 1; BYOL uses 4096.
    m.embed_dim = 256  # Dimension of the embedding, >= 1; BYOL uses 256.
    # Dtype of the computation: float32 | bfloat16 (for accelerators). Parameters, statistics and losses stay float32.
    m.dtype = "float32"
    m.head_batch_norm = True  # Whether the hidden layer of projector and predictor has a batch norm.
    m.projector_norm = False  # Whether the projector ends in a batch norm without scale and bias.
    m.head_init = "lecun"  # Initialisation of the heads' linear layers: lecun (Flax's default) | pytorch (PyTorch's).
    # Initial trunk weights: hf:timm/NAME for a model of timm on the Hugging Face hub, the trunk of a run or saved
    # model in a folder, or a .safetensors or .pth file of torchvision's or timm's network; empty = random.
    m.pretrained = ""
    # Initial weights of trunk and heads: workdir of a run, folder of a saved model, or hf:owner/name; empty = none.
    m.init = ""
    # Part of the trunk that keeps its initial weights: trunk = all of it | a number N, below the number of blocks, such
    # as 6 = the stem and the first N blocks; empty = nothing. Its batch norms keep and use their running statistics.
    m.freeze = ""
    # Whether all batch norms of the trunk use, and keep, their running statistics in training; those of heads do not.
    m.freeze_batch_norm = False
    # Probability to leave out the residual branch of the trunk's last block, in [0, 1); that of the others falls
    # linearly to 0 at the first. The target network keeps all branches.
    m.drop_path = 0.0
    # Whether the backward pass recomputes the activations of residual blocks, which saves memory and costs time.
    m.remat = False
    # Whether batch statistics span all devices, which makes results independent of the device count.
    m.sync_batch_norm = True

    c.views = v = ml_collections.ConfigDict()
    v.num_views = (
        8  # T of Eq. 1, views of each image, >= 2 with an instance loss; supervised losses use the first view.
    )
    v.size = 32  # Side of a view in pixels.
    v.mean = (0.507, 0.487, 0.441)  # Mean of each channel, for pixel values in [0, 1], subtracted from each view.
    v.std = (0.267, 0.256, 0.276)  # Standard deviation of each channel, > 0, by which each view is divided.
    v.update(_augmentations())

    c.key_views = _augmentations()  # Views of the momentum encoder's keys; size, mean and std are those of views.

    c.mixing = ml_collections.ConfigDict()
    # alpha of Mixup's Beta(alpha, alpha), >= 0; 0 = no Mixup. Requires cross-entropy as the only loss. Images
    # are mixed within a microbatch; see train.microbatches.
    c.mixing.mixup = 0.0
    # alpha of CutMix's Beta(alpha, alpha), >= 0; 0 = no CutMix. As for mixing.mixup.
    c.mixing.cutmix = 0.0

    c.loss = ml_collections.ConfigDict()
    c.loss.temperature = 0.05  # sigma of Eq. 2, and t0 of the losses over the queue, > 0.
    c.loss.instance_weight = 1.0  # lambda of Eq. 4, the weight of the instance loss, >= 0.
    # Levels of the k-NN loss, data.train_level and coarser ones, whose losses are summed; empty = data.train_level.
    c.loss.levels = ()
    c.loss.level_weights = ()  # Weight of each of loss.levels, >= 0; empty = 1 each.
    c.loss.label_smoothing = 0.0  # Label smoothing of cross-entropy, in [0, 1).
    # w of protocol "maskcon", the weight of the supervised term, or of `attract` in method spread, in [0, 1].
    c.loss.maskcon_weight = 0.5
    c.loss.maskcon_temperature = 0.05  # t of method maskcon, the temperature of its soft labels, > 0.

    c.memory = ml_collections.ConfigDict()
    c.memory.momentum = 0.5  # Share of the old embedding in an updated memory slot, in [0, 1).
    c.memory.step_epochs = ()  # Epochs, > 0 and ascending, from which memory.momentum is replaced; empty = never.
    c.memory.step_momentum = ()  # Memory momentum from each epoch of memory.step_epochs on, in [0, 1).
    # Initial memory: embed = one pass over the training images | random = uniform on the sphere.
    c.memory.init = "embed"

    c.queue = ml_collections.ConfigDict()
    c.queue.size = 8192  # K, the number of keys in the queue, at least train.batch_size; for methods with a queue.

    c.clusterfit = ml_collections.ConfigDict()
    # Workdir of the finished coarse-label run whose trunk features are clustered; for clusterfit and clusterfit_plus.
    c.clusterfit.source = ""
    # Number of clusters, >= 2, to be chosen for each data set; for clusterfit and clusterfit_plus.
    c.clusterfit.num_clusters = 0
    c.clusterfit.spherical = True  # Whether k-means uses cosine similarity; False = Euclidean distance.

    c.ema = ml_collections.ConfigDict()
    c.ema.base = 0.996  # tau, the momentum of the target network, at the first step, in [0, 1]; BYOL uses 0.996.
    c.ema.final = 1.0  # tau at the last step, reached along a cosine, in [0, 1]; BYOL uses 1.

    c.optimizer = o = ml_collections.ConfigDict()
    o.name = "sgd"  # Optimizer: sgd (with momentum) | adamw (weight decay is not part of the gradient).
    o.learning_rate = 0.1  # Peak learning rate for a batch of 256 images, > 0; scaled linearly with the batch size.
    o.momentum = 0.9  # Momentum of SGD, or beta1 of AdamW, in [0, 1).
    o.beta2 = 0.999  # beta2 of AdamW, in [0, 1).
    o.nesterov = True  # Whether SGD uses Nesterov momentum.
    o.weight_decay = 1e-4  # Weight decay, >= 0.
    # Whether weight decay covers biases, norms, positions and tokens too; False = kernels only, as in BYOL.
    o.decay_all = False
    o.warmup_epochs = 10.0  # Epochs of linear learning-rate warm-up from 0, >= 0.
    # Ratio of a trunk block's learning rate to that of the block or head above it, in (0, 1]; heads have the full rate.
    o.layer_decay = 1.0
    # Learning-rate schedule: cosine = to 0 at the end | step = times step_factor at each of boundary_epochs.
    o.schedule = "cosine"
    o.boundary_epochs = ()  # Epochs, > 0 and ascending, at which schedule step lowers the learning rate.
    o.step_factor = 0.1  # Factor of schedule step at each boundary, in (0, 1].

    c.train = t = ml_collections.ConfigDict()
    t.epochs = 600  # Number of training epochs, >= 1.
    t.batch_size = 1024  # Images per step over all devices, a multiple of devices times microbatches.
    # Parts, >= 1, into which each device splits its images of a step, to need less memory: it adds up their gradients.
    # A batch norm takes its statistics from one part (on all devices, see model.sync_batch_norm).
    t.microbatches = 1
    # Whether a step whose loss or gradient is not finite is skipped and counted instead of applied.
    t.skip_not_finite = False
    # Steps compiled into one lax.scan; 0 = up to 100 on accelerators, and 1 on CPU, where XLA's loops are slow.
    t.steps_per_call = 0
    t.shuffle_buffer = 10_000  # Encoded images in the shuffle buffer of a streamed tfds: data set, >= 1.
    # Whether the host crops streamed images at full resolution, T views per decoded image; False = the device crops
    # squares of data.image_size pixels.
    t.host_crops = False

    c.eval = e = ml_collections.ConfigDict()
    e.every_epochs = 0  # Epochs between evaluations; 0 = at the end only.
    e.batch_size = 500  # Images per evaluation batch over all devices, >= 1.
    e.size = 0  # Side in pixels of the images that are embedded; 0 = views.size.
    # Evaluation crop: whole = the whole image resized to a square | centre = the central square of the resized image.
    e.crop = "whole"
    e.resize = 0  # Length in pixels of the shorter side before crop centre; 0 = 8/7 of the size, such as 256 for 224.
    # Layers to evaluate: trunk, projector, concat (both joined). The first gives the headline metrics, the others are
    # prefixed.
    e.layers = ("trunk", "projector")
    e.recall_at = (1, 2, 5, 10)  # Values of k for recall@k, each >= 1.
    e.knn_k = 30  # Neighbours that vote in k-NN classification, >= 1.
    e.knn_temperature = 0.05  # sigma of the k-NN votes, > 0.
    e.clusters = False  # Whether to compare k-means clusters of the test images with their finest classes, at the end.

    c.checkpoint = ml_collections.ConfigDict()
    c.checkpoint.every_epochs = 10  # Epochs between checkpoints, >= 1.
    c.checkpoint.every_steps = 0  # Steps between additional checkpoints within epochs; 0 = none.
    c.checkpoint.keep = 2  # Newest checkpoints to keep, >= 1; the best by map is kept too.
    return c.lock()


def _augmentations() -> ml_collections.ConfigDict:
    """Returns the augmentation keys of `views` and `key_views`, with the defaults of `augment.Views`."""
    views = augment.Views
    a = ml_collections.ConfigDict()
    a.crop_scale = views.crop_scale  # Range of the crop's share of the image area, in (0, 1]; (1, 1) = no crop.
    a.crop_ratio = views.crop_ratio  # Range of the crop's width / height, > 0, drawn log-uniformly.
    a.flip_prob = views.flip_prob  # Probability of a horizontal flip, in [0, 1].
    # Strengths of colour jitter: brightness, contrast, saturation (each >= 0) and hue (in turns, 0 to 0.5).
    a.jitter = views.jitter
    a.jitter_prob = views.jitter_prob  # Probability of colour jitter, in [0, 1].
    a.grayscale_prob = views.grayscale_prob  # Probability of conversion to grayscale, in [0, 1].
    a.randaugment_ops = views.randaugment_ops  # RandAugment operations per view, >= 0; 0 = none.
    a.randaugment_magnitude = views.randaugment_magnitude  # Magnitude of RandAugment's operations, 0 to 30.
    a.erase_prob = views.erase_prob  # Probability of random erasing, in [0, 1].
    # AutoAugment's policy for CIFAR-10: False = none | True = as in torchvision | maskcon = as in MaskCon's code.
    a.autoaugment = ml_collections.FieldReference(views.autoaugment, field_type=object)
    a.perspective = views.perspective  # Distortion scale of a random perspective, 0 to 1; 0 = none.
    a.perspective_prob = views.perspective_prob  # Probability of a random perspective, in [0, 1].
    a.blur = views.blur  # Range of the Gaussian blur's standard deviation in pixels; (0, 0) = no blur.
    a.blur_prob = views.blur_prob  # Probability of Gaussian blur, in [0, 1].
    return a


def check_schema(config: ml_collections.ConfigDict) -> None:
    """Checks the keys and the types of their values.

    Raises:
      UserError: an unknown or missing key, or a value of another type than the default's, not finite or too large.
    """
    known, found = flatten(default()), flatten(config)
    for key in found:
        if key not in known:
            raise unknown_key(key, known)
    for key, like in known.items():
        if key not in found:
            raise UserError(f"found no config key {key!r}; use a config made by grafit_jax.config.default().")
        expected = _expected(key, found[key], like)
        if expected:
            raise UserError(f"found {key} = {found[key]!r}; expected {expected}.")


def _expected(key: str, value: Any, like: Any) -> str | None:
    """Describes the values that a key may have; None if `value`, compared with the default `like`, is one of them."""
    if key in _CHOICES:
        known = any(type(value) is type(choice) and value == choice for choice in _CHOICES[key])
        return None if known else f"one of {', '.join(map(repr, _CHOICES[key]))}"
    if isinstance(like, tuple):
        entries = like or _ENTRIES[key]
        if not isinstance(value, tuple):
            return f"a tuple, such as {entries}"
        found = ([_expected(key, entry, example) for example in entries] for entry in value)
        return next((wrong[0] for wrong in found if all(wrong)), None)
    if type(value) is not type(like) and not (type(value) is int and isinstance(like, float)):
        return f"a value of type {type(like).__name__}, such as {like!r}"
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if isinstance(value, int) and not -_LARGEST < value < _LARGEST:
        return "a number that fits into 32 bits"
    if isinstance(value, str) and "\0" in value:
        return "text without NUL"
    return None


def unknown_key(key: str, known: Iterable[str] = ()) -> UserError:
    """Returns the error for an unknown key or a part of one."""
    return UserError(f"found unknown config key {key!r}{did_you_mean(key, known)}.")


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a map of dotted keys to values."""
    nested = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else {**config}
    return traverse_util.flatten_dict(nested, sep=".")


def to_json(config: ml_collections.ConfigDict) -> str:
    """Returns the config as JSON."""
    return json.dumps(config.to_dict(), indent=2)


def from_json(text: str) -> ml_collections.ConfigDict:
    """Returns the config of `to_json`, with JSON's lists as tuples again; keys that the text lacks have their defaults.

    Raises:
      UserError: see `check_schema`.
      ValueError, KeyError, TypeError, AttributeError, RecursionError: text that is not a config in JSON.
    """
    config = default()
    values = flatten(json.loads(text))
    if unknown := sorted(values.keys() - flatten(config).keys()):
        raise UserError(f"found unknown config key {unknown[0]!r}; expected a config of this version of grafit_jax.")
    with config.ignore_type():
        config.update_from_flattened_dict({k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    check_schema(config)
    return config


def without_places(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns `flatten(config)` without `PLACES`."""
    return {key: value for key, value in flatten(config).items() if key not in PLACES}


def absolute(source: str) -> str:
    """Returns a data.source with an absolute path, which is valid in every working directory."""
    kind, _, place = source.partition(":")
    return f"{kind}:{os.path.abspath(os.path.expanduser(place))}" if kind in FILES and place else source


def with_absolute_paths(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns a copy with absolute paths of images and of runs to start from."""
    config = copy.deepcopy(config)
    config.data.source = absolute(config.data.source)
    for key, value in _starts(config).items():
        if value and not value.startswith(open_keys.HUB):
            config.update_from_flattened_dict({key: os.path.abspath(os.path.expanduser(value))})
    return config


def _starts(config: ml_collections.ConfigDict) -> dict[str, str]:
    values = flatten(config)
    return {key: values[key] for key in STARTS}


def with_short_paths(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns a copy to share: only the last part of each path, which shows no one's folders."""
    config = copy.deepcopy(config)
    kind, colon, place = config.data.source.partition(":")
    if kind in FILES:
        config.data.source = f"{kind}{colon}{os.path.basename(place)}"
    for key, value in (_starts(config) | {key: flatten(config)[key] for key in PLACES}).items():
        config.update_from_flattened_dict({key: value if value.startswith(open_keys.HUB) else os.path.basename(value)})
    return config


def differences(old: ml_collections.ConfigDict, new: ml_collections.ConfigDict) -> list[str]:
    """Returns 'key: old -> new' for every key that differs, except `PLACES`; paths are absolute.

    What `new` leaves open does not differ; see `open_keys.completed`.
    """
    a, b = (without_places(with_absolute_paths(config)) for config in (old, new))
    b = open_keys.completed(b, a)
    return [
        f"{key}: {a.get(key)!r} -> {b.get(key)!r}" for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)
    ]
