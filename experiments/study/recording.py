"""Recorded results: read and checked, whether they can stand in one table, and merged with new ones."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grafit_jax import config as config_lib
from grafit_jax import methods
from grafit_jax.data.files import read_json
from grafit_jax.errors import UserError, reading
from grafit_jax.runs.results import Result, check

# Whose neighbours are found by the pixels themselves: the control without a network, and without a config of its own.
RAW_PIXELS = "raw_pixels"
# What changes no training.
_NOT_TRAINING = ("eval.", "checkpoint.")
# By what test images are judged, which results in one table have to share; their size a table can say.
_JUDGED_BY = ("eval.crop", "eval.resize", "eval.knn_k", "eval.knn_temperature")
# Runs that others start from, by where they are.
STARTS = ("clusterfit.source", "model.pretrained")
_WANT = (
    "want recorded results: take the file back from version control, or record them again with experiments/reproduce.py"
)


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
            "the fact `protocol` in experiments/study/tables.py."
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
        for place, result in enumerate(found):
            if result["method"] not in (*methods.METHODS, RAW_PIXELS):
                raise UserError(f"{path} has the method {result['method']!r}, which there is not: {_WANT}.")
            if result["protocol"] != protocol(result["method"]):
                raise UserError(f"{path} has {result['method']} as of protocol {result['protocol']!r}: {_WANT}.")
            if result["method"] != result["config"]["method"] or result["seed"] != result["config"]["seed"]:
                raise UserError(f"{path} has a method or seed that its config has not: {_WANT}.")
            found[place] = check(result, f"{path}, row {result['row']}, seed {result['seed']},")
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
    if values["method"] == RAW_PIXELS or not methods.get(values["method"]).uses_clusters:
        values = {key: v for key, v in values.items() if not key.startswith("clusterfit.")}
    return values | {key: pathlib.Path(values[key]).name for key in STARTS if key in values}
