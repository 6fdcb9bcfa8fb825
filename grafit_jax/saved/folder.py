"""Reads a model from a workdir, a saved model's folder or the hub; writes a saved model's folder.

The folder has the layout of the Hugging Face hub: model.safetensors, config.json and README.md.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np
import safetensors.numpy
from flax import traverse_util

from grafit_jax import config as config_lib
from grafit_jax import open_keys, parallel
from grafit_jax.data.files import read_json
from grafit_jax.errors import UserError, reading, writing
from grafit_jax.runs import checkpoint, workdir
from grafit_jax.saved import description, hub
from grafit_jax.saved.description import Description
from grafit_jax.saved.hub import CARD, CONFIG, WEIGHTS

_NEWEST = "newest"
_REMEDY = "save or download the model again"


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """A model as read from disk.

    Attributes:
      description: the network without its weights.
      variables: "params" and "batch_stats" of the online network with all its heads, float32 numpy arrays.
      step: number of training steps.
      metrics: the metrics of the run at that step; empty if unknown.
    """

    description: Description
    variables: dict[str, Any]
    step: int
    metrics: Mapping[str, float]


def read(where: str | os.PathLike, step: int | str = _NEWEST) -> Stored:
    """Reads a model.

    Args:
      where: a workdir, the folder of a saved model, or "hf:owner/name[@revision]".
      step: "newest", or the step of a checkpoint of a workdir.

    Raises:
      UserError: there is no model, checkpoint or network connection, or the files are damaged, incomplete, of a newer
        version, or do not fit each other.
    """
    if step != _NEWEST and (isinstance(step, bool) or not hasattr(step, "__index__")):
        raise UserError(f'checkpoint: found {step!r}; expected "newest" or the step of a checkpoint.')
    path = _folder(where)
    if not _is_saved(path):
        return _of_workdir(path, None if step == _NEWEST else int(step))
    if step != _NEWEST:
        raise UserError(f"{path}: found checkpoint = {step} for a saved model, which has one; expected a workdir.")
    return _of_folder(path)


def config_of(where: str | os.PathLike) -> ml_collections.ConfigDict:
    """Returns the config of a model's training, without its weights and without initialising JAX; raises as `read`."""
    path = _folder(where)
    if not _is_saved(path):
        return workdir.read_config(path)
    with reading(path / CONFIG, _REMEDY):
        return config_lib.from_json(json.dumps(_config(path)["config"]))


def _folder(where: str | os.PathLike) -> pathlib.Path:
    if str(where).startswith(open_keys.HUB):
        path = hub.download(str(where).removeprefix(open_keys.HUB))
    else:
        path = pathlib.Path(os.path.expanduser(where))
    if not path.is_dir():
        raise UserError(
            f"{path}: found no such folder; expected a workdir, the folder of a saved model, or hf:owner/name."
        )
    return path


def _is_saved(path: pathlib.Path) -> bool:
    """Returns whether a folder holds a saved model, perhaps an incomplete one, and not a run."""
    return (path / WEIGHTS).is_file() or "format" in _config(path)


def _config(path: pathlib.Path) -> dict[str, Any]:
    return read_json(path / CONFIG, dict, _REMEDY) if (path / CONFIG).is_file() else {}


def _of_workdir(path: pathlib.Path, step: int | None) -> Stored:
    described = description.read(path)
    variables, step = checkpoint.read_weights(path, step)
    _check_shapes(path, described, variables)
    evaluations = {line["step"]: workdir.evaluation(line) for line in workdir.read_log(path)}
    return Stored(described, variables, step, evaluations.get(step, {}))


def write(folder: pathlib.Path, stored: Stored, card: str) -> None:
    """Writes a saved model.

    Raises:
      UserError: the folder holds other files than a saved model, or cannot be written.
    """
    if not parallel.is_first():
        return
    found = {path.name.removesuffix(".tmp") for path in folder.iterdir()} if folder.is_dir() else set()
    others = sorted(name for name in found - {WEIGHTS, CONFIG, CARD} if name[0] != ".")
    if others:
        raise UserError(
            f"{folder}: found other files ({', '.join(others[:3])}); expected an empty folder or a saved model; use "
            "another folder."
        )
    facts = {
        **stored.description.facts(),
        "library_name": "grafit_jax",
        "digest": stored.description.digest(stored.variables),
        "step": stored.step,
        "metrics": dict(stored.metrics),
        "config": config_lib.with_short_paths(stored.description.config).to_dict(),
    }
    tensors = {name: np.ascontiguousarray(leaf) for name, leaf in config_lib.flatten(stored.variables).items()}
    with writing(folder / WEIGHTS):
        # Not save_file, whose files only their owner may read.
        workdir.write(folder / WEIGHTS, safetensors.numpy.save(tensors, metadata={"format": "flax"}))
        workdir.write(folder / CONFIG, json.dumps(facts, indent=2) + "\n")
        workdir.write(folder / CARD, card)


def _of_folder(path: pathlib.Path) -> Stored:
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise UserError(f"{path}: found no {name}; expected a complete saved model; {_REMEDY}.")
    facts = _config(path)
    described = description.from_facts(path / CONFIG, facts, ml_collections.ConfigDict(), _REMEDY)
    with reading(path / CONFIG, _REMEDY):
        config = config_lib.from_json(json.dumps(facts["config"]))
        step, metrics = int(facts["step"]), dict(facts["metrics"])
    described = dataclasses.replace(described, config=config)
    with reading(path / WEIGHTS, _REMEDY):
        tensors = safetensors.numpy.load_file(path / WEIGHTS)
        variables = {"batch_stats": {}} | traverse_util.unflatten_dict(tensors, sep=".")  # none in a transformer
        if strangers := [name for name in tensors if not name.startswith(("params.", "batch_stats."))]:
            raise ValueError(f"found tensor {strangers[0]}, expected params.… and batch_stats.…")
    _check_shapes(path / WEIGHTS, described, variables)
    if (found := described.digest(variables)) != facts.get("digest"):
        raise UserError(
            f"{path}: found weights and settings with the digest {found}; expected {facts.get('digest')}, as in "
            f"{CONFIG}; {_REMEDY}."
        )
    return Stored(described, variables, step, metrics)


def _check_shapes(where: pathlib.Path, described: Description, variables: Mapping[str, Any]) -> None:
    """Raises UserError unless trunk and projector have the arrays of the network that the config names."""
    leaves = config_lib.flatten(variables).items()
    found = {name: leaf.shape for name, leaf in leaves if description.is_embedding(name)}
    if misfit := description.misfit(found, described.shapes()):
        raise UserError(f"{where}: {misfit}, as in the config; {_REMEDY}.")
