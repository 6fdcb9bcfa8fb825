"""A training as a user has it: the run, its page, and its result on stderr."""

import pathlib
from collections.abc import Mapping, Sequence

import ml_collections

from grafit_jax import parallel, pulse, restore
from grafit_jax import train as train_lib
from grafit_jax.errors import warn
from grafit_jax.experiment import Experiment
from grafit_jax.report import write
from grafit_jax.runs import results
from grafit_jax.runs.checkpoint import Checkpoints
from grafit_jax.runs.console import say
from grafit_jax.state import TrainState


def train(config: ml_collections.ConfigDict, path: pathlib.Path, *, allowed: Sequence[str] = ()) -> dict[str, float]:
    """Trains as `train.train` does, then writes report.html and prints the result on stderr."""

    def finish(run: Experiment, state: TrainState | None, metrics: dict[str, float]) -> None:
        # Of a run that was complete already the page may be missing: it was killed before that was written.
        if state is not None or not parallel.all_agree((path / write.NAME).is_file()):
            leave_page(run, path, int(metrics["step"]), state)
        say_result(run, metrics, path / write.NAME)

    return train_lib.train(config, path, allowed=allowed, finish=finish)


def leave_page(run: Experiment, path: pathlib.Path, step: int, state: TrainState | None) -> None:
    """The page of a run that is complete after `step`: of its last state, or of the newest checkpoint if it is that."""
    pulse.at(step, f"writing {write.NAME}")
    if state is None:
        try:
            checkpoints = Checkpoints(path, read_only=True)
            found = checkpoints.restore_newest(restore.initial_state(run, placeholder=True))
            checkpoints.close()
            state = found[0] if found is not None and int(found[0].step) == step else None
        except Exception as error:  # the run is complete, and keeps being it
            warn(f"no {path / write.NAME} was written ({error}).")
        if not parallel.all_agree(state is not None):
            return
    assert state is not None
    write.leave(run, state, path)


def say_result(run: Experiment, metrics: Mapping[str, float], page: pathlib.Path) -> None:
    """Says the metrics of a complete run, in percent, and where its page is, if there is one."""
    test = run.records["test"]
    rows = results.by_layer_and_level(metrics, run.config.eval.layers[0], test.finest)
    levels = [*test.levels][::-1]  # the finest first
    order = sorted(rows, key=lambda row: (results.LAYERS.index(row[0]), levels.index(row[1])))
    columns = {key: name for key, name in results.HEADLINE.items() if any(key in values for values in rows.values())}
    width = max(len(", ".join(row)) for row in order)
    lines = [" " * width + "".join(f"{name:>8}" for name in columns.values())]
    for row in order:
        cells = (f"{100 * rows[row][key]:8.1f}" if key in rows[row] else f"{'-':>8}" for key in columns)
        lines.append(f"{', '.join(row):<{width}}" + "".join(cells))
    say("\n".join([f"\n{run.config.method} after step {metrics['step']:,}, in percent:", *lines]))
    if page.is_file():
        say(f"page: {page}")
