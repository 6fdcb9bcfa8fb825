"""Config files and their typed arguments, as in `--config=file.py:key=value,key=value`."""

import ast
import importlib.util
import pathlib
import types
from collections.abc import Mapping
from typing import Any

import ml_collections

from grafit_jax import config as config_lib
from grafit_jax import methods
from grafit_jax.errors import UserError, choose, did_you_mean


def load_module(path: pathlib.Path) -> types.ModuleType:
    """Imports a config file."""
    spec = importlib.util.spec_from_file_location("config_file", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_file(path: pathlib.Path, arg: str) -> ml_collections.ConfigDict:
    """Returns the config of a config file, given its arguments, the text after the colon of `--config=file.py:…`."""
    return load_module(path).get_config(arg)


def find(name: str) -> pathlib.Path:
    """Returns the config file `name`.py of the installed package or, in a checkout, of its folder configs/.

    Raises:
      UserError: there is none.
    """
    package = pathlib.Path(__file__).parent
    folder = next(path for path in (package / "configs", package.parent / "configs") if path.is_dir())
    return folder / f"{choose(name, 'config', sorted(path.stem for path in folder.glob('*.py')))}.py"


# Keys that config files share: ImageNet's pixel statistics, photos cropped to 224 pixels on the host, the recipe of
# protocol "paper" for such photos, a small network for CPUs, and the recipe for photos from pretrained trunks.
IMAGENET = {"views.mean": (0.485, 0.456, 0.406), "views.std": (0.229, 0.224, 0.225)}
PHOTOS = {
    **IMAGENET,
    "data.stream": True,
    "data.image_size": 256,  # for evaluation and the initial memory; training crops the full photo
    "data.resize_mode": "centre",
    "train.host_crops": True,
    "model.stem": "imagenet",
    "views.size": 224,
    "eval.crop": "centre",
}
RESNET50_PHOTOS = {
    **PHOTOS,
    "model.trunk": "resnet50",
    "model.dtype": "bfloat16",
    "views.num_views": 4,
    "views.crop_scale": (0.08, 1.0),
    "views.randaugment_ops": 2,
    "views.erase_prob": 0.25,
    "train.batch_size": 1024,
    "eval.every_epochs": 50,
    "checkpoint.every_epochs": 1,
}
SMALL = {
    "model.trunk": "resnet8",
    "model.stem": "patch2",
    "model.head_hidden_dim": 256,
    "model.embed_dim": 128,
    "views.num_views": 2,
    "optimizer.learning_rate": 0.2,
    "optimizer.warmup_epochs": 2.0,
}
FINE_TUNING = {
    "data.resize_mode": "centre",
    "views.crop_scale": (0.3, 1.0),
    "views.jitter": (0.4, 0.4, 0.4, 0.05),
    "views.grayscale_prob": 0.1,
    "ema.base": 0.99,
    # Of 0.04, 0.12 and 0.4, the best for cross-entropy and for the k-NN loss on the validation photos of table
    # grocery_rates, by the mean of mAP, k-NN and R@1 from the training photos.
    "optimizer.learning_rate": 0.12,
    "optimizer.warmup_epochs": 1.0,
    "eval.crop": "centre",
    "eval.clusters": True,
    "checkpoint.every_epochs": 1,
}


def start(
    arg: str | None, common: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]] | None = None, **defaults: Any
) -> tuple[ml_collections.ConfigDict, ml_collections.ConfigDict]:
    """Returns a config with the file's values and its method's recipe, still to be completed, and the parsed arguments.

    Args:
      arg: the text after the colon of `--config=file.py:…`, or None.
      common: dotted config keys and their values.
      presets: dotted config keys and their values for each value of the argument `preset`.
      **defaults: the file's arguments with their defaults; see `parse_arg`. `method` and `seed` are set in the config.

    Raises:
      UserError: an unknown argument, preset or method, or an argument of another type.
    """
    given = parse_arg(arg, **defaults)
    c = config_lib.default()
    c.update_from_flattened_dict({key: given[key] for key in ("method", "seed") if key in given})
    c.update_from_flattened_dict(common)
    if presets:
        c.update_from_flattened_dict(presets[choose(given.preset, "preset", presets)])
    c.update_from_flattened_dict(methods.get(c.method).recipe)
    return c, given


# t0 of the methods whose released code has another one than MaskCon's 0.1.
_TEMPERATURES = {"spread": 0.5, "ancor": 0.2}


def temperature_of(method: str) -> float:
    """Returns t0 of a method of protocol "maskcon", as in its released code (docs/paper.md section 3)."""
    return _TEMPERATURES.get(method, 0.1)


def beside_others(c: ml_collections.ConfigDict, *, queue_size: int) -> None:
    """Completes the config of a method with a queue, or of protocol "maskcon", among others [ours].

    Query and key share their views. In protocol "maskcon" heads have no batch norm, and the momentum of the key encoder
    is constant. Trunk, epochs and all else stay as they are.
    """
    method = methods.get(c.method)
    if method.uses_queue or method.protocol == "maskcon":
        c.queue.size = queue_size
        c.key_views.update({key: c.views[key] for key in c.key_views})
    if method.protocol == "maskcon":
        c.model.head_batch_norm = False
        c.loss.temperature = temperature_of(c.method)
        c.ema.final = c.ema.base


def parse_arg(arg: str | None, **defaults: Any) -> ml_collections.ConfigDict:
    """Parses the `key=value,key=value` after the colon of `--config=file.py:…`; values are typed like `defaults`.

    Raises:
      UserError: a key that is not in `defaults`, or a value of another type than its default.
    """
    values = dict(defaults)
    for part in filter(None, (arg or "").split(",")):
        key, equals, text = part.partition("=")
        if not equals and key not in defaults:
            raise UserError(
                f"found config argument {part!r}; expected key=value with a key of {', '.join(defaults)}; use a flag, "
                "such as --config.data.source=VALUE, for a value that contains a comma."
            )
        if key not in defaults:
            raise UserError(
                f"found unknown config argument {key!r}{did_you_mean(key, defaults)}; expected key=value with a key of "
                f"{', '.join(defaults)}."
            )
        if not equals:
            raise UserError(f"found config argument {part!r} without a value; use {key}=VALUE.")
        values[key] = typed(key, text, defaults[key])
    return ml_collections.ConfigDict(values)


def typed(key: str, text: str, like: Any) -> Any:
    """Parses the text of argument `key` as a value of the type of `like`; raises UserError for text of another type."""
    if isinstance(like, str):
        return text
    try:
        value = ast.literal_eval(text.title() if isinstance(like, bool) else text)
        if isinstance(like, float) and type(value) is int:
            value = float(value)
        if type(value) is type(like):
            return value
    # Nested brackets exhaust the stack, {[]: 1} is not hashable, and 10**400 overflows a float.
    except (ValueError, SyntaxError, TypeError, OverflowError, RecursionError, MemoryError):
        pass
    raise UserError(
        f"found config argument {key}={text}; expected a value of type {type(like).__name__}, such as {like!r}."
    )
