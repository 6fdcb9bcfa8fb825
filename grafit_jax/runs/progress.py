"""What a command shows on stderr while it works: what takes long, and how long a training will take."""

import contextlib
import math
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import jax
import tqdm

from grafit_jax import parallel, pulse

# Seconds between two looks.
_EVERY = 1.0
# Seconds after which something that takes long is shown; in a log file, a line for every so many.
_PATIENCE, _LOG_EVERY = 4.0, 30.0
# Seconds of training that an estimate is made from.
_SAMPLE = 10.0


def say(message: str) -> None:
    """A line, or several, by the first process alone; bars stay whole."""
    if parallel.is_first():
        tqdm.tqdm.write(message, file=sys.stderr)


_bars = weakref.WeakSet[tqdm.tqdm]()


def bar(total: int, initial: int, description: str) -> tqdm.tqdm:
    """The bar of a training, in images; of the first process alone."""
    shown = tqdm.tqdm(
        total=total,
        initial=initial,
        unit="img",
        unit_scale=True,
        desc=description,
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else _LOG_EVERY,
        disable=not parallel.is_first(),
    )
    _bars.add(shown)
    return shown


# What takes long.


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


# Set when this process has said why it ends.
_quiet = threading.Event()


def quiet() -> None:
    """Shows nothing any more: the last words of a process stay the last."""
    _quiet.set()
    for shown in _bars:
        shown.disable = True


def _show(ended: threading.Event) -> None:
    shown = _Activity()
    while not (ended.wait(_EVERY) or _quiet.is_set()):
        shown.look(pulse.here(), time.time())
    shown.close()


class _Activity:
    """What is shown of the places that a process is seen at: a bar on a terminal, else a line now and then."""

    def __init__(self):
        self._place, self._since, self._said = pulse.Place(), math.inf, math.inf
        self._bar: tqdm.tqdm | None = None

    def look(self, place: pulse.Place, now: float) -> None:
        """Called about once a second."""
        before, self._place = self._place, place
        if (place.step, place.doing, place.parts) != (before.step, before.doing, before.parts):
            self.close()
            self._since = self._said = now
        # Before it does anything, a process may not be asked whether it is the first: JAX must not start yet.
        elif now - self._since < _PATIENCE or place.doing == pulse.Place.doing or not parallel.is_first():
            return
        elif sys.stderr.isatty():
            if self._bar is None:
                self._bar = self._new_bar()
            self._bar.n = place.part
            self._bar.refresh()
        elif now - self._said >= _LOG_EVERY:
            self._said = now
            part = f", part {place.part} of {place.parts}" if place.parts else ""
            say(f"{place.doing}{part}, for {now - self._since:.0f} s")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _new_bar(self) -> tqdm.tqdm:
        total = self._place.parts or None
        format_ = "{desc} {n_fmt}/{total_fmt} |{bar}| [{elapsed}<{remaining}]" if total else "{desc} [{elapsed}]"
        bar = tqdm.tqdm(total=total, desc=self._place.doing, bar_format=format_, leave=False, dynamic_ncols=True)
        bar.start_t = self._since
        return bar


# How long it will take.


class Estimate:
    """Says once, after some steps, how long the others will take."""

    def __init__(self, total: int):
        """`total`: steps of the run."""
        self._total, self._said = total, False
        self._since: tuple[int, float] | None = None  # the step and the time from which on steps are timed
        self._steps, self._seconds = 0, 0.0  # timed before that

    def __call__(self, step: int, sums: Any, *, compiled: bool) -> None:
        """After every call of the step function.

        Args:
          step: after the call.
          sums: what it has returned.
          compiled: whether it was compiled in this call, which is not timed.
        """
        if self._said:
            return
        if self._since is None or compiled:
            jax.block_until_ready(sums)
            self._since = (step, time.perf_counter())
        elif self._seconds + time.perf_counter() - self._since[1] >= _SAMPLE:
            jax.block_until_ready(sums)
            self.pause(step)
            self._said = True
            per_step = self._seconds / self._steps
            left = _duration(per_step * (self._total - step))
            say(f"about {left} to go, at {per_step:.2g} s a step, evaluations not counted")

    def pause(self, step: int) -> None:
        """When the steps are done, and something else begins: an evaluation, a save."""
        if self._since is not None:
            first, began = self._since
            self._steps, self._seconds = self._steps + step - first, self._seconds + time.perf_counter() - began
            self._since = None


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min" if minutes else "1 min"
    return f"{minutes / 60:.1f} h" if minutes < 48 * 60 else f"{minutes / 60 / 24:.1f} days"
