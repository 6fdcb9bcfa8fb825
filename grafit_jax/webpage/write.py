"""From workdirs to the file that shows them."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from grafit_jax import experiment, parallel, report, workdir
from grafit_jax.errors import UserError, warn, writing
from grafit_jax.experiment import Experiment
from grafit_jax.state import TrainState
from grafit_jax.webpage.page import compose
from grafit_jax.webpage.shown import Run

# What a training leaves.
NAME = "report.html"


def leave(run: Experiment, state: TrainState, path: pathlib.Path) -> None:
    """Writes report.html of a run that has just ended into its workdir. Whatever goes wrong is a warning.

    All processes have to call it; the first one writes.
    """
    try:
        embedding = _embedded(run, state)
        if parallel.is_first():
            _write(path / NAME, [(run, path, embedding)])
    except Exception as error:  # the run is complete, and keeps being it
        warn(f"no {path / NAME} was written ({error}): try experiments/report.py --workdir={path}.")


def make(path: pathlib.Path, other: pathlib.Path | None, out: pathlib.Path, *, data_dir: str | None = None) -> None:
    """Writes the page of a finished run, beside another one's on the same test images if there is one.

    Args:
      path: the run's workdir.
      other: the other one's, or None.
      out: the page.
      data_dir: where the data lie, if elsewhere by now.

    Raises:
      UserError: a workdir without a finished run, other test images, or no file to be written.
    """
    paths = [path] if other is None else [path, other]
    for each in paths:
        report.collect(each)  # before anything is loaded
    shown: list[tuple[Experiment, pathlib.Path, dict[str, np.ndarray]]] = []
    for each in paths:
        same = bool(shown) and workdir.read_config(each).data == workdir.read_config(path).data
        run, state = experiment.restore_newest(each, data_dir=data_dir, records=shown[0][0].records if same else None)
        if shown and run.records["test"].fingerprint() != shown[0][0].records["test"].fingerprint():
            raise UserError(
                f"{each} was tested on other images or labels than {path}: want a run on the same test split."
            )
        shown.append((run, each, _embedded(run, state)))
    with writing(out):
        _write(out, shown)


def _embedded(run: Experiment, state: TrainState) -> dict[str, np.ndarray]:
    return run.embed_fn(experiment.variables(state), run.records["test"].image)


def _write(out: pathlib.Path, shown: Sequence[tuple[Experiment, pathlib.Path, dict[str, np.ndarray]]]) -> None:
    test = shown[0][0].records["test"]
    unread = [rows.get("unread", np.zeros((len(test), 1), bool))[:, 0] for _, _, rows in shown]
    read = ~np.any(unread, axis=0)
    runs = []
    for (run, path, rows), name in zip(shown, _names([path for _, path, _ in shown]), strict=True):
        layer = run.config.eval.features[0]
        runs.append(Run(name, report.collect(path), workdir.read_log(path), layer, rows[layer][read]))
    workdir.write(out, compose(runs, test.take(read), np.flatnonzero(read)))


def _names(paths: Sequence[pathlib.Path]) -> list[str]:
    """What the runs are called: by the last parts of their paths, as many as tell them apart."""
    parts = [pathlib.Path(os.path.abspath(path)).parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names
