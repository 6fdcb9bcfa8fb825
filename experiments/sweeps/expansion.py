"""The points of a config file's `sweep()`, each with a name, a config and a command line.

A point is a dict. A key without a dot is an argument of the file's `get_config` (`method`, `w`, `seed`), a key with a
dot is a key of the config (`optimizer.learning_rate`). What the command line says holds for all points: those that say
otherwise are left out.
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
from grafit_jax import config_checks, config_files
from grafit_jax.errors import UserError
from grafit_jax.runs import results, workdir

# Beside the runs in a sweep's directory.
PLOT = "sweep.png"
SLURM = "slurm"
_LONGEST = 200  # bytes of a name, of which a file system takes 255

Values = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Point:
    """A run of a sweep."""

    name: str  # of its directory: what tells it from the other points, with the seed if it is not 0
    values: Values  # the dict of `sweep()`
    flags: tuple[str, ...]  # of experiments/train.py, without the workdir
    config: ml_collections.ConfigDict  # what these flags make


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The points of a config file's `sweep()`, in its order."""

    points: tuple[Point, ...]  # those that the command line leaves
    varying: tuple[str, ...]  # the keys that are not the same in all points of the file, but for the seed
    names: frozenset[str]  # of all points of the file


def expand(file: str, arg: str, overrides: dict[str, Any], seeds: Sequence[int] | None = None) -> Sweep:
    """The sweep of a config file; every point's config is built and checked.

    Args:
      file: the config file.
      arg: what stands behind its colon on the command line.
      overrides: config keys that the command line sets.
      seeds: of every point, in place of its own.

    Raises:
      UserError: a file without `sweep()`, no points, two that are the same, a point that is no valid config.
    """
    module = config_files.load_module(pathlib.Path(file))
    if not hasattr(module, "sweep"):
        raise UserError(f"{file} has no sweep(): want a function that yields dicts, as in configs/maskcon.py.")
    everything = [_checked(values, file) for values in module.sweep() or ()]
    if seeds is not None:
        bases: list[Values] = []  # points that differ in their seeds alone are one
        for values in everything:
            base = {key: value for key, value in values.items() if key != "seed"}
            if base == values or base not in bases:
                bases.append(base)
        everything = [{**base, "seed": seed} for base in bases for seed in seeds]
    if not everything:
        raise UserError(f'sweep() of {file} yields no points: want dicts, such as {{"method": "grafit"}}.')
    keys = dict.fromkeys(key for values in everything for key in values if key != "seed")
    varying = tuple(key for key in keys if any(values.get(key) != everything[0].get(key) for values in everything))
    names = [_name(values, varying) for values in everything]
    _refuse_pairs((name.casefold() for name in names), everything, file, "have the one name")

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
            raise UserError(f"sweep() of {file}, point {_shown(values)}: {error}") from error
        flags = [f"--config={file}{':' * bool(whole_arg)}{whole_arg}", *(f"--config.{k}={v}" for k, v in keys.items())]
        points.append(Point(name, values, tuple(flags), config))
    if not points:
        raise UserError(
            f"{file}: found no point of sweep() that agrees with the command line, {_shown({**given, **overrides})}: "
            f"leave out what a point says itself, as in {_shown(everything[0])}."
        )
    configs = (tuple(config_lib.flatten(point.config).items()) for point in points)
    _refuse_pairs(configs, [point.values for point in points], file, "make the one config")
    return Sweep(tuple(points), varying, frozenset(names))


def _checked(values: Any, file: str) -> Values:
    if not isinstance(values, dict) or not all(isinstance(key, str) and key for key in values):
        raise UserError(f'sweep() of {file} yields {values!r}: want a dict, such as {{"method": "grafit"}}.')
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _name(values: Values, varying: Iterable[str]) -> str:
    shown = {key: re.sub(r"[^A-Za-z0-9._+-]+", "_", str(values[key])).strip("_") for key in varying if key in values}
    if not shown or values.get("seed"):
        shown["seed"] = values.get("seed", 0)
    name = ",".join(f"{key}={text}" for key, text in shown.items())
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _refuse_pairs(keys: Iterable[Hashable], points: Iterable[Values], file: str, what: str) -> None:
    """Raises a UserError for two points with the same key."""
    seen: dict[Hashable, Values] = {}
    for key, values in zip(keys, points, strict=True):
        if key in seen:
            both = f"{_shown(seen[key])} and {_shown(values)}"
            raise UserError(f"sweep() of {file}: the points {both} {what}: want each point once.")
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
    # How many devices a run will have is not known here, and asking JAX would take them.
    config_checks.validate(config, num_devices=1)
    return config


def shard(points: Sequence[Point], text: str) -> tuple[Point, ...]:
    """Part i of n of the points, by `text` "i/n" with i from 0: every n-th one."""
    if not re.fullmatch(r"[0-9]{1,6}/[0-9]{1,6}", text) or not int(text.split("/")[0]) < int(text.split("/")[1]):
        raise UserError(f"found --shard={text}: want i/n, part i of n, with i from 0 to n - 1, as 0/4.")
    i, n = map(int, text.split("/"))
    return tuple(points[i::n])


def command(point: Point, directory: pathlib.Path, *, python: str, root: pathlib.Path) -> list[str]:
    """The words of the command line that trains a point."""
    script = os.path.relpath(root / "experiments" / "train.py")
    return [python, script, *point.flags, f"--workdir={directory / point.name}"]


def check_directory(sweep: Sweep, directory: pathlib.Path) -> None:
    """Checks that `directory` holds runs of this sweep and nothing else, or can be made.

    Raises:
      UserError: it holds something else, or a run is of another config than its point, or its result is damaged.
    """
    known = {PLOT, SLURM, *map(_without_seed, sweep.names)}
    there = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    strange = [name for name in there if name[0] != "." and _without_seed(name) not in known]
    if strange:
        raise UserError(
            f"{directory} holds what is no run of this sweep ({', '.join(strange[:3])}{', …' * (len(strange) > 3)}): "
            f"take another --workdir; the runs here are called as {sweep.points[0].name}."
        )
    for point in sweep.points:
        run = directory / point.name
        workdir.check(run, point.config)
        if (run / "metrics.json").is_file():
            results.collect(run)


def _without_seed(name: str) -> str:
    return re.sub(r",seed=\d+$|^seed=\d+$", "", name)
