"""Trains a run, writes its page and prints its result; or traces one step."""

import os
import pathlib
from collections.abc import Mapping, Sequence

import jax
import ml_collections

from grafit_jax import config as config_lib
from grafit_jax import experiment, fit, parallel, presets, pulse, restore, train_step
from grafit_jax import train as train_lib
from grafit_jax.errors import warn
from grafit_jax.experiment import Experiment
from grafit_jax.report import write
from grafit_jax.runs import results, workdir
from grafit_jax.runs.checkpoint import Checkpoints
from grafit_jax.runs.console import say
from grafit_jax.runs.tables import plain_table
from grafit_jax.state import TrainState


def train(config: ml_collections.ConfigDict, path: pathlib.Path, *, allowed: Sequence[str] = ()) -> dict[str, float]:
    """Trains as `grafit_jax.train.train` does, then writes report.html and prints the result on stderr."""

    def finish(run: Experiment, state: TrainState | None, metrics: dict[str, float]) -> None:
        # The page of a complete run may be missing, if the run was killed before it was written.
        if state is not None or not parallel.all_agree((path / write.NAME).is_file()):
            leave_page(run, path, int(metrics["step"]), state)
        say_result(run, metrics, path / write.NAME)

    return train_lib.train(config, path, allowed=allowed, finish=finish)


def leave_page(run: Experiment, path: pathlib.Path, step: int, state: TrainState | None) -> None:
    """Writes the page of a run complete after `step`, from `state` or, if None, from the checkpoint of that step."""
    pulse.at(step, f"writing {write.NAME}")
    if state is None:
        try:
            checkpoints = Checkpoints(path, read_only=True)
            found = checkpoints.restore_newest(restore.initial_state(run, placeholder=True))
            checkpoints.close()
            state = found[0] if found is not None and int(found[0].step) == step else None
        except Exception as error:  # a failure must not fail a complete run
            warn(f"{path / write.NAME}: cannot write the page ({error}); run experiments/report.py --workdir={path}.")
        if not parallel.all_agree(state is not None):
            return
    assert state is not None
    write.leave(run, state, path)


def say_result(run: Experiment, metrics: Mapping[str, float], page: pathlib.Path) -> None:
    """Prints the metrics of a complete run, in percent, and the path of its page, if there is one."""
    test = run.records["test"]
    values = results.by_layer_and_level(metrics, run.config.eval.layers[0], test.finest)
    levels = [*test.levels][::-1]  # the finest first
    order = sorted(values, key=lambda row: (config_lib.LAYERS.index(row[0]), levels.index(row[1])))
    columns = results.summary_columns(values.values())
    rows = [
        [
            ", ".join(row),
            *(f"{100 * values[row][k]:{max(5, len(n))}.1f}" if k in values[row] else "-" for k, n in columns.items()),
        ]
        for row in order
    ]
    table = plain_table(["", *(f"{name:>5}" for name in columns.values())], rows)
    say(f"\n{run.config.method} after step {metrics['step']:,}, in percent:\n{table}")
    if page.is_file():
        say(f"page: {page}")


def profile(config: ml_collections.ConfigDict, path: pathlib.Path) -> pathlib.Path:
    """Traces one compiled step of a new run with JAX's profiler; returns the folder of the trace.

    Raises:
      UserError: the config or the data are invalid.
    """
    # Before JAX initialises a GPU: disables CUDA graphs, which a trace would show as a single kernel.
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_enable_command_buffer="
    config = presets.resolve(config, path)
    config.train.steps_per_call = 1
    run = restore.load(config, path)
    fit.check(run)
    feed = experiment.make_feed(run)
    step, inputs = train_step.pmap_steps(run, feed), next(iter(feed.epoch(0)))
    state, memory, _ = jax.block_until_ready(step(*restore.initial(run), inputs))  # compiles
    with jax.profiler.trace(str(path / workdir.PROFILE)):
        jax.block_until_ready(step(state, memory, inputs))
    return path / workdir.PROFILE
