"""What a run says on stderr: what it starts, and what may be wrong with it."""

from collections.abc import Mapping

import ml_collections

from grafit_jax import objective, parallel
from grafit_jax.data.records import Records
from grafit_jax.errors import warn
from grafit_jax.methods import Method
from grafit_jax.runs.progress import say

# Steps after which a network should know more than nothing.
_FIRST_STEPS = 100


def start(
    config: ml_collections.ConfigDict, train: Records, test: Records, num_parameters: int, total_steps: int
) -> None:
    """Says what a run trains, on what, and for how long."""
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
        f"{config.method} on {config.data.source}: {config.train.epochs} epochs, {total_steps:,} steps of "
        f"{config.train.batch_size} images\n"
        f"  images   {len(train):,} for training, {len(test):,} for testing, of {height} x {width} pixels{seen}\n"
        f"  classes  {', '.join(classes)}\n"
        f"  network  {config.model.trunk}, {num_parameters:,} parameters\n"
        f"  devices  {devices} x {parallel.devices()[0].device_kind}"
    )


def warn_of_guessing(
    method: Method, train: Records, queue_size: int, line: Mapping[str, float], steps_per_epoch: int
) -> None:
    """A warning if a loss is one that a network has which tells no classes or images apart, after one epoch.

    After the first of at least 100 steps, or the one in which they are complete: fewer of a warm-up teach nothing.

    Args:
      method: the run's.
      train: its training images, with the labels that are trained on.
      queue_size: K.
      line: the means of an epoch, by name, and the step at its end.
      steps_per_epoch: how many steps that were.
    """
    if not line["step"] - steps_per_epoch < _FIRST_STEPS <= line["step"]:
        return
    guesses = objective.guessing(method, train.train_label, len(train.train_names), queue_size)
    for name, guess in guesses.items():
        if parallel.is_first() and line.get(name, 0.0) >= guess > 0:  # of one class it is 0, and so is every loss
            warn(
                f"found {name} = {line[name]:.3f} after epoch {line['epoch']}, and guessing gives {guess:.3f}: nothing "
                "is learned yet; if it stays so, use another optimizer.learning_rate, and check the labels."
            )
