"""What model.pretrained names: a model of timm on the Hugging Face hub, a file of weights, or a run or saved model."""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from grafit_jax import config as config_lib
from grafit_jax import open_keys, saved
from grafit_jax.config_files import IMAGENET
from grafit_jax.data.files import read_json
from grafit_jax.errors import UserError, did_you_mean, reading
from grafit_jax.models import regnet
from grafit_jax.models.trunks import PRETRAINED
from grafit_jax.saved import hub

# The files of a model of timm; a pickle is read if there are no safetensors.
CONFIG, FILES = "config.json", ("model.safetensors", "pytorch_model.bin")
# Trunk -> the name on the hub of weights that fit it.
KNOWN: Mapping[str, str] = {
    trunk: f"{open_keys.HUB}timm/{trunk}.{tag}"
    for trunk, tag in {
        "resnet18": "a1_in1k",
        "resnet34": "a1_in1k",
        "resnet50": "a1_in1k",
        "tf_efficientnet_lite0": "in1k",
        "vit_small_patch16_224": "augreg_in21k_ft_in1k",
        "vit_base_patch16_224": "augreg2_in21k_ft_in1k",
        "vit_small_patch14_dinov2": "lvd142m",
        "vit_base_patch14_dinov2": "lvd142m",
        "vit_small_patch14_reg4_dinov2": "lvd142m",
        "vit_base_patch14_reg4_dinov2": "lvd142m",
    }.items()
}
# Trunks whose weights of KNOWN expect pixel values from -1 to 1, not ImageNet's statistics.
_CENTRED = ("tf_efficientnet_lite0", "vit_small_patch16_224", "vit_base_patch16_224")
_HALVES = {"views.mean": (0.5, 0.5, 0.5), "views.std": (0.5, 0.5, 0.5)}


class Description(NamedTuple):
    """What weights say about themselves.

    Attributes:
      name: the value of model.pretrained, on the hub with the commit.
      values: values of config keys among model.trunk, model.stem, views.mean, views.std and views.size.
    """

    name: str
    values: Mapping[str, Any]


def describe(name: str) -> Description:
    """Reads what the weights say about themselves, on the hub from its config.json, without the weights.

    Beside a file of weights, config.json counts too if it has timm's layout; without one, a file that is named after a
    trunk has that trunk. A folder of a model of timm counts as its file of weights. A run or a saved model has its
    config.

    Raises:
      UserError: there are no such weights, the hub cannot be reached, or the trunk is not among `trunks.PRETRAINED`.
    """
    if name.startswith(open_keys.HUB):
        path = _fetch(name, CONFIG)
        content = read_json(path, dict, "download it again")
        if "architecture" not in content:
            raise UserError(
                f"{name}: found no architecture in its {CONFIG}; expected a model of timm; use model.init for a model "
                "that grafit_jax has saved."
            )
        return Description(f"{name.partition('@')[0]}@{path.parent.name}", _of_timm(name, path, content))
    path = _local(name)
    if path.is_dir():
        theirs = config_lib.flatten(saved.config_of(path))
        keys = ("model.trunk", "model.stem", "views.mean", "views.std", "views.size")
        return Description(name, {key: theirs[key] for key in keys})
    beside = path.with_name(CONFIG)
    if "architecture" in (content := _config(beside)):
        return Description(name, _of_timm(str(beside), beside, content))
    trunk = trunk_in(name)
    return Description(name, _of_trunk(trunk) | (_HALVES if trunk in _CENTRED else IMAGENET) if trunk else {})


def check_trunk(name: str, found: str | None, expected: str) -> None:
    """Raises UserError if the weights `name` are of the trunk `found`, not of model.trunk."""
    if found and found != expected:
        other = KNOWN.get(expected)
        remedy = f", or --config.model.pretrained={other}" if other else ""
        raise UserError(
            f"model.pretrained = {name}: found trunk {found}; expected {expected}, as in model.trunk; use "
            f"--config.model.trunk={found}{remedy}."
        )


def trunk_in(name: str) -> str:
    """Returns the trunk that the name of a file or of a model of timm begins with, or "".

    Such as resnet18 for "resnet18-f37072fd.pth" and "hf:timm/resnet18.a1_in1k".
    """
    first = re.split(r"[.@-]", pathlib.Path(name).name)[0]
    trunk = regnet.TIMM.get(first, first)
    return trunk if trunk in PRETRAINED else ""


def locate(name: str) -> pathlib.Path:
    """Returns the file of weights, downloaded unless it is in the hub's cache, or a model's folder; or UserError."""
    return _fetch(name, *FILES) if name.startswith(open_keys.HUB) else _local(name)


def _config(path: pathlib.Path) -> dict[str, Any]:
    return read_json(path, dict, "restore or remove it") if path.is_file() else {}


def _of_timm(where: str, path: pathlib.Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values that timm's config.json in `path` gives."""
    trunk = regnet.TIMM.get(str(content["architecture"]), content["architecture"])
    if trunk not in PRETRAINED:
        raise UserError(
            f"{where}: found architecture {trunk!r}{did_you_mean(str(trunk), PRETRAINED)}; expected one of "
            f"{', '.join(PRETRAINED)}; use a model such as {KNOWN['resnet50']}."
        )
    values = _of_trunk(trunk)
    with reading(path, "expected timm's mean, std and input_size of pretrained_cfg"):
        facts = content.get("pretrained_cfg", content)  # without a group in old files
        for key, statistic in (("views.mean", facts["mean"]), ("views.std", facts["std"])):
            values[key] = tuple(map(float, statistic))
        values["views.size"] = int(facts["input_size"][-1])
    return values


def _of_trunk(trunk: str) -> dict[str, Any]:
    return {"model.trunk": trunk, "model.stem": "imagenet"}


def _fetch(name: str, *files: str) -> pathlib.Path:
    try:
        return hub.fetch(name.removeprefix(open_keys.HUB), *files)
    except UserError as error:
        given = name.partition("@")[0]
        near = did_you_mean(given, KNOWN.values()) if given not in KNOWN.values() else ""
        raise UserError(f"{str(error).removesuffix('.')}{near}.") from error


def _local(name: str) -> pathlib.Path:
    path = pathlib.Path(name).expanduser()
    if os.path.exists(path):
        return path / FILES[0] if "architecture" in _config(path / CONFIG) else path
    near = f"; use {KNOWN[name]}" if name in KNOWN else did_you_mean(name, [*KNOWN, *KNOWN.values()])
    raise UserError(
        f"model.pretrained = {name}: found no such file; expected a workdir, the folder of a saved model, a "
        f".safetensors or .pth file of weights, or a model of the hub, such as {KNOWN['resnet50']}{near}."
    )
