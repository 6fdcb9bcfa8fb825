"""The runs of a table: which of them are there, what the others take, and their results."""

import contextlib
import dataclasses
import pathlib
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import ml_collections
import numpy as np
from sweeps import runner

from grafit_jax import config as config_lib
from grafit_jax import config_files, experiment, restore
from grafit_jax.commands import train
from grafit_jax.data import sources
from grafit_jax.errors import UserError, did_you_mean
from grafit_jax.report import pictures
from grafit_jax.retrieval import evaluate as evaluation
from grafit_jax.runs import provenance, results, workdir
from grafit_jax.runs.preemption import Preempted
from grafit_jax.runs.results import Result
from study import recording
from study.tables import RAW_PIXELS, Row, Table


@dataclasses.dataclass(frozen=True)
class RowRun:
    """A row and a seed.

    Attributes:
      directory: of its run.
      arg: what stands behind the config file's colon.
      start: the run that it starts from.
    """

    row: Row
    seed: int
    directory: pathlib.Path
    arg: str
    config: ml_collections.ConfigDict
    start: "RowRun | None" = None

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def flat(self) -> dict[str, Any]:
        """The config as a result has it: dotted keys to values, with the method that is none of a config's."""
        flat = config_lib.flatten(self.config)
        return flat | {"method": RAW_PIXELS} if self.row.name == RAW_PIXELS else flat


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a table's data and weights are, if not where its configs say.

    Attributes:
      data_dir: TFDS's data directory.
      data_source: where the same images lie, in place of the config's data.source; empty for that.
      pretrained: the file of weights, for a table whose trunks start from one.
    """

    data_dir: str = ""
    data_source: str = ""
    pretrained: str = ""


def points(
    table: Table,
    path: pathlib.Path,
    *,
    root: pathlib.Path,
    seeds: Sequence[int] | None = None,
    only: Sequence[str] | None = None,
    source: Source = Source(),
) -> list[RowRun]:
    """The runs of a table, row by row; nothing is trained or read but config files.

    Args:
      table: which.
      path: where its runs are.
      root: of the repository.
      seeds: of every row, in place of the table's own.
      only: these rows alone, by name, in this order.
      source: of data and weights.
    """
    given = source.pretrained
    if table.pretrained and not given:
        raise UserError("the table's trunks start pretrained: found no file of weights, want --pretrained=FILE.")
    if given and not table.pretrained:
        raise UserError(f"the table's trunks start from scratch: found {given} of weights, want no --pretrained.")
    rows = {row.name: row for row in table.rows}
    unknown = set(only or ()) - {*rows}
    if unknown:
        near = did_you_mean(min(unknown), [*rows])
        raise UserError(f"the table has no {', '.join(sorted(unknown))}{near}: its rows are {', '.join(rows)}.")

    def point(row: Row, seed: int) -> RowRun:
        start = None if row.start is None else point(row.start, seed)
        arg = row.arg if row.name == RAW_PIXELS else ",".join(filter(None, (row.arg, f"seed={seed}")))
        if start is not None:
            arg += f",init={start.directory}"
        config = config_files.load_file(root / row.config, arg)
        config.update_from_flattened_dict(dict(row.overrides))
        config.data.data_dir = source.data_dir
        config.data.source = source.data_source or config.data.source
        if table.pretrained:
            config.model.pretrained = given
        return RowRun(row, seed, run_directory(path, row.name, seed), arg, config, start)

    return [
        point(row, seed)
        for row in (rows.values() if only is None else [rows[name] for name in dict.fromkeys(only)])
        for seed in ((0,) if row.name == RAW_PIXELS else range(row.seeds) if seeds is None else seeds)
    ]


def run_directory(path: pathlib.Path, name: str, seed: int) -> pathlib.Path:
    """Of the run of a row: under its name, with the seed if it is not 0."""
    return path / (f"{name}_seed{seed}" if seed else name)


# What helps a run that was not started, or stopped.
AGAIN = "start the same command again to go on"


class Budget(Protocol):
    """What `all_results` asks before it trains; `pricing.Budget`."""

    def refusal(self, missing: Sequence[RowRun]) -> str | None: ...
    def trained(self, result: Result, seconds: float) -> None: ...


# What is recorded, in whichever table: row, and `results.key` of the config -> result.
Recorded = Mapping[tuple[str, frozenset], Result]


def index(found: Iterable[Result]) -> Recorded:
    """Recorded results by their rows, and by what they were trained with."""
    return {(result["row"], recording.key(result["config"])): result for result in found}


def state(point: RowRun, known: Recorded) -> str:
    """What there is of a run: "recorded", "complete", "begun" or "missing"; UserError for files of something else."""
    if known_result(point, known) is not None:
        return "recorded"
    if point.row.name == RAW_PIXELS:
        return "missing"  # seconds
    workdir.check(point.directory, point.config)
    if (point.directory / "metrics.json").is_file():
        return "complete"
    return "begun" if (point.directory / "config.json").is_file() else "missing"


def missing(wanted: Iterable[RowRun], known: Recorded) -> list[RowRun]:
    """What is to be trained, in order and each run once: also runs that others start from, whatever is recorded."""
    found: dict[pathlib.Path, RowRun] = {}

    def add(point: RowRun, known: Recorded) -> None:
        if state(point, known) in ("recorded", "complete"):
            return
        if point.start is not None:
            add(point.start, {})  # its checkpoint is needed
        found.setdefault(point.directory, point)

    for point in wanted:
        add(point, known)
    return list(found.values())


def known_result(point: RowRun, known: Recorded) -> Result | None:
    """The recorded result of the same row, trained by the same config."""
    return known.get((point.row.name, recording.key(point.flat)))


def result(point: RowRun, known: Recorded) -> Result:
    """The result of a run, which is trained if it is neither recorded nor complete."""
    found = known_result(point, known)
    if found is not None:
        return found
    if point.row.name == RAW_PIXELS:
        return _raw_pixels(point)
    _train(point)
    return {"row": point.row.name} | results.collect(point.directory)


def complete(wanted: Iterable[RowRun]) -> list[Result]:
    """The results of the runs that are complete already, recorded or not; what cannot be read is passed over."""
    found = []
    for point in wanted:
        with contextlib.suppress(UserError):  # `all_results` tells of it
            if state(point, {}) == "complete":
                found.append(result(point, {}))
    return found


def _train(point: RowRun) -> None:
    if (point.directory / "metrics.json").exists():
        workdir.claim(point.directory, point.config)  # refuses the results of another config
        return
    if point.start is not None:
        _train(point.start)
    train.train(point.config, point.directory)


def words(point: RowRun, root: pathlib.Path) -> list[str]:
    """The words of the command line that trains a run here, by the repository in `root`."""
    places = {key: point.flat[key] for key in ("data.data_dir", "data.source", "model.pretrained")}
    config = f"--config={root / point.row.config}:{point.arg}"
    flags = [f"--config.{key}={value}" for key, value in {**point.row.overrides, **places}.items()]
    return [sys.executable, str(root / "experiments" / "train.py"), config, *flags, f"--workdir={point.directory}"]


def train_all(
    wanted: Iterable[RowRun],
    known: Recorded,
    failed: dict[pathlib.Path, str],
    left: dict[pathlib.Path, str],
    *,
    root: pathlib.Path,
    jobs: int,
) -> bool:
    """Trains what is missing, some runs at a time, each by a process of its own with its log beside its checkpoints.

    Args:
      wanted: of all tables: `all_results` of them finds the runs complete, or in `failed` or `left`.
      known: as for `all_results`.
      failed: gets the reasons by directory.
      left: the same of runs that are to be gone on with: somebody else is at them, or they start from such a one.
      root: of the repository.
      jobs: how many at a time.

    Returns:
      whether it was asked to stop, by SIGTERM or SIGINT, and its runs have saved themselves.
    """
    waiting = [point for point in missing(wanted, known) if point.row.name != RAW_PIXELS]
    while waiting:
        there = {point.directory for point in waiting}
        ready = [p for p in waiting if p.start is None or p.start.directory not in there]
        waiting = [p for p in waiting if p not in ready]
        for p in ready:
            if p.start is not None and p.start.directory in left:
                left[p.directory] = f"starts from {p.start.name}, which is not complete: {AGAIN}"
        can = [p for p in ready if p.start is None or p.start.directory not in {*failed, *left}]
        commands = {str(point.directory): words(point, root) for point in can}
        if runner.run_all(commands, pathlib.Path(), jobs=jobs):
            return True
        for point in can:
            standing = runner.standing(point.directory)
            if standing.state == "failed":
                failed[point.directory] = f"{standing}; see {point.directory / workdir.LOG}"
            elif standing.state != "complete":
                left[point.directory] = f"{standing}: {AGAIN}"
    return False


def all_results(
    wanted: Sequence[RowRun],
    known: Recorded,
    failed: dict[pathlib.Path, str],
    left: dict[pathlib.Path, str] | None = None,
    budget: Budget | None = None,
) -> Iterator[Result]:
    """The results of runs one after the other; of one that fails, its reason into `failed` by directory, no result.

    Args:
      wanted: which. What is in `failed` already is not tried again.
      known: what is recorded, and not trained.
      failed: gets the reasons by directory.
      left: gets the reasons of runs that the budget refuses.
      budget: the time in which runs are to end; None for no limit.
    """
    for point in wanted:
        if point.directory in failed:
            continue
        if point.start is not None and point.start.directory in failed:
            failed[point.directory] = f"starts from {point.start.name}, which failed"
            continue
        try:
            to_train = [p for p in missing([point], known) if p.row.name != RAW_PIXELS] if budget else []
            if budget and left is not None and to_train and (refusal := budget.refusal(to_train)):
                left[point.directory] = refusal
                continue
            from_start = len(to_train) == 1 and state(point, known) == "missing"
            started = time.monotonic()
            found = result(point, known)
            if budget and from_start:
                budget.trained(found, time.monotonic() - started)
        except Preempted:
            raise
        except UserError as error:
            failed[point.directory] = str(error)
        except Exception as error:  # a bug, or a machine's fault, in hours of which the other rows are not lost
            traceback.print_exc()
            failed[point.directory] = f"{type(error).__name__}: {error}"
        else:
            yield found


def _raw_pixels(point: RowRun) -> Result:
    records = sources.load(**point.config.data)
    train_split, test_split = (
        evaluation.Embedded(records[s].image.reshape(len(records[s]), -1).astype(np.float32), records[s].labels)
        for s in ("train", "test")
    )
    e = point.config.eval
    metrics = evaluation.evaluate(
        test_split, train_split, ks=e.recall_at, knn_k=e.knn_k, knn_temperature=e.knn_temperature
    )
    facts = provenance.describe() | {
        "data_fingerprint": {s: r.fingerprint() for s, r in records.items()},
        "data_content": experiment.contents(records),
    }
    own = {"row": RAW_PIXELS, "method": RAW_PIXELS, "seed": 0}
    return own | {"metrics": metrics, "run": facts, "config": point.flat}


def draw(table: Table, path: pathlib.Path) -> pathlib.Path:
    """The gallery of the table's two rows, seed 0, as `path`/gallery.png."""
    embeddings = {}
    for name in table.gallery:
        run_, state = restore.newest(run_directory(path, name, 0))
        test = run_.records["test"]
        embeddings[name] = run_.embed_fn(state.variables, test.image)["trunk"]
    target = path / "gallery.png"
    pictures.gallery(target, test, embeddings)
    return target
