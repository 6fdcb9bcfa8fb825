"""Writes the HTML page of finished workdirs."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from grafit_jax import evaluation, parallel, restore
from grafit_jax.data.records import Records
from grafit_jax.errors import UserError, warn, writing
from grafit_jax.experiment import Experiment
from grafit_jax.report.page import compose
from grafit_jax.report.shown import Run
from grafit_jax.runs import image_list, results, workdir
from grafit_jax.state import TrainState

# Name of the page in a workdir.
NAME = "report.html"
# Maximum number of runs on a page; page.css has this many line styles.
MOST = 3


def leave(run: Experiment, state: TrainState, path: pathlib.Path) -> None:
    """Writes report.html of a run that has just ended into its workdir. Any error becomes a warning.

    All processes must call this function; the first one writes.
    """
    try:
        rows = run.embed_fn(state.variables, run.records["test"].image)
        if parallel.is_first():
            workdir.write(path / NAME, _composed([path], [run], [rows]))
    except Exception as error:  # the run itself is complete
        warn(f"{path / NAME}: cannot write the page ({error}); run experiments/report.py --workdir={path}.")
    parallel.all_agree(True)  # the others wait here: JAX's exit barrier ends all processes after five minutes


def make(path: pathlib.Path, others: Sequence[pathlib.Path], out: pathlib.Path, *, data_dir: str | None = None) -> None:
    """Writes the page of a finished run, optionally beside other runs on the same test images.

    Images in files are the same if their files are, even if the runs resize them differently.

    Args:
      path: workdir of the run.
      others: workdirs of at most two other runs.
      out: path of the page.
      data_dir: location of the data, if it has moved since training.

    Raises:
      UserError: a workdir without a finished run, a duplicate workdir, too many runs, runs on different test images, or
        a path that cannot be written.
    """
    paths = [path, *others]
    if len(paths) > MOST:
        raise UserError(f"--compare: found {len(others)} runs; expected at most {MOST - 1}.")
    if len({os.path.realpath(each) for each in paths}) < len(paths):
        raise UserError(f"--workdir and --compare: found {', '.join(map(str, paths))}; expected each run once.")
    if not out.name or out.is_dir():
        raise UserError(f"--out: found {str(out)!r}; expected a file name, such as {out / NAME}.")
    for each in paths:
        results.collect(each)  # fail before loading anything
    runs: list[Experiment] = []
    variables: list[dict[str, Any]] = []
    for each in paths:
        same = bool(runs) and workdir.read_config(each).data == workdir.read_config(path).data
        run, state = restore.newest(each, data_dir=data_dir, records=runs[0].records if same else None)
        if runs and not _same(run.records["test"], runs[0].records["test"]):
            raise UserError(
                f"{each}: found other test images or labels than in {path}; expected the same test split; use another "
                "--compare."
            )
        runs.append(run)
        variables.append(state.variables)
    rows = [run.embed_fn(of_run, run.records["test"].image) for run, of_run in zip(runs, variables, strict=True)]
    page = _composed(paths, runs, rows)
    with writing(out):
        workdir.write(out, page)


def _same(one: Records, other: Records) -> bool:
    """Returns whether two splits have the same images and labels; images in files may be resized differently."""
    if one.fingerprint() == other.fingerprint():
        return True
    if os.path.realpath(one.root) != os.path.realpath(other.root):
        return False
    listed = image_list.dumps({"test": one})
    return bool(listed) and listed == image_list.dumps({"test": other})


def _composed(paths: Sequence[pathlib.Path], runs: Sequence[Experiment], rows: Sequence[dict[str, np.ndarray]]) -> str:
    """Returns the page of runs on the same test images, restricted to images that all runs could read.

    Args:
      paths: workdirs of the runs.
      runs: the runs.
      rows: their embeddings of the test images, from `Experiment.embed_fn`.
    """
    read = np.all([evaluation.readable(of_run) for of_run in rows], axis=0)
    shown = []
    for path, name, run, of_run in zip(paths, _names(paths), runs, rows, strict=True):
        layer = run.config.eval.layers[0]
        embedding = evaluation.of_layer(of_run, layer, read)
        shown.append(Run(name, results.collect(path), workdir.read_log(path), layer, embedding))
    return compose(shown, runs[0].records["test"].take(read), np.flatnonzero(read))


def _names(paths: Sequence[pathlib.Path]) -> list[str]:
    """Returns the shortest path suffixes that distinguish the runs."""
    parts = [pathlib.Path(os.path.abspath(path)).parts for path in paths]
    depth = 1
    while len(names := {"/".join(part[-depth:]): None for part in parts}) < len(parts):
        depth += 1
    return [*names]
