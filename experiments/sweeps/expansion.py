"""The points of a config file's `sweep()`, each with a name, a config and a command line.

A point is a dict. A key without a dot is an argument of the file's `get_config` (`method`, `w`, `seed`), a key with a
dot is a config key (`optimizer.learning_rate`). Values on the command line apply to all points; points with another
value are left out.
"""

import dataclasses
import hashlib
import os
import pathlib
import re
import types
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import ml_collections

from grafit_jax import config as config_lib
from grafit_jax import config_checks, config_files, presets
from grafit_jax.errors import UserError
from grafit_jax.runs import results, workdir

# Other entries of a sweep's directory, next to the runs.
PLOT = "sweep.png"
_LONGEST = 200  # bytes of a name; file systems allow 255

Values = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    name: str  # of its workdir: the values that differ between points, with the seed if it is not 0
    values: Values  # the dict of `sweep()`
    flags: tuple[str, ...]  # of experiments/train.py, without the workdir
    config: ml_collections.ConfigDict  # the config of these flags


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The points of a config file's `sweep()`, in its order."""

    points: tuple[Point, ...]  # those that agree with the command line
    varying: tuple[str, ...]  # keys that differ between the points of the file, without the seed
    names: frozenset[str]  # of all points of the file


def expand(file: str, arg: str, overrides: dict[str, Any], seeds: Sequence[int] | None = None) -> Sweep:
    """Returns the sweep of a config file, and builds and checks the config of every point.

    Args:
      file: path of the config file.
      arg: its arguments on the command line.
      overrides: config keys set on the command line.
      seeds: seeds of every point, in place of its own.

    Raises:
      UserError: the file has no `sweep()`, there are no points, two points are equal, or a config is invalid.
    """
    module = config_files.load_module(pathlib.Path(file))
    if not hasattr(module, "sweep"):
        raise UserError(f"{file}: found no sweep(); expected a function that yields dicts, as in configs/maskcon.py.")
    everything = [_checked(values, file) for values in module.sweep() or ()]
    if seeds is not None:
        bases: list[Values] = []  # points without their seeds, each once
        for values in everything:
            base = {key: value for key, value in values.items() if key != "seed"}
            if base == values or base not in bases:
                bases.append(base)
        everything = [{**base, "seed": seed} for base in bases for seed in seeds]
    if not everything:
        raise UserError(f'{file}: found no points in sweep(); expected dicts, such as {{"method": "grafit"}}.')
    keys = dict.fromkeys(key for values in everything for key in values if key != "seed")
    varying = tuple(key for key in keys if any(values.get(key) != everything[0].get(key) for values in everything))
    names = [_name(values, varying) for values in everything]
    _refuse_pairs((name.casefold() for name in names), everything, file, "name")

    given = dict(part.partition("=")[::2] for part in arg.split(",") if part)
    points = []
    for name, values in zip(names, everything, strict=True):
        said = {key: config_files.typed(key, given[key], values[key]) for key in values if key in given} | overrides
        if any(values.get(key, value) != value for key, value in said.items()):
            continue
        own = {key: value for key, value in values.items() if key not in given and key not in overrides}
        whole_arg = ",".join([arg] * bool(arg) + [f"{key}={value}" for key, value in own.items() if "." not in key])
        keys = {key: value for key, value in own.items() if "." in key} | overrides
        try:
            config = _config(module, whole_arg, keys)
        except UserError as error:
            raise UserError(f"{file}: point {_shown(values)}: {error}") from error
        flags = [f"--config={file}{':' * bool(whole_arg)}{whole_arg}", *(f"--config.{k}={v}" for k, v in keys.items())]
        points.append(Point(name, values, tuple(flags), config))
    if not points:
        raise UserError(
            f"{file}: found no point of sweep() that agrees with the command line, {_shown({**given, **overrides})}; "
            f"expected points such as {_shown(everything[0])}; remove the values that differ."
        )
    configs = (tuple(config_lib.flatten(point.config).items()) for point in points)
    _refuse_pairs(configs, [point.values for point in points], file, "config")
    return Sweep(tuple(points), varying, frozenset(names))


def _checked(values: Any, file: str) -> Values:
    if not isinstance(values, dict) or not all(isinstance(key, str) and key for key in values):
        raise UserError(f'{file}: found {values!r} in sweep(); expected a dict, such as {{"method": "grafit"}}.')
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _name(values: Values, varying: Iterable[str]) -> str:
    shown = {key: re.sub(r"[^A-Za-z0-9._+-]+", "_", str(values[key])).strip("_") for key in varying if key in values}
    if not shown or values.get("seed"):
        shown["seed"] = values.get("seed", 0)
    name = ",".join(f"{key}={text}" for key, text in shown.items())
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _refuse_pairs(keys: Iterable[Hashable], points: Iterable[Values], file: str, what: str) -> None:
    """Raises a UserError for two points with the same key; `what` names the key."""
    seen: dict[Hashable, Values] = {}
    for key, values in zip(keys, points, strict=True):
        if key in seen:
            both = f"{_shown(seen[key])} and {_shown(values)}"
            raise UserError(f"{file}: found the points {both} with the same {what}; expected each point once.")
        seen[key] = values


def _shown(values: Values) -> str:
    return "{" + ", ".join(f"{key}={value}" for key, value in values.items()) + "}"


def _config(module: types.ModuleType, arg: str, keys: Values) -> ml_collections.ConfigDict:
    config = module.get_config(*[arg] * bool(arg))
    known = config_lib.flatten(config)
    for key in keys:
        if key not in known:
            raise config_lib.unknown_key(key, known)
    with config.ignore_type():
        config.update_from_flattened_dict(keys)
    # The number of devices of a run is unknown here, and asking JAX would occupy them.
    config_checks.validate(presets.assumed(config), num_devices=1)
    return config


def shard(points: Sequence[Point], text: str) -> tuple[Point, ...]:
    """Returns part i of n of the points, every n-th one, for `text` "i/n" with i from 0."""
    if not re.fullmatch(r"[0-9]{1,6}/[0-9]{1,6}", text) or not int(text.split("/")[0]) < int(text.split("/")[1]):
        raise UserError(f"found --shard={text}; expected i/n, part i of n, with i from 0 to n - 1, as 0/4.")
    i, n = map(int, text.split("/"))
    return tuple(points[i::n])


def command(point: Point, directory: pathlib.Path, *, python: str, root: pathlib.Path) -> list[str]:
    """Returns the words of the command that trains a point."""
    script = os.path.relpath(root / "experiments" / "train.py")
    return [python, script, *point.flags, f"--workdir={directory / point.name}"]


def check_directory(sweep: Sweep, directory: pathlib.Path) -> None:
    """Checks that `directory` holds only runs of this sweep; it need not exist.

    Raises:
      UserError: it holds something else, a run has another config than its point, or a result is damaged.
    """
    known = {PLOT, *map(_without_seed, sweep.names)}
    there = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    strange = [name for name in there if name[0] != "." and _without_seed(name) not in known]
    if strange:
        raise UserError(
            f"{directory}: found {', '.join(strange[:3])}{', …' * (len(strange) > 3)}; expected only runs of this "
            f"sweep, such as {sweep.points[0].name}; use another --workdir."
        )
    for point in sweep.points:
        run = directory / point.name
        workdir.check(run, point.config)
        if (run / "metrics.json").is_file():
            results.collect(run)


def _without_seed(name: str) -> str:
    return re.sub(r",seed=\d+$|^seed=\d+$", "", name)
