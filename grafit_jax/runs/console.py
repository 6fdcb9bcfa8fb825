"""What a run says on stderr: what it starts, what may be wrong with it, and its result."""

import pathlib
from collections.abc import Mapping

from grafit_jax import experiment, objective, parallel
from grafit_jax.errors import warn
from grafit_jax.runs import results
from grafit_jax.runs.progress import say

# Steps after which a network should know more than nothing.
_FIRST_STEPS = 100


def start(run: experiment.Experiment) -> None:
    """Says what a run trains, on what, and for how long."""
    config, train, test = run.config, run.training, run.records["test"]
    levels = {name: level for name, level in test.levels.items() if level.label is not None}
    levels |= {train.train_level: train.levels[train.train_level]}
    classes = [
        f"{len(level.names):,} {name}{' (trained on)' if name == train.train_level else ''}"
        for name, level in levels.items()
    ]
    height, width = train.image.shape[1:3]
    seen = "" if (height, width) == 2 * (config.views.size,) else f", seen at {config.views.size} x {config.views.size}"
    devices = parallel.num_all_devices()
    say(
        f"{config.method} on {config.data.source}: {config.train.epochs} epochs, {run.total_steps:,} steps of "
        f"{config.train.batch_size} images\n"
        f"  images   {len(train):,} for training, {len(test):,} for testing, of {height} x {width} pixels{seen}\n"
        f"  classes  {', '.join(classes)}\n"
        f"  network  {config.model.trunk}, {experiment.num_parameters(run):,} parameters\n"
        f"  devices  {devices} x {parallel.devices()[0].device_kind}"
    )


def warn_of_guessing(run: experiment.Experiment, line: Mapping[str, float]) -> None:
    """A warning if a loss is one that a network has which tells no classes or images apart, after one epoch.

    After the first of at least 100 steps, or the one in which they are complete: fewer of a warm-up teach nothing.

    Args:
      run: the run.
      line: the means of an epoch, by name, and the step at its end.
    """
    if not line["step"] - run.steps_per_epoch < _FIRST_STEPS <= line["step"]:
        return
    train = run.training
    guesses = objective.guessing(run.method, train.coarse_label, len(train.coarse_names), run.config.queue.size)
    for name, guess in guesses.items():
        if parallel.is_first() and line.get(name, 0.0) >= guess > 0:  # of one class it is 0, and so is every loss
            warn(
                f"found {name} = {line[name]:.3f} after epoch {line['epoch']}, and guessing gives {guess:.3f}: nothing "
                "is learned yet; if it stays so, use another optimizer.learning_rate, and check the labels."
            )


def result(run: experiment.Experiment, metrics: Mapping[str, float], page: pathlib.Path) -> None:
    """Says the metrics of a complete run, in percent, and where its page is, if there is one."""
    test = run.records["test"]
    rows = results.by_layer_and_level(metrics, run.config.eval.features[0], test.finest)
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
