"""Config files: loaded from a path, with the typed arguments behind the colon of `--config=file.py:key=value`."""

import ast
import importlib.util
import pathlib
import types
from collections.abc import Mapping
from typing import Any

import ml_collections

from grafit_jax import config as config_lib
from grafit_jax.errors import UserError, choose, did_you_mean


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


# Keys that many config files share: the statistics of ImageNet's images, photos cropped to 224 pixels on the host, the
# recipe of protocol "paper" for these, and a small net for CPUs.
IMAGENET = {"views.mean": (0.485, 0.456, 0.406), "views.std": (0.229, 0.224, 0.225)}
PHOTOS = {
    **IMAGENET,
    "data.stream": True,
    "data.image_size": 256,  # of a photo's middle, for evaluation and for the memory before the first step
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


def start(
    arg: str | None, common: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]] | None = None, **defaults: Any
) -> tuple[ml_collections.ConfigDict, ml_collections.ConfigDict]:
    """A config file's config so far, and its arguments.

    Args:
      arg: what stands behind the colon of `--config=file.py:…`.
      common: keys of the config that differ from the default, with their values.
      presets: the same of each preset, by what the argument `preset` may be.
      defaults: of the file's arguments: see `parse_arg`. `method` and `seed` are set in the config.
    """
    given = parse_arg(arg, **defaults)
    c = config_lib.default()
    c.update_from_flattened_dict({key: given[key] for key in ("method", "seed") if key in given})
    c.update_from_flattened_dict(common)
    if presets:
        c.update_from_flattened_dict(presets[choose(given.preset, "preset", presets)])
    return c, given


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
        if config_lib.RENAMED.get(key) in defaults:
            new = config_lib.RENAMED[key]
            raise UserError(f"found the config argument {key!r}, which is called {new!r} now: use {new}={text}.")
        if key not in defaults:
            raise UserError(
                f"unknown config argument {key!r}{did_you_mean(key, defaults)}: want key=value with a key of "
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
