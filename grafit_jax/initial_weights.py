"""Weights that a run starts from: random by its seed, a pretrained trunk, or trunk and heads of another model."""

import itertools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from jax import Array

from grafit_jax import pretrained, saved
from grafit_jax.errors import UserError
from grafit_jax.experiment import Experiment
from grafit_jax.methods import Method
from grafit_jax.models import heads, weights
from grafit_jax.saved import Stored, description

# Folded into the seed's key for heads initialised as in PyTorch. The initial trunk does not depend on model.head_init.
_HEADS_KEY = 0x68656164
# "params" and "batch_stats" -> part (trunk, projector, predictor, classifier) -> layer -> arrays.
Variables = dict[str, dict[str, Any]]
# Keys of the group `model` that decide the shapes of projector and predictor.
_HEAD_KEYS = ("embed_dim", "head_hidden_dim", "head_batch_norm", "projector_norm")


class Given(NamedTuple):
    """Weights from elsewhere.

    Attributes:
      variables: the layers that do not start from the seed.
      note: what was taken over, for the console; may be empty.
    """

    variables: Variables
    note: str = ""


NONE = Given({"params": {}, "batch_stats": {}})


def random(run: Experiment, rng: Array) -> Variables:
    """Returns the weights of the whole network that the key `rng` gives."""
    image = (2, run.views.size, run.views.size, run.records["train"].image.shape[-1])
    found = run.network.init(rng, jnp.zeros(image, jnp.float32), train=False)
    params, batch_stats = found["params"], found.get("batch_stats", {})  # a transformer has none
    if run.config.model.head_init == "pytorch":
        own_heads = {name: part for name, part in params.items() if name != "trunk"}
        params = params | heads.as_pytorch(own_heads, jax.random.fold_in(rng, _HEADS_KEY))
    return {"params": params, "batch_stats": batch_stats}


def shapes(run: Experiment) -> Variables:
    """Returns the weights of the whole network as shapes and dtypes, without computing them."""
    return jax.eval_shape(lambda: random(run, jax.random.key(0)))


def given(run: Experiment) -> Given:
    """Loads the weights that model.pretrained or model.init names.

    Raises:
      UserError: they cannot be read or do not fit the network of the run.
    """
    m = run.config.model
    if not (m.pretrained or m.init):
        return NONE
    own = shapes(run)
    if m.init:
        return _of_model(run, own, saved.read(m.init))
    trunk = _pretrained_trunk(m)
    for kind, layers in trunk.items():
        if found := _misfit({name: own[kind]["trunk"].get(name) for name in layers}, layers):
            raise UserError(f"model.pretrained: {found}; use a trunk trained on images with the same channels.")
    return Given({kind: {"trunk": layers} for kind, layers in trunk.items()})


def _misfit(own: Any, found: Any) -> str:
    """Describes the first array of another shape, such as that of other image channels; empty if there is none."""
    here, there = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (own, found)
    )
    return description.misfit(there, here)


# model.pretrained.


def _pretrained_trunk(model: ml_collections.ConfigDict) -> dict[str, Any]:
    path = pretrained.locate(model.pretrained)
    if path.is_dir():
        return _trunk_of_model(path, model)
    return weights.load_trunk(path, model.trunk, stem=model.stem)


def _trunk_of_model(path: pathlib.Path, model: ml_collections.ConfigDict) -> dict[str, Any]:
    """Loads the trunk of a run or saved model, without the first convolution if the stems differ."""
    theirs = saved.config_of(path).model
    pretrained.check_trunk(str(path), theirs.trunk, model.trunk)
    variables = saved.read(path).variables
    same_stem = theirs.stem == model.stem
    return {
        kind: {name: layer for name, layer in variables[kind]["trunk"].items() if same_stem or name != "Conv_0"}
        for kind in variables
        if "trunk" in variables[kind]
    }


# model.init.


def _of_model(run: Experiment, own: Variables, stored: Stored) -> Given:
    """Returns the trunk of a model, and those of its heads that the run continues."""
    m, theirs, where = run.config.model, stored.description, f"model.init = {run.config.model.init}"
    _check_keys(where, m, theirs.config.model, ("trunk", "stem"))
    taken = ["trunk"]
    if theirs.method.projector == run.method.projector:
        taken += [name for name in ("projector", "predictor") if _in_both(name, own, stored)]
    for name, kind in itertools.product(taken, own):
        if misfit := _misfit(own[kind].get(name, {}), stored.variables[kind].get(name, {})):
            _check_keys(where, m, theirs.config.model, _HEAD_KEYS)
            raise UserError(f"{where}: {name}: {misfit}; use a model trained on images with the same channels.")

    before, now = theirs.classes.get(theirs.train_level, ()), run.training.train_names
    clusters = run.method.uses_clusters or theirs.method.uses_clusters
    classifier = _classifier(run.method)
    continued = classifier[0] in taken and classifier == _classifier(theirs.method)
    if _in_both("classifier", own, stored) and continued and before == now and not clusters:
        taken.append("classifier")

    note = f"initial weights of {m.init}, step {stored.step}: {', '.join(taken)}"
    rest = [name for name in own["params"] if name not in taken]
    if rest:
        note += f"; from the seed: {', '.join(rest)}"
    if "classifier" in rest and before != now and not clusters:
        others = ", of other names" if len(before) == len(now) else ""
        note += f" ({len(before) or 'unknown'} classes before, {len(now)} now{others})"
    return Given({kind: {n: part for n, part in stored.variables[kind].items() if n in taken} for kind in own}, note)


def _check_keys(
    where: str, here: ml_collections.ConfigDict, there: ml_collections.ConfigDict, keys: tuple[str, ...]
) -> None:
    """Raises UserError if the groups `model` of the config and of the given weights differ in one of the keys."""
    different = [key for key in keys if here[key] != there[key]]
    if different:
        found, expected = (", ".join(f"model.{key} = {m[key]}" for key in different) for m in (here, there))
        raise UserError(f"{where}: found {found}; expected {expected}, as in that model; use {expected}.")


def _in_both(name: str, own: Variables, stored: Stored) -> bool:
    return name in own["params"] and name in stored.variables["params"]


def _classifier(method: Method) -> tuple[str, str, bool]:
    """Returns the part whose output the classifier takes, what it takes of it, and whether it compares cosines."""
    if method.projector is None or method.classify == "features":
        return "trunk", "features", method.cosine
    return "projector", method.classify, method.cosine
