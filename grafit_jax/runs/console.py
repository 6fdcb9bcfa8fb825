"""What a command says on stderr: what it starts, how far it is, what takes long, and what may be wrong with it."""

import contextlib
import io
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
import tqdm

from grafit_jax import objective, parallel, pulse
from grafit_jax.data.records import Records
from grafit_jax.errors import warn
from grafit_jax.methods import Method

# Steps after which a network should know more than nothing.
_FIRST_STEPS = 100
# Seconds between two looks at what the process does.
_EVERY = 1.0
# Seconds after which something that takes long is shown; in a log file, a line for every so many.
_PATIENCE, _LOG_EVERY = 4.0, 30.0


def say(message: str) -> None:
    """A line, or several, by the first process alone; bars stay whole."""
    if parallel.is_first():
        tqdm.tqdm.write(message, file=sys.stderr)


class _Log(io.TextIOBase):
    """Stands for stderr where that is a log file: each state of a bar is a line of its own."""

    def write(self, text: str) -> int:
        if text.strip():
            say(text.strip())
        return len(text)


_bars = weakref.WeakSet[tqdm.tqdm]()


def bar(**options: Any) -> tqdm.tqdm:
    """A bar of the first process, on a terminal; in a log file, a line now and then. `options` are those of tqdm."""
    if sys.stderr.isatty():
        options |= {"dynamic_ncols": True}
    else:
        options |= {"file": _Log(), "mininterval": _LOG_EVERY, "delay": _LOG_EVERY, "position": 0}
    shown = tqdm.tqdm(miniters=0, disable=not parallel.is_first(), **options)
    _bars.add(shown)
    return shown


# Set when this process has said why it ends.
_quiet = threading.Event()


def quiet() -> None:
    """Shows nothing any more: the last words of a process stay the last."""
    _quiet.set()
    for shown in _bars:
        shown.disable = True


@contextlib.contextmanager
def activity() -> Iterator[None]:
    """Shows what this process does, by `pulse`, whenever one thing takes more than a few seconds."""
    ended = threading.Event()
    thread = threading.Thread(target=_show, args=(ended,), name="activity", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=2.0)  # an interrupted bar may have left its lock held


def _show(ended: threading.Event) -> None:
    """A bar for the place that `pulse` tells, until that is another one."""
    before, since, shown = pulse.Place(), time.time(), None
    while not (ended.wait(_EVERY) or _quiet.is_set()):
        place, now = pulse.here(), time.time()
        if (place.step, place.doing, place.parts) != (before.step, before.doing, before.parts):
            if shown is not None:
                shown.close()
            before, since, shown = place, now, None
        # Before it does anything, a process may not be asked whether it is the first: JAX must not start yet.
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
    """Says what a run trains, on what, and for how long."""
    levels = {name: level for name, level in test.levels.items() if level.label is not None}
    levels |= {train.train_level: train.levels[train.train_level]}
    classes = [
        f"{len(level.names):,} {name}{' (trained on)' if name == train.train_level else ''}"
        for name, level in levels.items()
    ]
    height, width = train.image.shape[1:3]
    size = config.views.size
    seen = "" if (height, width) == (size, size) else f", seen at {size} x {size}"
    say(
        f"{config.method} on {config.data.source}: {config.train.epochs} epochs, {total_steps:,} steps of "
        f"{config.train.batch_size} images\n"
        f"  images   {len(train):,} for training, {len(test):,} for testing, of {height} x {width} pixels{seen}\n"
        f"  classes  {', '.join(classes)}\n"
        f"  network  {config.model.trunk}, {num_parameters:,} parameters\n"
        f"  devices  {parallel.num_all_devices()} x {parallel.devices()[0].device_kind}"
    )


def warn_of_guessing(
    method: Method, train: Records, queue_size: int, line: Mapping[str, float], steps_per_epoch: int
) -> None:
    """A warning if a loss is one that a network has which tells no classes or images apart, after one epoch.

    After the first of at least 100 steps, or the one in which they are complete: fewer of a warm-up teach nothing.

    Args:
      method, train, queue_size: of the run; its training images have the labels that are trained on.
      line: the means of an epoch of `steps_per_epoch`, by name, and the step at its end.
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
