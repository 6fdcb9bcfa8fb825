"""Recorded results: JSON lines that git keeps, whether they can stand in one table, and merging them with new ones."""

import functools
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grafit_jax import config as config_lib
from grafit_jax import methods
from grafit_jax.errors import UserError, reading
from grafit_jax.runs.results import Result

# Whose neighbours are found by the pixels themselves: the control without a network, and without a config of its own.
RAW_PIXELS = "raw_pixels"
# What changes no training.
_NOT_TRAINING = ("eval.", "checkpoint.")
# By what test images are judged, which results in one table have to share; their size a table can say.
_JUDGED_BY = ("eval.crop", "eval.resize", "eval.knn_k", "eval.knn_temperature")
# Runs that others start from, by where they are.
STARTS = ("clusterfit.source", "model.pretrained")
# The parts of an entry of which a file says once what all its entries share.
_PARTS = ("run", "config", "environment")
WANT = "take the file back from version control, or record it again with experiments/reproduce.py or benchmark.py"


def protocol(method: str) -> str:
    """That a method is of; none of raw pixels."""
    return "" if method == RAW_PIXELS else methods.get(method).protocol


def dumps(entries: Sequence[Mapping[str, Any]]) -> str:
    """JSON lines: first what all entries share of their parts, then an entry a line, with the rest."""
    first, *others = entries = json.loads(json.dumps(entries))  # what is read back: lists, no tuples
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
    """The entries of a file that `dumps` made; UserError for a file that holds something else."""
    with reading(path, WANT):
        first, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        shared = first["shared"]
        return [{**line, **{part: same | line[part] for part, same in shared.items()}} for line in lines]


def read(path: pathlib.Path) -> list[Result]:
    """The recorded results of a table; UserError for a file that holds something else."""
    found = load(path)
    with reading(path, WANT):
        for result in found:
            if missing := {"row", "metrics", "run", "config"} - result.keys():
                raise UserError(f"{path} has a result without {', '.join(sorted(missing))}: {WANT}.")
            for name, value in result["metrics"].items():
                if not isinstance(value, int | float):
                    raise UserError(f"{path} has {str(value)[:40]!r} as {name}: {WANT}.")
            config = config_lib.renamed(result["config"])
            protocol(config["method"])
            result |= {"method": config["method"], "seed": config["seed"], "config": config}
    return found


def save_form(result: Result) -> dict[str, Any]:
    """What is recorded of a result: without what its config says again, or where its files lie on this machine."""
    config = {key: _placeless(key, v) for key, v in result["config"].items() if key not in config_lib.PLACES}
    return {"row": result["row"], "metrics": result["metrics"], "run": result["run"], "config": config}


def check_together(results: Sequence[Result], where: str) -> None:
    """Checks that results can stand in one table.

    Raises:
      UserError: images of different data, or other rules by which they are judged.
    """
    for key in _JUDGED_BY:
        values = {result["config"].get(key, _defaults()[key]): result for result in results}
        if len(values) > 1:
            found = "; ".join(f"{r['row']}, seed {r['seed']}: {value}" for value, r in values.items())
            raise UserError(f"{where} mixes results of different {key} ({found}): evaluate all rows alike.")
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
    """The value of a config's key, of a file or a folder its name alone."""
    if key in STARTS:
        return pathlib.Path(value).name
    if key == "data.source" and value.startswith("npz:"):
        return f"npz:{pathlib.Path(value[4:]).name}"
    return value
