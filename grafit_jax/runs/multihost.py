"""Several processes, one on each host: how they find each other, and how all end, by name of the one that fails.

JAX ends all processes when one is not heard of, but does not say at which step, and it does not see one that hangs: its
heartbeats go on while it waits for a file. Here each process tells the others where it is, through the key-value store
of JAX's own coordination service, and looks after them in a thread.
"""

import atexit
import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any, NoReturn

import jax

from grafit_jax import pulse
from grafit_jax.errors import UserError
from grafit_jax.pulse import Place
from grafit_jax.runs import console

# Exit status when another process has failed: EX_UNAVAILABLE of sysexits.h.
EXIT_OTHERS = 69
_KEY = "grafit_jax/at/"


def start(
    *,
    distributed: bool,
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    heartbeat_seconds: int,
    stuck_seconds: int,
) -> None:
    """Joins the processes of a run, before anything else is asked of JAX; does nothing without any of the arguments.

    Args:
      distributed: JAX finds out by itself: on Cloud TPU, SLURM, Kubernetes and Open MPI.
      coordinator: by hand instead: HOST:PORT of process 0, the same for all.
      num_processes: how many there are.
      process_id: which one this is, from 0.
      heartbeat_seconds: a process that is not heard of for so long is taken for dead, and the others end.
      stuck_seconds: a process that does not move for so long ends, and so the others; 0: never.

    Raises:
      UserError: a part of these is missing, or the others are not found.
    """
    by_hand = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in by_hand.items() if value is None]
    if len(missing) == 3 and not distributed:
        return
    if 0 < len(missing) < 3:
        raise UserError(
            f"found no --{missing[0]}: want --coordinator, --num_processes and --process_id, or none of them."
        )
    try:
        # JAX ends the processes too, but without saying which one is missing: it is given the time to be second. Its
        # heartbeats are half of this time apart, so it may come after half of it, and our last process leaves after 1.5
        # times heartbeat_seconds and some intervals.
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=4 * heartbeat_seconds + 20
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the other processes are not found ({' '.join(str(error).split())[:200]}): want --distributed on Cloud "
            "TPU, SLURM or Kubernetes, or --coordinator=HOST:PORT --num_processes=N --process_id=I on every host."
        ) from error
    index, count = jax.process_index(), jax.process_count()
    if count > 1:
        global _watchdog
        _watchdog = Watchdog(count, index, heartbeat_seconds, stuck_seconds, now=time.monotonic())
        _watchdog.start()
    if jax.local_device_count() * count != jax.device_count():
        raise UserError(
            f"process {index} has {jax.local_device_count()} of {jax.device_count()} devices over {count} processes: "
            "want the same number for each."
        )


