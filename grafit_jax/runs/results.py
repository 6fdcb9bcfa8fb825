"""The result of a run: read, checked, and by layer and level. Sealed by the run that wrote it.

A seal is a plain SHA-256: it tells of a file that was edited by hand, or damaged, and keeps nobody from forging one.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from grafit_jax import config as config_lib
from grafit_jax.data.files import read_json
from grafit_jax.errors import UserError
from grafit_jax.runs import workdir

# A row of a table and a seed: row, protocol, method, seed, metrics (fractions), run (run.json), config, command.
Result = dict[str, Any]
# Of what a run leaves as its result. Goes up when the same keys mean something else.
SCHEMA = 1
# The fine metrics that are looked at first -> what they are called.
HEADLINE = {"map": "mAP", "recall@1": "R@1", "knn_top1": "k-NN"}
LAYERS = ("trunk", "projector")


def by_layer_and_level(
    metrics: Mapping[str, float], layer: str, finest: str
) -> dict[tuple[str, str], dict[str, float]]:
    """(layer, level) -> metric -> value, of metrics as a run writes them.

    Args:
      metrics: named [LAYER/][LEVEL/]METRIC.
      layer: the one that metrics without a layer are of.
      finest: the level that metrics without a level are of.
    """
    found: dict[tuple[str, str], dict[str, float]] = {}
    for key, value in metrics.items():
        *path, metric = key.split("/")
        of_layer = path.pop(0) if path and path[0] in LAYERS else layer
        if metric != "step":
            found.setdefault((of_layer, path[0] if path else finest), {})[metric] = value
    return found


def seal(run: Mapping[str, Any], config: Mapping[str, Any], metrics: Mapping[str, float]) -> dict[str, Any]:
    """The facts of a run (run.json) with the schema of its result, and the digest over the whole of it.

    Args:
      run: time, environment, data.
      config: dotted keys to values.
      metrics: as in metrics.json.
    """
    facts = {**run, "schema": SCHEMA}
    return facts | {"digest": digest(facts, config, metrics)}


def digest(run: Mapping[str, Any], config: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """64 hexadecimal digits of a SHA-256 over canonical JSON: sorted keys, no spaces; tuples and lists are the same."""
    present, first = config_lib.renamed(config), {new: old for old, new in config_lib.RENAMED.items()}
    whole = {
        "run": {key: value for key, value in run.items() if key != "digest"},
        # By their first names, which the results of all versions share.
        "config": {first.get(key, key): value for key, value in present.items() if key not in config_lib.PLACES},
        "metrics": metrics,
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check(result: Result, where: str) -> Result:
    """`result`, if it is as its run wrote it, with the present names of its config's keys.

    Raises:
      UserError: a result of another schema, or one that was changed since.
    """
    run = result["run"]
    schema = run.get("schema", 0)
    if schema != SCHEMA:
        raise UserError(
            f"{where} is a result of schema {schema}, and this version reads {SCHEMA}: train it again in an empty "
            "--workdir, or read it with the version that wrote it."
        )
    if run.get("digest") != digest(run, result["config"], result["metrics"]):
        raise UserError(
            f"{where} is not what its run wrote (its digest is of other numbers): give the file back as it was, or "
            "train again in an empty --workdir."
        )
    return result | {"config": config_lib.renamed(result["config"])}


def collect(path: pathlib.Path) -> Result:
    """The result of the complete run in `path`; UserError if it is not complete, or not as its run wrote it."""
    if not os.path.isfile(path / "metrics.json"):
        raise UserError(f"{path} holds no finished run (no metrics.json): let experiments/train.py end first.")
    config = workdir.read_config(path)
    want = "want what experiments/train.py wrote; remove metrics.json, and it is written again"
    metrics, run = (read_json(path / name, dict, want) for name in ("metrics.json", "run.json"))
    for name, value in [*metrics.items(), ("train_seconds", run.get("train_seconds", 0.0))]:
        if not isinstance(value, int | float) or abs(value) > 2**63:
            raise UserError(f"{path} has {str(value)[:40]!r} as {name}: {want}.")
    result = {
        "method": config.method,
        "seed": config.seed,
        "metrics": metrics,
        "run": run,
        "config": config_lib.flatten(json.loads((path / "config.json").read_text())),  # as it was sealed
    }
    return check(result, str(path))


def at_layer(config: Mapping[str, Any], metric: str, layer: str) -> str:
    """The name of a metric at "trunk" or "projector": plain at the headline's layer, the first of `eval.layers`."""
    headline = config.get("eval.layers", LAYERS)[0]
    return metric if layer == headline else f"{layer}/{metric}"


def curve(log: Iterable[Mapping[str, float]]) -> list[dict[str, float]]:
    """The evaluations of a run, from its log: the epoch, and fine metrics at every layer that was evaluated."""
    epochs: dict[float, float] = {}
    found: dict[float, dict[str, float]] = {}
    for line in log:
        if "epoch" in line:
            epochs[line["step"]] = line["epoch"]
        evaluated = workdir.evaluation(line)
        kept = {key: value for key, value in evaluated.items() if key.rpartition("/")[2] in HEADLINE and _is_fine(key)}
        if kept:
            found[line["step"]] = kept
    return [{"epoch": epochs[step]} | found[step] for step in sorted(found) if step in epochs]


def _is_fine(key: str) -> bool:
    return key.rpartition("/")[0] in ("", *LAYERS)
