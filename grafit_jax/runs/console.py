"""Messages and progress bars on stderr."""

import contextlib
import io
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
import tqdm

from grafit_jax import methods, objective, parallel, pulse
from grafit_jax.data.records import Records
from grafit_jax.errors import warn

# Steps after which the loss should be below that of random guessing.
_FIRST_STEPS = 100
# Seconds between two polls of `pulse`.
_EVERY = 1.0
# Seconds after which an activity gets a bar, and seconds between two lines of a bar in a log file.
_PATIENCE, _LOG_EVERY = 4.0, 30.0


def say(message: str) -> None:
    """Prints a message without breaking progress bars, on the first process only."""
    if parallel.is_first():
        tqdm.tqdm.write(message, file=sys.stderr)


class _Log(io.TextIOBase):
    """Stands in for stderr in a log file: prints each state of a bar as a line."""

    def write(self, text: str) -> int:
        if text.strip():
            say(text.strip())
        return len(text)


_bars = weakref.WeakSet[tqdm.tqdm]()


def bar(**options: Any) -> tqdm.tqdm:
    """Returns a tqdm bar of the first process; in a log file it prints a line every 30 s instead."""
    if sys.stderr.isatty():
        options |= {"dynamic_ncols": True}
    else:
        options |= {"file": _Log(), "mininterval": _LOG_EVERY, "delay": _LOG_EVERY, "position": 0}
    shown = tqdm.tqdm(miniters=0, disable=not parallel.is_first(), **options)
    _bars.add(shown)
    return shown


# Set before this process prints why it exits.
_quiet = threading.Event()


def quiet() -> None:
    """Disables all bars, so that the error message printed next is the last output."""
    _quiet.set()
    for shown in _bars:
        shown.disable = True


@contextlib.contextmanager
def activity() -> Iterator[None]:
    """Shows a bar for every activity noted in `pulse` that takes longer than a few seconds."""
    ended = threading.Event()
    thread = threading.Thread(target=_show, args=(ended,), name="activity", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=2.0)  # an interrupted bar may still hold tqdm's lock


def _show(ended: threading.Event) -> None:
    before, since, shown = pulse.Place(), time.time(), None
    while not (ended.wait(_EVERY) or _quiet.is_set()):
        place, now = pulse.here(), time.time()
        if (place.step, place.doing, place.parts) != (before.step, before.doing, before.parts):
            if shown is not None:
                shown.close()
            before, since, shown = place, now, None
        # While the process is still starting, no bar: `parallel.is_first` would initialise JAX too early.
        elif now - since >= _PATIENCE and place.doing != pulse.Place().doing and shown is None:
            form = "{desc} {n_fmt}/{total_fmt} |{bar}| [{elapsed}<{remaining}]" if place.parts else "{desc} [{elapsed}]"
            shown = bar(total=place.parts or None, desc=place.doing, bar_format=form, leave=False)
            shown.start_t = shown.last_print_t = since
        if shown is not None:
            shown.update(place.part - shown.n)
    if shown is not None:
        shown.close()


def start(
    config: ml_collections.ConfigDict, train: Records, test: Records, num_parameters: int, total_steps: int
) -> None:
    """Prints the method, data, network, devices and length of a run."""
    levels = {name: level for name, level in test.levels.items() if level.label is not None}
    levels |= {train.train_level: train.levels[train.train_level]}
    classes = [
        f"{len(level.names):,} {name}{' (trained on)' if name == train.train_level else ''}"
        for name, level in levels.items()
    ]
    height, width = train.image.shape[1:3]
    size = config.views.size
    length = f"{config.train.epochs} epochs, {total_steps:,} steps of {config.train.batch_size} images"
    seen = "" if (height, width) == (size, size) else f", seen at {size} x {size}"
    say(
        f"{config.method} on {config.data.source}: {length if total_steps else 'nothing to train'}\n"
        f"  images   {len(train):,} for training, {len(test):,} for testing, of {height} x {width} pixels{seen}\n"
        f"  classes  {', '.join(classes)}\n"
        f"  network  {config.model.trunk}, {num_parameters:,} parameters\n"
        f"  devices  {parallel.num_all_devices()} x {parallel.devices()[0].device_kind}"
    )


def warn_of_guessing(
    config: ml_collections.ConfigDict,
    train: Records,
    levels: Sequence[objective.KnnLevel],
    line: Mapping[str, float],
    steps_per_epoch: int,
) -> None:
    """Warns if a loss is no lower than that of random guessing.

    Checks once, after the epoch in which step 100 is taken: a network may learn nothing in fewer steps of warm-up.

    Args:
      config: of the run.
      train: the training images, with the labels that are trained on.
      levels: the levels of the k-NN loss.
      line: the means of an epoch of `steps_per_epoch` steps, by name, and the step at its end.
    """
    if not line["step"] - steps_per_epoch < _FIRST_STEPS <= line["step"]:
        return
    guesses = objective.guessing(
        methods.get(config.method),
        train.train_label,
        len(train.train_names),
        levels=levels,
        queue_size=config.queue.size,
        weight=config.loss.maskcon_weight,
    )
    for name, guess in guesses.items():
        if parallel.is_first() and line.get(name, 0.0) >= guess > 0:  # with one class, both are 0
            warn(
                f"found {name} = {line[name]:.3f} after epoch {line['epoch']}; expected less than {guess:.3f}, that of "
                "random guessing; if it stays there, use another optimizer.learning_rate and check the labels."
            )