class Watchdog:
    """What is known of all processes, from what each has published and when that was new here; and what follows.

    Of a clock only differences on this host count, so it does not matter what time hosts think it is. There are two
    threads: one asks the store, which may never answer, and one judges by what has been answered.

    Attributes:
      has_spoken: it has printed why it ends this process: what fails here after that fails for the same reason.
    """

    def __init__(self, count: int, index: int, silent_seconds: float, stuck_seconds: float, *, now: float):
        """Of `count` processes for the one with `index`; seconds as for `multihost.start`."""
        self._count, self._index = count, index
        self._silent_seconds, self._stuck_seconds = silent_seconds, stuck_seconds
        self._interval = min(5.0, silent_seconds / 8)
        self._beats, self._places = [-1] * count, [Place()] * count
        self._since = [now] * count  # of others, when they were last heard of; of this one, when it last moved
        self._published: dict[int, tuple[int, Place]] = {}  # by process: how often it has, and where it was then
        self._publishing, self._over = threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._ask, self._judge)]
        self.has_spoken = False

    def hear(self, published: Mapping[int, tuple[int, Place]], here: Place, now: float) -> None:
        """Takes in what others have published, and where this process is at `now`, of a clock that does not jump."""
        for i, (beat, place) in published.items():
            # What a process says that ends is its last word, however often.
            if i != self._index and beat != self._beats[i] and not self._places[i].ended:
                self._beats[i], self._places[i], self._since[i] = beat, place, now
        if here != self._places[self._index]:
            self._places[self._index], self._since[self._index] = here, now

    def missing(self, now: float) -> str | None:
        """Which process is not going on, in words; None if all are."""
        silent = {i: now - since for i, since in enumerate(self._since) if i != self._index}
        # Those that have ended come first, but not at once: all may be ending, for the same reason.
        ended = [i for i, seconds in silent.items() if self._places[i].ended and seconds > self._silent_seconds / 8]
        for i in ended + [i for i, seconds in silent.items() if seconds > self._silent_seconds]:
            how = "has ended" if self._places[i].ended else "is not heard of, last"
            return f"process {i} of {self._count} {how} {self._places[i]}"
        return None

    def stuck(self, now: float) -> str | None:
        """Where all processes are, in words, if this one has not moved for too long; None if it has."""
        if not self._stuck_seconds or now - self._since[self._index] <= self._stuck_seconds:
            return None
        places = "; ".join(f"process {i} is {place}" for i, place in enumerate(self._places))
        return f"nothing has moved for {self._stuck_seconds:g} s: {places}"

    def start(self) -> None:
        for thread in self._threads:
            thread.start()
        atexit.register(self.end)

    def end(self) -> None:
        """Waits for the other processes to end as well, then ends the threads.

        A thread that is within JAX's client when Python shuts down aborts the process.
        """
        try:
            jax.distributed.shutdown()
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join(self._interval)  # the store may never answer

    def _ask(self) -> None:
        beat = 0
        while not self._over.is_set():
            self.publish(beat := beat + 1)
            with contextlib.suppress(Exception):  # process 0, which has the store, may be gone
                answers = [(key, json.loads(value)) for key, value in _store().key_value_dir_get(_KEY)]
                self._published = {int(key.rpartition("/")[2]): (n, Place(*place)) for key, (n, *place) in answers}
            self._over.wait(self._interval)

    def publish(self, beat: int = 0) -> None:
        """Tells the others where this process is; they hear it only if `beat` differs from the last one published."""
        with self._publishing, contextlib.suppress(Exception):  # as above
            _store().key_value_set(f"{_KEY}{self._index}", json.dumps([beat, *pulse.here()]), allow_overwrite=True)

    def _judge(self) -> None:
        while not (self._over.is_set() or pulse.here().ended):  # which has said why by itself
            now = time.monotonic()
            self.hear(self._published, pulse.here(), now)
            stuck = self.stuck(now)
            if reason := stuck or self.missing(now):
                self.stop(reason, dump=stuck is not None)
            self._over.wait(self._interval)

    def stop(self, reason: str, *, dump: bool) -> None:
        """Ends this process for another one's sake; `dump`: with what each of its threads waits for."""
        self.has_spoken = True
        console.quiet()
        hint = ", or with a larger --stuck_seconds if it was only slow" if dump else ""
        with contextlib.suppress(Exception):  # stderr may be gone
            if dump:
                faulthandler.dump_traceback(all_threads=True)
            print(
                f"\nerror: process {self._index} stops {pulse.here()}: {reason}; start the same command again on all "
                f"hosts{hint}: it resumes from the newest checkpoint.",
                file=sys.stderr,
                flush=True,
            )
        self.leave(EXIT_OTHERS)

    def leave(self, status: int) -> NoReturn:
        """Ends this process at once; process 0 when the others have found the same, or read why it ends.

        JAX ends whoever is still there when process 0, which has the store, is gone: by SIGABRT, without our message.
        """
        time.sleep(self._interval if self._index else self._silent_seconds / 2)
        os._exit(status)

    def wait(self) -> None:
        """Sleeps until the watchdog has had the time to notice that another process is dead, and to end this one."""
        time.sleep(self._silent_seconds + 3 * self._interval)


_watchdog: Watchdog | None = None  # of several processes


def _store() -> Any:
    return jax._src.distributed.global_state.client  # private: up to jax 0.12 the store has no public name


def exit_with(status: int, reason: str = "") -> NoReturn:
    """Ends this process with an exit status; of several processes at once, and the others are told the reason.

    JAX's own way out would wait for all of them.
    """
    if _watchdog is not None and status != 0:
        if reason:
            pulse.ends(reason)
            # Not by this thread: if process 0 is frozen, the store never answers.
            threading.Thread(target=_watchdog.publish, daemon=True).start()
        sys.stdout.flush()
        sys.stderr.flush()
        _watchdog.leave(status)
    sys.exit(status)


def abandon(error: Exception) -> None:
    """Ends this process, of several, while an exception is on its way that is a bug, or comes of another's death."""
    if _watchdog is not None:
        if not _watchdog.has_spoken:
            traceback.print_exc()
            sys.stderr.flush()
        _watchdog.wait()
        exit_with(1, f"stopped by {type(error).__name__}")
