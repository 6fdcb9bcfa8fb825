"""Results that a run wrote: sealed by the run, checked whenever they are read, merged when they are recorded.

A seal is a plain SHA-256: it tells of a file that was edited by hand, or damaged, and keeps nobody from forging one.
"""

import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grafit_jax import config as config_lib
from grafit_jax import methods
from grafit_jax.errors import UserError, reading
from grafit_jax.reading import read_json

# A row of a table and a seed: row, protocol, method, seed, metrics (fractions), run (run.json), config, command.
Result = dict[str, Any]
# Of what a run leaves as its result. Goes up when the same keys mean something else.
SCHEMA = 1
# Whose neighbours are found by the pixels themselves: the control without a network, and without a config of its own.
RAW_PIXELS = "raw_pixels"
# What changes no training.
_NOT_TRAINING = ("eval.", "checkpoint.")
# By what test images are judged, which results in one table have to share; their size a table can say.
_JUDGED_BY = ("eval.crop", "eval.resize", "eval.knn_k", "eval.knn_temperature")
# The fine metrics that are looked at first -> what they are called.
HEADLINE = {"map": "mAP", "recall@1": "R@1", "knn_top1": "k-NN"}
LAYERS = ("trunk", "projector")
# Runs that others start from, by where they are.
STARTS = ("clusters.workdir", "model.pretrained")
_WANT = (
    "want recorded results: take the file back from version control, or record them again with experiments/reproduce.py"
)


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
    whole = {
        "run": {key: value for key, value in run.items() if key != "digest"},
        "config": {key: value for key, value in config.items() if key not in config_lib.PLACES},
        "metrics": metrics,
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check(result: Result, where: str) -> Result:
    """`result`, if it is as its run wrote it.

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
    return result


def protocol(method: str) -> str:
    """That a method is of; none of raw pixels."""
    return "" if method == RAW_PIXELS else methods.get(method).protocol


def check_together(results: Sequence[Result], where: str, *, says_protocol: bool) -> None:
    """Checks that results can stand in one table.

    Raises:
      UserError: two protocols, unless the table says which row is of which; images of different data; or other rules
        by which they are judged.
    """
    protocols = sorted({protocol(r["method"]) for r in results} - {""})
    if len(protocols) > 1 and not says_protocol:
        raise UserError(
            f"{where} mixes protocols {' and '.join(protocols)} and has no column that says so: want one of them, or "
            "the fact `protocol` in grafit_jax/tables.py."
        )
    _check_rules(results, where)
    # By the size that photos are kept at, which is in their fingerprint.
    by_size: dict[int, list[Result]] = {}
    for result in results:
        by_size.setdefault(result["config"].get("data.image_size", 0), []).append(result)
    for of_size in by_size.values():
        different = _on_different_data(of_size)
        if len(different) > 1:
            raise UserError(
                f"{where} mixes results on different images or labels ({'; '.join(different)}): measure all "
                "rows on the same data."
            )


def _check_rules(results: Sequence[Result], where: str) -> None:
    """Raises a UserError for results that were judged by different rules."""
    default = config_lib.flatten(config_lib.default())
    for key in _JUDGED_BY:
        values = {result["config"].get(key, default[key]): result for result in results}
        if len(values) > 1:
            found = "; ".join(f"{r['row']}, seed {r['seed']}: {value}" for value, r in values.items())
            raise UserError(f"{where} mixes results of different {key} ({found}): evaluate all rows alike.")


def at_layer(config: Mapping[str, Any], metric: str, layer: str) -> str:
    """The name of a metric at "trunk" or "projector": plain at the headline's layer, the first of `eval.features`."""
    headline = config.get("eval.features", LAYERS)[0]
    return metric if layer == headline else f"{layer}/{metric}"


def _on_different_data(results: Iterable[Result]) -> list[str]:
    """One result of each data set among these, by row and seed; those that say nothing of their data left out.

    Data are the same in the same order (`data_fingerprint`), or in any (`data_content`, which older results lack).
    """
    groups: list[tuple[set[tuple], str]] = []
    for result in results:
        said = {
            (kind, found["train"], found["test"])
            for kind in ("data_fingerprint", "data_content")
            if {"train", "test"} <= (found := result["run"].get(kind, {})).keys()
        }
        if not said:
            continue
        same = [group for group in groups if group[0] & said]
        groups = [group for group in groups if group not in same]
        first = same[0][1] if same else f"{result['row']}, seed {result['seed']}"
        groups.append((said.union(*(prints for prints, _ in same)), first))
    return [name for _, name in groups]


def read(path: pathlib.Path) -> list[Result]:
    """The recorded results of a table, each checked; UserError for a file that holds something else."""
    found = read_json(path, list, _WANT)
    with reading(path, _WANT):
        for result in found:
            if result["method"] not in (*methods.METHODS, RAW_PIXELS):
                raise UserError(f"{path} has the method {result['method']!r}, which there is not: {_WANT}.")
            if result["protocol"] != protocol(result["method"]):
                raise UserError(f"{path} has {result['method']} as of protocol {result['protocol']!r}: {_WANT}.")
            if result["method"] != result["config"]["method"] or result["seed"] != result["config"]["seed"]:
                raise UserError(f"{path} has a method or seed that its config has not: {_WANT}.")
            check(result, f"{path}, row {result['row']}, seed {result['seed']},")
    return found


def merge(old: Iterable[Result], new: Iterable[Result], rows: Sequence[str], where: str) -> list[Result]:
    """Old and new results in the order of `rows`, then of seeds; a new one takes the place of an old one of its config.

    Raises:
      UserError: a row that the table has not, or a new result of another config than the one that is there.
    """
    merged: dict[tuple[str, int], Result] = {}
    for result in [*old, *new]:
        place = (result["row"], result["seed"])
        if result["row"] not in rows:
            raise UserError(f"{where} has the row {result['row']}, and the table has {', '.join(rows)}: remove it.")
        changed = differences(merged[place]["config"], result["config"]) if place in merged else []
        if changed:
            raise UserError(
                f"{where} has {place[0]}, seed {place[1]}, of another config ({'; '.join(changed)}): remove that entry "
                "if the new one is to take its place, or train by the config that it has."
            )
        merged[place] = result
    return sorted(merged.values(), key=lambda r: (rows.index(r["row"]), r["seed"]))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """'key: old -> new' where two configs (dotted keys to values) would not train the same.

    A key that one of them lacks is at its default, since it was recorded before there was that key. Of a run to start
    from only the name counts, and of clusters nothing, where the method has none. Evaluation and checkpoints change no
    training.
    """
    a, b = comparable(old), comparable(new)
    return [f"{key}: {a.get(key)!r} -> {b.get(key)!r}" for key in sorted(a | b) if a.get(key) != b.get(key)]


def key(config: Mapping[str, Any]) -> frozenset:
    """Equal for configs without `differences`, and for no others."""
    return frozenset(comparable(config).items())


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config makes a difference to its run: as JSON has it or not, and however old it is."""
    values = config_lib.flatten(config_lib.default()) | dict(config)
    values = {
        key: tuple(v) if isinstance(v, list) else v
        for key, v in values.items()
        if key not in config_lib.PLACES and not key.startswith(_NOT_TRAINING)
    }
    if values["method"] == RAW_PIXELS or not methods.get(values["method"]).clusters:
        values = {key: v for key, v in values.items() if not key.startswith("clusters.")}
    return values | {key: pathlib.Path(values[key]).name for key in STARTS if key in values}
