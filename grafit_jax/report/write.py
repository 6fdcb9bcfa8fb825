"""From workdirs to the file that shows them."""

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from grafit_jax import evaluation, parallel, restore
from grafit_jax.errors import UserError, warn, writing
from grafit_jax.experiment import Experiment
from grafit_jax.report.page import compose
from grafit_jax.report.shown import Run
from grafit_jax.runs import results, workdir
from grafit_jax.state import TrainState

# What a training leaves.
NAME = "report.html"
# Runs on a page: page.css has a line's style for so many.
MOST = 3


class _Side(NamedTuple):
    """A run, its workdir, and what it makes of its test images."""

    run: Experiment
    path: pathlib.Path
    rows: dict[str, np.ndarray]


def leave(run: Experiment, state: TrainState, path: pathlib.Path) -> None:
    """Writes report.html of a run that has just ended into its workdir. Whatever goes wrong is a warning.

    All processes have to call it; the first one writes.
    """
    try:
        side = _side(run, state, path)
        if parallel.is_first():
            workdir.write(path / NAME, _composed([side]))
    except Exception as error:  # the run is complete, and keeps being it
        warn(f"no {path / NAME} was written ({error}): try experiments/report.py --workdir={path}.")
    parallel.all_agree(True)  # the others wait here: JAX would end them, and this one, after five minutes at their exit


def make(path: pathlib.Path, others: Sequence[pathlib.Path], out: pathlib.Path, *, data_dir: str | None = None) -> None:
    """Writes the page of a finished run, beside others on the same test images if there are any.

    Args:
      path: the run's workdir.
      others: those of the others, at most two.
      out: the page.
      data_dir: where the data lie, if elsewhere by now.

    Raises:
      UserError: a workdir without a finished run, one that is named twice, too many, other test images, or no file
        to be written.
    """
    paths = [path, *others]
    if len(paths) > MOST:
        raise UserError(f"found {len(others)} runs to --compare with: want at most {MOST - 1}.")
    if len({os.path.realpath(each) for each in paths}) < len(paths):
        raise UserError(f"found {', '.join(map(str, paths))} as --workdir and --compare: want each run once.")
    if not out.name or out.is_dir():
        raise UserError(f"found {str(out)!r} as --out: want a file to write, such as {out / NAME}.")
    for each in paths:
        results.collect(each)  # before anything is loaded
    sides = [_side(*restore.newest(path, data_dir=data_dir), path)]
    test = sides[0].run.records["test"]
    for each in paths[1:]:
        same = workdir.read_config(each).data == workdir.read_config(path).data
        records = sides[0].run.records if same else None
        run, state = restore.newest(each, data_dir=data_dir, records=records)
        if run.records["test"].fingerprint() != test.fingerprint():
            raise UserError(
                f"{each} was tested on other images or labels than {path}: want a --compare on the same test split."
            )
        sides.append(_side(run, state, each))
    page = _composed(sides)
    with writing(out):
        workdir.write(out, page)


def _side(run: Experiment, state: TrainState, path: pathlib.Path) -> _Side:
    return _Side(run, path, run.embed_fn(state.variables, run.records["test"].image))


def _composed(sides: Sequence[_Side]) -> str:
    """The page of runs on the same test images, of those that all of them could read."""
    test = sides[0].run.records["test"]
    read = np.all([evaluation.readable(side.rows) for side in sides], axis=0)
    runs = []
    for side, name in zip(sides, _names([side.path for side in sides]), strict=True):
        layer = side.run.config.eval.layers[0]
        result, log = results.collect(side.path), workdir.read_log(side.path)
        runs.append(Run(name, result, log, layer, side.rows[layer][read]))
    return compose(runs, test.take(read), np.flatnonzero(read))


def _names(paths: Sequence[pathlib.Path]) -> list[str]:
    """What the runs are called: by the last parts of their paths, as many as tell them apart."""
    parts = [pathlib.Path(os.path.abspath(path)).parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names
