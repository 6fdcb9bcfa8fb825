"""Recorded results: JSON lines files in version control, checks that results are comparable, and merging."""

import functools
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grafit_jax import config as config_lib
from grafit_jax import methods, open_keys
from grafit_jax.errors import UserError, reading
from grafit_jax.runs.results import Result

# The control without a network: neighbours by raw pixels. It has no config of its own.
RAW_PIXELS = "raw_pixels"
# Prefixes of config keys that do not affect training.
_NOT_TRAINING = ("eval.", "checkpoint.")
# Evaluation settings that all results of one table must share. The image size may differ: tables show it.
_EVALUATED_WITH = ("eval.crop", "eval.resize", "eval.knn_k", "eval.knn_temperature")
# The parts of an entry whose shared values are written once, in the first line of a file.
_PARTS = ("run", "config", "environment")
RESTORE = "restore the file from version control, or record it again with experiments/reproduce.py or benchmark.py"


def own_layer(method: str) -> str:
    """Returns `Method.layer`; the trunk for raw pixels."""
    return "trunk" if method == RAW_PIXELS else methods.get(method).layer


def protocol(method: str) -> str:
    """Returns the protocol of a method; "" for raw pixels."""
    return "" if method == RAW_PIXELS else methods.get(method).protocol


def dumps(entries: Sequence[Mapping[str, Any]]) -> str:
    """Returns JSON lines: first the values that all entries share, then one line for each entry with the rest."""
    first, *others = entries = json.loads(json.dumps(entries))  # as read back: lists, not tuples
    shared = {
        part: {
            key: value
            for key, value in first[part].items()
            if all(key in other.get(part, {}) and other[part][key] == value for other in others)
        }
        for part in _PARTS
        if part in first
    }
    lines = [{"shared": shared}]
    for entry in entries:
        rest = {part: {k: v for k, v in entry[part].items() if k not in shared[part]} for part in shared}
        lines.append({**entry, **rest})
    return "".join(json.dumps(line) + "\n" for line in lines)


def load(path: pathlib.Path) -> list[dict[str, Any]]:
    """Loads the entries of a file written by `dumps`; raises UserError if the content is invalid."""
    with reading(path, RESTORE):
        first, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        shared = first["shared"]
        return [{**line, **{part: same | line[part] for part, same in shared.items()}} for line in lines]


def read(path: pathlib.Path) -> list[Result]:
    """Loads the recorded results of a table; raises UserError if the content is invalid."""
    found = load(path)
    with reading(path, RESTORE):
        for result in found:
            if missing := {"row", "metrics", "run", "config"} - result.keys():
                raise UserError(f"{path}: found a result without {', '.join(sorted(missing))}; {RESTORE}.")
            for name, value in result["metrics"].items():
                if not isinstance(value, int | float):
                    raise UserError(f"{path}: found {name} = {str(value)[:40]!r}; expected a number; {RESTORE}.")
            config = result["config"]
            protocol(config["method"])
            result |= {"method": config["method"], "seed": config["seed"], "config": config}
    return found


def save_form(result: Result) -> dict[str, Any]:
    """Returns the recorded form of a result, without values that its config repeats and without local paths."""
    config = {key: _placeless(key, v) for key, v in result["config"].items() if key not in config_lib.PLACES}
    return {"row": result["row"], "metrics": result["metrics"], "run": result["run"], "config": config}


def check_together(results: Sequence[Result], where: str) -> None:
    """Checks that results are comparable, so that one table may show them.

    Raises:
      UserError: the results are of different images or labels, or of different evaluation settings.
    """
    for key in _EVALUATED_WITH:
        values = {result["config"].get(key, _defaults()[key]): result for result in results}
        if len(values) > 1:
            found = "; ".join(f"{r['row']}, seed {r['seed']}: {value}" for value, r in values.items())
            raise UserError(f"{where}: found results with different {key} ({found}); evaluate all rows with the same.")
    # Grouped by data.image_size, on which the fingerprint of photos depends.
    by_size: dict[int, list[Result]] = {}
    for result in results:
        by_size.setdefault(result["config"].get("data.image_size", 0), []).append(result)
    for of_size in by_size.values():
        different = _on_different_data(of_size)
        if len(different) > 1:
            raise UserError(
                f"{where}: found results on different images or labels ({'; '.join(different)}); measure all rows on "
                "the same data."
            )


def _on_different_data(results: Iterable[Result]) -> list[str]:
    """Returns the row and seed of one result for each data set among the results; results without one are ignored.

    Two results have the same data if their images are equal in order (`data_fingerprint`) or in any order
    (`data_content`, which older results lack).
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


def merge(old: Iterable[Result], new: Iterable[Result], rows: Sequence[str], where: str) -> list[Result]:
    """Merges results in the order of `rows`, then of seeds; a new result replaces an old one of the same config.

    Raises:
      UserError: a row is not in `rows`, or a new result has another config than the old one of its row and seed.
    """
    merged: dict[tuple[str, int], Result] = {}
    for result in [*old, *new]:
        place = (result["row"], result["seed"])
        if result["row"] not in rows:
            raise UserError(f"{where}: found row {result['row']}; expected one of {', '.join(rows)}; remove it.")
        changed = differences(merged[place]["config"], result["config"]) if place in merged else []
        if changed:
            raise UserError(
                f"{where}: found {place[0]}, seed {place[1]}, of another config ({'; '.join(changed)}); remove that "
                "entry to replace it, or train with its config."
            )
        merged[place] = result
    return sorted(merged.values(), key=lambda r: (rows.index(r["row"]), r["seed"]))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns 'key: old -> new' for every difference between two configs (dotted key -> value) that affects training.

    A missing key has its default: the config was recorded before the key existed. Paths count by their last part.
    What `new` leaves open does not differ; see `open_keys.completed`. Ignored are `eval.*`, `checkpoint.*` and, for
    methods without clusters, `clusterfit.*`.
    """
    a, b = comparable(old), comparable(open_keys.completed(new, old))
    return [f"{key}: {a.get(key)!r} -> {b.get(key)!r}" for key in sorted(a | b) if a.get(key) != b.get(key)]


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of a config that affect training, in one form for configs of JSON, of Python and of any age."""
    values = _defaults() | dict(config)
    values = {
        key: _placeless(key, tuple(v) if isinstance(v, list) else v)
        for key, v in values.items()
        if key not in config_lib.PLACES and not key.startswith(_NOT_TRAINING)
    }
    if values["method"] == RAW_PIXELS or not methods.get(values["method"]).uses_clusters:
        values = {key: v for key, v in values.items() if not key.startswith("clusterfit.")}
    return values


@functools.cache
def _defaults() -> dict[str, Any]:
    return config_lib.flatten(config_lib.default())


def _placeless(key: str, value: Any) -> Any:
    """Returns the value of a config key; a path is reduced to its last part, a name on the hub loses its revision."""
    if key in config_lib.STARTS:
        if value and value.startswith(open_keys.HUB):
            return pathlib.Path(value).name.partition("@")[0]
        return pathlib.Path(value).name if value else value  # None is open
    kind, _, place = value.partition(":") if key == "data.source" else ("", "", "")
    return f"{kind}:{pathlib.Path(place).name}" if kind in config_lib.FILES else value
