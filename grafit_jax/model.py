"""The embeddings of a run, and the record of which model and layer made them."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from grafit_jax import config as config_lib
from grafit_jax import evaluation
from grafit_jax.errors import UserError
from grafit_jax.experiment import Experiment
from grafit_jax.retrieval.embeddings import Features
from grafit_jax.state import TrainState

# How evaluation sees an image.
_SEEN = ("eval.size", "eval.crop", "eval.resize")


def check_layer(run: Experiment, layer: str) -> None:
    """Raises UserError unless the network has this layer's embeddings, "trunk" or "projector"."""
    if layer == "projector" and not run.method.projector:
        raise UserError(f"method {run.config.method} has no projector: take --layer=trunk.")


def embed(run: Experiment, state: TrainState, split: str, layer: str) -> Features:
    """The embeddings of a split with the names of its labels; ids are "split/row"."""
    check_layer(run, layer)
    records = run.records[split]
    embedded = run.embed_fn(state.variables, records.image)
    read = evaluation.readable(embedded)
    named = {
        name: np.array(level.names)[level.label[read]]
        for name, level in records.levels.items()
        if level.label is not None
    }
    return Features(
        embedding=embedded[layer][read],
        id=np.array([f"{split}/{row}" for row in np.flatnonzero(read)]),
        label=named.pop(records.finest, None),
        coarse_label=named.pop("coarse", None),
        further=named,
        filename=None if records.filename is None else records.filename[read],
        made_by=made_by(run, state, layer),
    )


def made_by(run: Experiment, state: TrainState, layer: str) -> dict[str, Any]:
    """What tells the embeddings of this network and layer from those of others."""
    config = config_lib.without_places(run.config)
    config = {
        key: value for key, value in config.items() if key in _SEEN or not key.startswith(("eval.", "checkpoint."))
    }
    return {"layer": layer, "step": int(state.step), "config": config, "data": run.fingerprints()}


def check_alike(name: str, found: Mapping[str, Any], other: str, wanted: Mapping[str, Any]) -> None:
    """Raises UserError where two `made_by` are known and are of two models, between which no cosine means anything."""

    def flat(made_by: Mapping[str, Any]) -> dict[str, Any]:
        plain = json.loads(json.dumps(made_by))  # tuples are lists there
        if isinstance(plain.get("config"), dict):
            plain["config"] = config_lib.renamed(plain["config"])
        return traverse_util.flatten_dict(plain, sep=" ")

    a, b = flat(found), flat(wanted)
    if not a or not b:
        return
    # Of an older version, one of them may lack keys.
    differences = [f"{key} {a[key]!r}, not {b[key]!r}" for key in sorted(a.keys() & b.keys()) if a[key] != b[key]]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(
            f"{name} was made by another model or layer than {other} ({'; '.join(differences[:3])}{more}): want "
            "embeddings of one network and --layer; write one of them anew with experiments/embed.py."
        )
