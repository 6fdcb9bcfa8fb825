"""A training as a user has it: the run, its page, and its result on stderr; or a trace of one step."""

import copy
import os
import pathlib
from collections.abc import Mapping, Sequence

import jax
import ml_collections

from grafit_jax import experiment, parallel, pulse, restore, train_step
from grafit_jax import train as train_lib
from grafit_jax.errors import warn
from grafit_jax.experiment import Experiment
from grafit_jax.report import write
from grafit_jax.report.tables import plain_table
from grafit_jax.runs import results, workdir
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
    found = results.by_layer_and_level(metrics, run.config.eval.layers[0], test.finest)
    levels = [*test.levels][::-1]  # the finest first
    order = sorted(found, key=lambda row: (results.LAYERS.index(row[0]), levels.index(row[1])))
    columns = {key: name for key, name in results.HEADLINE.items() if any(key in row for row in found.values())}
    rows = [
        [", ".join(row), *(f"{100 * found[row][key]:5.1f}" if key in found[row] else "    -" for key in columns)]
        for row in order
    ]
    table = plain_table(["", *(f"{name:>5}" for name in columns.values())], rows)
    say(f"\n{run.config.method} after step {metrics['step']:,}, in percent:\n{table}")
    if page.is_file():
        say(f"page: {page}")


def profile(config: ml_collections.ConfigDict, path: pathlib.Path) -> pathlib.Path:
    """Traces one step of a run that starts, by JAX's profiler, and trains nothing; returns the trace's folder.

    Raises:
      UserError: a config or data set that cannot work.
    """
    # For GPUs, before JAX uses one: kernels run one by one, since of a CUDA graph a trace sees only the whole.
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_enable_command_buffer="
    config = copy.deepcopy(config)
    config.train.steps_per_call = 1
    run = restore.load(config, path)
    feed = experiment.make_feed(run)
    step, inputs = train_step.pmap_steps(run, feed), next(iter(feed.epoch(0)))
    state, memory, _ = jax.block_until_ready(step(*restore.initial(run), inputs))  # compiles
    with jax.profiler.trace(str(path / workdir.PROFILE)):
        jax.block_until_ready(step(state, memory, inputs))
    return path / workdir.PROFILE
