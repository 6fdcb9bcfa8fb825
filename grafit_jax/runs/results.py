"""Results of runs, by layer and label level."""

import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from grafit_jax import config as config_lib
from grafit_jax.data.files import read_json
from grafit_jax.errors import UserError
from grafit_jax.runs import workdir

# method, seed, metrics (fractions), run (run.json) and config (dotted keys to values); in a table also its row.
Result = dict[str, Any]
# The headline metrics on fine labels -> their display names.
HEADLINE = {"map": "mAP", "recall@1": "R@1", "knn_top1": "k-NN"}
# Prefixes before the name of a metric, behind layer and level: of retrieval from the training images, and of clusters
# within each coarse class.
_GALLERY, _WITHIN = "gallery", "within"
# What consoles, pages and model cards show.
SUMMARY = HEADLINE | {f"{_GALLERY}/recall@1": "R@1 from training images"}
# Metrics of clusters -> their display names.
CLUSTERS = {
    "cluster_accuracy": "accuracy",
    "cluster_ari": "ARI",
    "cluster_nmi": "NMI",
    f"{_WITHIN}/cluster_accuracy": "accuracy within",
    f"{_WITHIN}/cluster_ari": "ARI within",
    f"{_WITHIN}/cluster_nmi": "NMI within",
}


def split_key(key: str) -> tuple[list[str], str]:
    """Splits the name of a metric, [LAYER/][LEVEL/][gallery/|within/]METRIC, into [layer, level] and the rest."""
    *path, metric = key.split("/")
    return (path[:-1], f"{path[-1]}/{metric}") if path and path[-1] in (_GALLERY, _WITHIN) else (path, metric)


def by_layer_and_level(
    metrics: Mapping[str, float], layer: str, finest: str
) -> dict[tuple[str, str], dict[str, float]]:
    """Returns (layer, level) -> metric -> value.

    Args:
      metrics: name -> value; see `split_key`.
      layer: the layer of metrics named without one.
      finest: the level of metrics named without one.
    """
    found: dict[tuple[str, str], dict[str, float]] = {}
    for key, value in metrics.items():
        path, metric = split_key(key)
        of_layer = path.pop(0) if path and path[0] in config_lib.LAYERS else layer
        if metric != "step":
            found.setdefault((of_layer, path[0] if path else finest), {})[metric] = value
    return found


def summary_columns(rows: Iterable[Mapping[str, float]]) -> dict[str, str]:
    """Returns metric -> display name for the metrics of SUMMARY that a row has."""
    found = set[str]().union(*rows)
    return {key: name for key, name in SUMMARY.items() if key in found}


def collect(path: pathlib.Path) -> Result:
    """Loads the result of the complete run in `path`; raises UserError if it is incomplete or unreadable."""
    if not os.path.isfile(path / "metrics.json"):
        raise UserError(f"{path}: found no finished run (no metrics.json); let experiments/train.py finish it first.")
    config = workdir.read_config(path)
    expected = "expected the file of experiments/train.py; remove metrics.json to have it written again"
    metrics, run = (read_json(path / name, dict, expected) for name in ("metrics.json", "run.json"))
    for name, value in [*metrics.items(), ("train_seconds", run.get("train_seconds", 0.0))]:
        if not isinstance(value, int | float) or abs(value) > 2**63:
            raise UserError(f"{path}: found {str(value)[:40]!r} as {name}; {expected}.")
    flat = config_lib.flatten(config)
    return {"method": config.method, "seed": config.seed, "metrics": metrics, "run": run, "config": flat}


def headline_layer(config: Mapping[str, Any]) -> str:
    """Returns the first of `eval.layers`, the layer of metrics named without one."""
    return config.get("eval.layers", config_lib.LAYERS)[0]


def at_layer(config: Mapping[str, Any], metric: str, layer: str) -> str:
    """Returns the name of a metric at a layer."""
    return metric if layer == headline_layer(config) else f"{layer}/{metric}"


def curve(log: Iterable[Mapping[str, float]]) -> list[dict[str, float]]:
    """Returns the evaluations in a log, each with its epoch and the headline metrics of every evaluated layer."""
    epochs: dict[float, float] = {}
    found: dict[float, dict[str, float]] = {}
    for line in log:
        if "epoch" in line:
            epochs[line["step"]] = line["epoch"]
        evaluated = workdir.evaluation(line)
        kept = {key: value for key, value in evaluated.items() if _is_headline(key)}
        if kept:
            found[line["step"]] = kept
    return [{"epoch": epochs[step]} | found[step] for step in sorted(found) if step in epochs]


def _is_headline(key: str) -> bool:
    path, metric = split_key(key)
    return metric in HEADLINE and all(part in config_lib.LAYERS for part in path)
