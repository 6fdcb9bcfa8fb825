"""The runs of a table: their state, training what is missing, and their results."""

import dataclasses
import pathlib
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import ml_collections
import numpy as np
from sweeps import runner

from grafit_jax import config as config_lib
from grafit_jax import config_files, experiment, presets, restore
from grafit_jax.commands import training
from grafit_jax.data import sources
from grafit_jax.errors import UserError, did_you_mean
from grafit_jax.report import pictures
from grafit_jax.retrieval import evaluate as evaluation
from grafit_jax.runs import provenance, results, workdir
from grafit_jax.runs.results import Result
from study import recording
from study.recording import RAW_PIXELS
from study.rows import Row, Table


@dataclasses.dataclass(frozen=True)
class RowRun:
    """The run of a row with one seed.

    Attributes:
      directory: its workdir.
      arg: arguments of the config file.
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
        """The config as a result has it: dotted key -> value, with method "raw_pixels" for that row."""
        flat = config_lib.flatten(self.config)
        return flat | {"method": RAW_PIXELS} if self.row.name == RAW_PIXELS else flat


def points(
    table: Table,
    path: pathlib.Path,
    *,
    root: pathlib.Path,
    seeds: Sequence[int] | None = None,
    only: Sequence[str] | None = None,
    data_dir: str = "",
    data_source: str = "",
    pretrained: str = "",
) -> list[RowRun]:
    """Returns the runs of a table, row by row; reads only config files and trains nothing.

    Args:
      table: the table.
      path: directory of its runs.
      root: root of the repository.
      seeds: seeds of every row, in place of the table's own.
      only: names of rows, in this order; None for all.
      data_dir: TFDS's data directory.
      data_source: replaces data.source, with the same images; empty for the config's.
      pretrained: replaces the table's weights; empty for its own.

    Raises:
      UserError: weights are not used, or a name in `only` is unknown.
    """
    if pretrained and not table.pretrained:
        raise UserError(f"found --pretrained={pretrained} for a table with trunks from scratch; remove --pretrained.")
    rows = {row.name: row for row in table.rows}
    unknown = set(only or ()) - {*rows}
    if unknown:
        near = did_you_mean(min(unknown), [*rows])
        raise UserError(f"found unknown row {', '.join(sorted(unknown))}{near}; expected one of {', '.join(rows)}.")

    def point(row: Row, seed: int) -> RowRun:
        start = None if row.start is None else point(row.start, seed)
        arg = row.arg if row.name == RAW_PIXELS else ",".join(filter(None, (row.arg, f"seed={seed}")))
        if start is not None:
            arg += f",init={start.directory}"
        config = config_files.load_file(root / row.config, arg)
        config.update_from_flattened_dict(dict(row.overrides))
        config.data.data_dir = data_dir
        config.data.source = data_source or config.data.source
        if table.pretrained:
            config.model.pretrained = pretrained or table.pretrained
        return RowRun(row, seed, run_directory(path, row.name, seed), arg, config, start)

    def of(row: Row) -> Sequence[int]:
        usual = range(row.first, row.first + row.seeds) if seeds is None else seeds
        return (0,) if row.name == RAW_PIXELS else usual

    chosen = rows.values() if only is None else [rows[name] for name in dict.fromkeys(only)]
    return [point(row, seed) for row in chosen for seed in of(row)]


def run_directory(path: pathlib.Path, name: str, seed: int) -> pathlib.Path:
    """Returns the workdir of a row's run: the row's name, with the seed if it is not 0."""
    return path / (f"{name}_seed{seed}" if seed else name)


_AGAIN = "start the same command again to resume"


def is_done(point: RowRun, known: Sequence[Result]) -> bool:
    """Returns whether a run is recorded or complete; raises UserError for a workdir of something else."""
    if known_result(point, known) is not None:
        return True
    if point.row.name == RAW_PIXELS:
        return False  # computed in seconds
    workdir.check(point.directory, point.config)
    return (point.directory / "metrics.json").is_file()


def missing(runs: Iterable[RowRun], known: Sequence[Result]) -> list[RowRun]:
    """Returns the runs to train, in order and each once, with the runs that they start from even if recorded."""
    found: dict[pathlib.Path, RowRun] = {}

    def add(point: RowRun, known: Sequence[Result]) -> None:
        if is_done(point, known):
            return
        if point.start is not None:
            add(point.start, [])  # a recorded result has no checkpoint
        found.setdefault(point.directory, point)

    for point in runs:
        add(point, known)
    return list(found.values())


def known_result(point: RowRun, known: Sequence[Result]) -> Result | None:
    """Returns the first recorded result of the same row and config, or None."""
    of_row = (result for result in known if result["row"] == point.row.name)
    return next((result for result in of_row if not recording.differences(result["config"], point.flat)), None)


def result(point: RowRun, known: Sequence[Result]) -> Result:
    """Returns the result of a run, and trains it if it is neither recorded nor complete."""
    found = known_result(point, known)
    if found is not None:
        return found
    if point.row.name == RAW_PIXELS:
        return _raw_pixels(point)
    _train(point)
    return {"row": point.row.name} | results.collect(point.directory)


def _train(point: RowRun) -> None:
    if (point.directory / "metrics.json").exists():
        workdir.claim(point.directory, point.config)  # raises for another config
        return
    if point.start is not None:
        _train(point.start)
    training.train(point.config, point.directory)


def words(point: RowRun, root: pathlib.Path) -> list[str]:
    """Returns the words of the command that trains a run with the repository in `root`."""
    places = {key: point.flat[key] for key in ("data.data_dir", "data.source", "model.pretrained")}
    places = {key: value for key, value in places.items() if value is not None}
    config = f"--config={root / point.row.config}:{point.arg}"
    flags = [f"--config.{key}={value}" for key, value in {**point.row.overrides, **places}.items()]
    return [sys.executable, str(root / "experiments" / "train.py"), config, *flags, f"--workdir={point.directory}"]


def train_all(
    runs: Iterable[RowRun],
    known: Sequence[Result],
    failed: dict[pathlib.Path, str],
    left: dict[pathlib.Path, str],
    *,
    root: pathlib.Path,
    jobs: int,
) -> bool:
    """Trains the missing runs, `jobs` at a time, each in its own process that logs to its workdir.

    Afterwards every run is complete, or in `failed` or `left`, for `all_results`.

    Args:
      runs: runs of all tables.
      known: recorded results, which are not trained again.
      failed: receives the reason of every failed run, by workdir.
      left: receives the reason of every unfinished run, by workdir: another process runs it, or the run it starts from.
      root: root of the repository.
      jobs: number of runs at a time.

    Returns:
      whether SIGTERM or SIGINT stopped it; its runs have saved themselves then.
    """
    waiting = [point for point in missing(runs, known) if point.row.name != RAW_PIXELS]
    while waiting:
        there = {point.directory for point in waiting}
        ready = [p for p in waiting if p.start is None or p.start.directory not in there]
        waiting = [p for p in waiting if p not in ready]
        for p in ready:
            if p.start is not None and p.start.directory in left:
                left[p.directory] = f"starts from {p.start.name}, which is not complete; {_AGAIN}"
        can = [p for p in ready if p.start is None or p.start.directory not in {*failed, *left}]
        commands = {str(point.directory): words(point, root) for point in can}
        if runner.run_all(commands, pathlib.Path(), jobs=jobs):
            return True
        for point in can:
            standing = runner.standing(point.directory)
            if standing.state == "failed":
                failed[point.directory] = f"{standing}; see {point.directory / workdir.LOG}"
            elif standing.state != "complete":
                left[point.directory] = f"{standing}; {_AGAIN}"
    return False


def all_results(
    runs: Sequence[RowRun],
    known: Sequence[Result],
    failed: dict[pathlib.Path, str],
) -> Iterator[Result]:
    """Yields the results of runs one after the other, and trains what is missing. A failed run yields no result.

    Args:
      runs: the runs. Those in `failed` are not tried again.
      known: recorded results, which are not trained again.
      failed: receives the reason of every failed run, by workdir.
    """
    for point in runs:
        if point.directory in failed:
            continue
        if point.start is not None and point.start.directory in failed:
            failed[point.directory] = f"starts from {point.start.name}, which failed"
            continue
        try:
            found = result(point, known)
        except UserError as error:
            failed[point.directory] = str(error)
        except Exception as error:  # a bug or a machine's fault must not stop the other rows
            traceback.print_exc()
            failed[point.directory] = f"{type(error).__name__}: {error}"
        else:
            yield found


def _raw_pixels(point: RowRun) -> Result:
    config = presets.assumed(point.config)  # whose weights have no effect
    records = sources.load(**config.data)
    train_split, test_split = (
        evaluation.Embedded(records[s].image.reshape(len(records[s]), -1).astype(np.float32), records[s].labels)
        for s in ("train", "test")
    )
    e = config.eval
    metrics = evaluation.evaluate(
        test_split, train_split, ks=e.recall_at, knn_k=e.knn_k, knn_temperature=e.knn_temperature
    )
    facts = provenance.describe() | {
        "data_fingerprint": {s: r.fingerprint() for s, r in records.items()},
        "data_content": experiment.contents(records),
    }
    own = {"row": RAW_PIXELS, "method": RAW_PIXELS, "seed": 0}
    return own | {"metrics": metrics, "run": facts, "config": config_lib.flatten(config) | {"method": RAW_PIXELS}}


def draw(table: Table, path: pathlib.Path) -> pathlib.Path:
    """Draws the gallery of the table's two rows with seed 0, and returns its path, `path`/gallery.png."""
    embeddings = {}
    for name in table.gallery:
        run_, state = restore.newest(run_directory(path, name, 0))
        test = run_.records["test"]
        embeddings[name] = run_.embed_fn(state.variables, test.image)["trunk"]
    target = path / "gallery.png"
    pictures.gallery(target, test, embeddings)
    return target
