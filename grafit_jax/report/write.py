"""From workdirs to the file that shows them."""

import os
import pathlib
from collections.abc import Sequence

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


def leave(run: Experiment, state: TrainState, path: pathlib.Path) -> None:
    """Writes report.html of a run that has just ended into its workdir. Whatever goes wrong is a warning.

    All processes have to call it; the first one writes.
    """
    try:
        rows = run.embed_fn(state.variables, run.records["test"].image)
        if parallel.is_first():
            workdir.write(path / NAME, _composed([path], [run], [rows]))
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
    runs: list[Experiment] = []
    rows = []
    for each in paths:
        same = bool(runs) and workdir.read_config(each).data == workdir.read_config(path).data
        run, state = restore.newest(each, data_dir=data_dir, records=runs[0].records if same else None)
        if runs and run.records["test"].fingerprint() != runs[0].records["test"].fingerprint():
            raise UserError(
                f"{each} was tested on other images or labels than {path}: want a --compare on the same test split."
            )
        runs.append(run)
        rows.append(run.embed_fn(state.variables, run.records["test"].image))
    page = _composed(paths, runs, rows)
    with writing(out):
        workdir.write(out, page)


def _composed(paths: Sequence[pathlib.Path], runs: Sequence[Experiment], rows: Sequence[dict[str, np.ndarray]]) -> str:
    """The page of runs on the same test images, of those that all of them could read.

    Args:
      paths: their workdirs.
      runs: each.
      rows: what each makes of its test images, as `Experiment.embed_fn` gives it.
    """
    read = np.all([evaluation.readable(of_run) for of_run in rows], axis=0)
    shown = []
    for path, name, run, of_run in zip(paths, _names(paths), runs, rows, strict=True):
        layer = run.config.eval.layers[0]
        shown.append(Run(name, results.collect(path), workdir.read_log(path), layer, of_run[layer][read]))
    return compose(shown, runs[0].records["test"].take(read), np.flatnonzero(read))


def _names(paths: Sequence[pathlib.Path]) -> list[str]:
    """What the runs are called: by the last parts of their paths, as many as tell them apart."""
    parts = [pathlib.Path(os.path.abspath(path)).parts for path in paths]
    depth = 1
    while len(names := {"/".join(part[-depth:]): None for part in parts}) < len(parts):
        depth += 1
    return [*names]
