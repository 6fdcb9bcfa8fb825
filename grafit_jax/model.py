"""Embeddings of a run, with the model and layer that made them."""

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

# Keys that change how evaluation preprocesses an image.
_SEEN = ("eval.size", "eval.crop", "eval.resize")


def check_layer(run: Experiment, layer: str) -> None:
    """Raises UserError unless the network has this layer's embeddings, "trunk" or "projector"."""
    if layer == "projector" and not run.method.projector:
        raise UserError(f"--layer: found projector, which method {run.config.method} does not have; use --layer=trunk.")


def embed(run: Experiment, state: TrainState, split: str, layer: str) -> Features:
    """Returns the embeddings of a split with its label names; ids are "split/row"."""
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
    """Returns what identifies the network and layer of embeddings: layer, step, config and data."""
    config = config_lib.without_places(run.config)
    config = {
        key: value for key, value in config.items() if key in _SEEN or not key.startswith(("eval.", "checkpoint."))
    }
    return {"layer": layer, "step": int(state.step), "config": config, "data": run.fingerprints()}


def check_alike(name: str, found: Mapping[str, Any], other: str, expected: Mapping[str, Any]) -> None:
    """Raises UserError if two `made_by` differ, since their embeddings are not comparable; an empty one passes."""

    def flat(made_by: Mapping[str, Any]) -> dict[str, Any]:
        plain = json.loads(json.dumps(made_by))  # turns tuples into lists, as in a file
        if isinstance(plain.get("config"), dict):
            plain["config"] = config_lib.renamed(plain["config"])
        return traverse_util.flatten_dict(plain, sep=" ")

    a, b = flat(found), flat(expected)
    if not a or not b:
        return
    # Files of an older version may lack keys.
    differences = [f"{key} {a[key]!r}, not {b[key]!r}" for key in sorted(a.keys() & b.keys()) if a[key] != b[key]]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(
            f"{name}: found embeddings of another model or layer than {other} ({'; '.join(differences[:3])}{more}); "
            "expected the same network and --layer; write one of them again with experiments/embed.py."
        )
