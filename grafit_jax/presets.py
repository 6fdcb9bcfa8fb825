"""Choices that depend on the accelerator or on the hub. A run makes them once, at its start, into its config.json."""

import copy
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from grafit_jax import config as config_lib
from grafit_jax import open_keys, parallel, pretrained
from grafit_jax.config_files import PHOTOS
from grafit_jax.errors import UserError, warn
from grafit_jax.models.trunks import TRUNKS
from grafit_jax.runs import console, workdir
from grafit_jax.views.augment import resize_for

# For photos: config keys and their values without an accelerator ("laptop") and with one ("gpu"). The weights give
# trunk, stem, mean and standard deviation, and the size of views gives data.image_size.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "laptop": {
        "model.pretrained": pretrained.KNOWN["tf_efficientnet_lite0"],
        "model.dtype": "float32",
        "model.head_hidden_dim": 1024,
        "model.embed_dim": 128,
        "views.size": 128,
        "views.num_views": 2,
        "data.stream": False,
        "train.host_crops": False,
        "train.epochs": 8,
        "train.batch_size": 64,
        "eval.batch_size": 64,
    },
    "gpu": {
        "model.pretrained": pretrained.KNOWN["resnet50"],
        "model.dtype": "bfloat16",
        "model.head_hidden_dim": 4096,
        "model.embed_dim": 256,
        "views.size": PHOTOS["views.size"],
        "views.num_views": 4,
        "data.stream": PHOTOS["data.stream"],
        "train.host_crops": PHOTOS["train.host_crops"],
        "train.epochs": 30,
        "train.batch_size": 256,
        "eval.batch_size": 256,
    },
}
# Also the keys that weights give, and one that follows from other keys.
OPEN = (*PRESETS["laptop"], "model.trunk", "model.stem", "views.mean", "views.std", "data.image_size")


def resolve(config: ml_collections.ConfigDict, path: pathlib.Path) -> ml_collections.ConfigDict:
    """Returns the config of a run with a value of every key, the same on all processes, which all must call it.

    A run that has started in the workdir `path` keeps the values of its config.json. A new one takes open keys from
    `PRESETS`, by the devices that JAX sees, then from model.pretrained, whose name on the hub is pinned to its commit.
    Process 0 decides, and prints what it has chosen.

    Raises:
      UserError: a key stays open, or the weights are of another trunk than model.trunk; see also `pretrained.describe`.
    """
    chosen = json.loads(parallel.of_first(lambda: json.dumps(_choices(config_lib.flatten(config), path))))
    config = copy.deepcopy(config)
    config.update_from_flattened_dict({k: tuple(v) if isinstance(v, list) else v for k, v in chosen.items()})
    return config


def assumed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns a config to check before its run: open keys have values of "laptop" or defaults.

    Asks neither the hub nor JAX.
    """
    flat = config_lib.flatten(config)
    values = {key: value for key, value in config_lib.flatten(config_lib.default()).items() if flat.get(key, 0) is None}
    values |= {key: value for key, value in PRESETS["laptop"].items() if key in values}
    if trunk := pretrained.trunk_in((flat | values)["model.pretrained"]):
        values |= {k: v for k, v in (("model.trunk", trunk), ("model.stem", "imagenet")) if k in values}
    if "views.size" in values:
        values["views.size"] = _whole_patches(values["views.size"], flat | values)
    if "data.image_size" in values:
        values["data.image_size"] = resize_for(values.get("views.size") or flat["views.size"])
    config = copy.deepcopy(config)
    config.update_from_flattened_dict(values)
    return config


def _choices(flat: Mapping[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """Returns the keys of a flat config whose values change, with their values."""
    if os.path.isfile(path / "config.json"):
        stored = open_keys.completed(flat, config_lib.flatten(workdir.read_config(path)))
        return {key: value for key, value in stored.items() if value != flat[key]}
    values, notes = dict(flat), []

    def fill(choices: Mapping[str, Any]) -> bool:
        taken = {key: value for key, value in choices.items() if key in flat and values[key] is None}
        values.update(taken)
        return bool(taken)

    by_devices = any(flat.get(key, "") is None for key in PRESETS["laptop"] if key != "views.size")
    if by_devices:
        name = "laptop" if jax.default_backend() == "cpu" else "gpu"
        fill(PRESETS[name])
        notes.append(f"found {_devices()}: preset {name}")
    weights = values.get("model.pretrained") or ""
    if weights and (weights.startswith(open_keys.HUB) or None in values.values()):
        found = _describe(weights, given=bool(flat["model.pretrained"]))
        values["model.pretrained"] = found.name
        gives = fill(found.values)
        pretrained.check_trunk(weights, found.values.get("model.trunk"), values["model.trunk"])
        if by_devices and flat["views.size"] is None and values["model.trunk"]:
            values["views.size"] = _whole_patches(values["views.size"], values)
        if gives or found.name != weights:
            size = values["views.size"]
            notes.append(f"initial weights {found.name}: {values['model.trunk']}, views of {size} px")
        _warn_of_pixels(values, found.values)
    if values.get("views.size"):
        fill({"data.image_size": resize_for(values["views.size"])})
    if still := [key for key, value in values.items() if value is None]:
        raise UserError(
            f"found no value of {', '.join(still)}; expected one, or weights of the hub that give it; use "
            f"--config.{still[0]}=VALUE, or --config.model.pretrained={pretrained.KNOWN['resnet50']}."
        )
    if notes:
        console.say("; ".join(notes))
    return {key: value for key, value in values.items() if value != flat[key]}


def _describe(weights: str, *, given: bool) -> pretrained.Description:
    """Returns what weights say about themselves; if a preset has chosen them, an error names another preset."""
    try:
        return pretrained.describe(weights)
    except UserError as error:
        if given:
            raise
        text = str(error).removesuffix(".")
        raise UserError(f"{text}; or use preset=scratch, or pretrained=FILE, of configs/own.py.") from error


def _whole_patches(size: int, values: Mapping[str, Any]) -> int:
    """Returns the largest size up to `size` that the trunk's patches divide."""
    trunk = TRUNKS[values["model.trunk"]](stem=values["model.stem"])
    return max(size // trunk.multiple, 1) * trunk.multiple


def _warn_of_pixels(values: Mapping[str, Any], of_weights: Mapping[str, Any]) -> None:
    for key in ("views.mean", "views.std"):
        if key in of_weights and not np.allclose(values[key], of_weights[key], atol=0.01):
            warn(f"found {key} = {values[key]}, and {of_weights[key]} in the config of the weights; usually both agree")


def _devices() -> str:
    """Describes the devices of all processes, as in "2 NVIDIA H200 devices"."""
    number, device = parallel.num_all_devices(), parallel.devices()[0]
    kind = "CPU" if device.platform == "cpu" else device.device_kind
    return f"{number} {kind} device{'s' * (number > 1)}"
