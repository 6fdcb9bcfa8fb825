"""Where the processes of a run are, so that one of several that dies or hangs is named, and the others end.

JAX ends all processes when one is not heard of, but does not say at which step, and it does not see one that hangs: its
heartbeats go on while it waits for a file. Here each process tells the others where it is, through the key-value store
of JAX's own coordination service, and looks after them in a thread.
"""

import contextlib
import dataclasses
import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, NoReturn

import jax

from grafit_jax import pulse
from grafit_jax.pulse import Place
from grafit_jax.runs import progress

# How a process ends for another one's sake: EX_UNAVAILABLE of sysexits.h.
EXIT_OTHERS = 69
_KEY = "grafit_jax/at/"


def end(reason: str) -> None:
    """Tells the others that this process is not going on, and why, before they miss it."""
    pulse.ends(reason)
    if _watchdog is not None:
        # Not by this thread: if process 0 is frozen, the store never answers.
        threading.Thread(target=_watchdog.publish, daemon=True).start()


def leave(status: int) -> NoReturn:
    """Ends this process at once; process 0 when the others have had the time to end.

    JAX ends whoever is still there when process 0, which has the store, is gone: by SIGABRT, without a word of ours.
    """
    if _watchdog is not None:
        time.sleep(_watchdog.lingers if jax.process_index() == 0 else _watchdog.interval)
    os._exit(status)


class Others:
    """What is known of all processes, from what each has published and when that was new here.

    Of a clock only differences on this host count, so it does not matter what time hosts think it is.
    """

    def __init__(self, count: int, index: int, *, silent_seconds: float, stuck_seconds: float, now: float):
        self._count, self._index = count, index
        self._silent_seconds, self._stuck_seconds = silent_seconds, stuck_seconds
        self._heard = {i: (-1, now) for i in range(count) if i != index}
        self._places = {i: Place() for i in range(count)}
        self._moved = now

    def hear(self, published: Mapping[int, tuple[int, Place]], here: Place, now: float) -> None:
        """Takes in what there is to know.

        Args:
          published: process -> how often it has published, and where it was then.
          here: where this process is.
          now: seconds, of a clock that does not jump.
        """
        for i, (beat, place) in published.items():
            # What a process says that ends is its last word, however often.
            if i != self._index and beat != self._heard[i][0] and not self._places[i].ended:
                self._heard[i], self._places[i] = (beat, now), place
        if here != self._places[self._index]:
            self._places[self._index], self._moved = here, now

    def missing(self, now: float) -> str | None:
        """Which process is not going on, in words; None if all are."""
        for i, (_, heard) in self._heard.items():
            place = self._places[i]
            if place.ended and now - heard > self._silent_seconds / 8:  # if it was not everybody's, at the same time
                return f"process {i} of {self._count} has ended {place}"
        for i, (_, heard) in self._heard.items():
            if now - heard > self._silent_seconds:
                return f"process {i} of {self._count} is not heard of, last {self._places[i]}"
        return None

    def stuck(self, now: float) -> str | None:
        """Where all processes are, in words, if this one has not moved for too long; None if it has."""
        if not self._stuck_seconds or now - self._moved <= self._stuck_seconds:
            return None
        places = "; ".join(f"process {i} is {place}" for i, place in sorted(self._places.items()))
        return f"nothing has moved for {self._stuck_seconds:g} s: {places}"


class _Watchdog:
    """Two threads: one asks the store, which may never answer, and one judges by what has been answered."""

    def __init__(self, client: Any, others: Others, silent_seconds: float):
        self._client, self._others = client, others
        self.interval = min(5.0, silent_seconds / 8)
        # Until the others have found the same, or have read why this one ends.
        self.lingers = silent_seconds / 2
        self._beat = 0
        self._publishing = threading.Lock()
        self._published: dict[int, tuple[int, Place]] = {}

    def start(self) -> None:
        for work in (self._ask, self._judge):
            threading.Thread(target=work, name=f"watchdog{work.__name__}", daemon=True).start()

    def _ask(self) -> None:
        while True:
            self.publish()
            with contextlib.suppress(Exception):  # process 0, which has the store, may be gone
                entries = self._client.key_value_dir_get(_KEY)
                self._published = {int(key.rpartition("/")[2]): _parsed(value) for key, value in entries}
            time.sleep(self.interval)

    def _judge(self) -> None:
        while not pulse.here().ended:  # which has said why by itself
            now = time.monotonic()
            self._others.hear(self._published, pulse.here(), now)
            stuck = self._others.stuck(now)
            if reason := stuck or self._others.missing(now):
                _stop(reason, dump=stuck is not None)
            time.sleep(self.interval)

    def publish(self) -> None:
        with self._publishing, contextlib.suppress(Exception):  # as above
            self._beat += 1
            value = json.dumps([self._beat, *dataclasses.astuple(pulse.here())])
            self._client.key_value_set(f"{_KEY}{jax.process_index()}", value, allow_overwrite=True)


def _parsed(value: str) -> tuple[int, Place]:
    beat, *place = json.loads(value)
    return beat, Place(*place)


_watchdog: _Watchdog | None = None


def start(*, silent_seconds: float, stuck_seconds: float) -> None:
    """Looks after the other processes from now on, and ends this one for their sake with status EXIT_OTHERS.

    Args:
      silent_seconds: a process that has not published for so long is taken for dead.
      stuck_seconds: after so long without a move here, this process hangs, or waits for one that does; 0: never.
    """
    global _watchdog
    from jax._src import distributed  # the store has no public name

    others = Others(
        jax.process_count(), jax.process_index(),
        silent_seconds=silent_seconds, stuck_seconds=stuck_seconds, now=time.monotonic(),
    )  # fmt: skip
    _watchdog = _Watchdog(distributed.global_state.client, others, silent_seconds)
    _watchdog.start()


def wait() -> None:
    """Leaves a process whose step has failed to the watchdog, for as long as it takes to miss another process."""
    if _watchdog is not None:
        time.sleep(2 * _watchdog.lingers + 3 * _watchdog.interval)


# Set before the watchdog prints: what fails in this process after that fails for the same reason.
_has_spoken = False


def has_spoken() -> bool:
    """Whether the watchdog has printed why it ends this process: another process is gone, or nothing moves."""
    return _has_spoken


def _stop(reason: str, *, dump: bool) -> None:
    """Ends this process for another one's sake; `dump`: with what each of its threads waits for."""
    global _has_spoken
    _has_spoken = True
    progress.quiet()
    hint = ", or with a larger --stuck_seconds if it was only slow" if dump else ""
    with contextlib.suppress(Exception):  # stderr may be gone
        if dump:
            faulthandler.dump_traceback(all_threads=True)
        print(
            f"\nerror: process {jax.process_index()} stops {pulse.here()}: {reason}; start the same command again on "
            f"all hosts{hint}: it resumes from the newest checkpoint.",
            file=sys.stderr,
            flush=True,
        )
    leave(EXIT_OTHERS)
