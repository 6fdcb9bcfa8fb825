"""Multi-host training: joining the processes, and stopping all of them when one fails.

JAX ends all processes when one stops sending heartbeats, but does not report its step. It does not detect a process
that hangs, since heartbeats continue while it waits for a file. Here each process publishes its step and activity in
the key-value store of JAX's coordination service, and a watchdog thread checks those of the others.
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
    """Joins the processes of a run; must be called before any other use of JAX.

    Does nothing for a run of one process, without `distributed` and `coordinator`.

    Args:
      distributed: whether JAX detects the other processes: on Cloud TPU, SLURM, Kubernetes and Open MPI.
      coordinator: HOST:PORT of process 0, where JAX cannot detect it.
      num_processes: number of processes, with `coordinator`.
      process_id: index of this process from 0, with `coordinator`.
      heartbeat_seconds: a process that is silent for longer counts as dead, and all others exit.
      stuck_seconds: a process without progress for longer exits, and so do the others; 0 disables this.

    Raises:
      UserError: an argument is missing, or the other processes cannot be reached.
    """
    explicit = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in explicit.items() if value is None]
    if len(missing) == 3 and not distributed:
        return
    if 0 < len(missing) < 3:
        raise UserError(
            f"found no --{missing[0]}; expected all of --coordinator, --num_processes and --process_id, or none."
        )
    try:
        # JAX's own timeout must come after ours, since JAX does not say which process is missing. It may act after half
        # of its timeout (the interval of its heartbeats); our last process exits after 1.5 * heartbeat_seconds and a
        # few intervals.
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=4 * heartbeat_seconds + 20
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"cannot reach the other processes ({' '.join(str(error).split())[:200]}); use --distributed on Cloud TPU, "
            "SLURM or Kubernetes, or --coordinator=HOST:PORT --num_processes=N --process_id=I on every host."
        ) from error
    index, count = jax.process_index(), jax.process_count()
    if count > 1:
        global _watchdog
        _watchdog = Watchdog(count, index, heartbeat_seconds, stuck_seconds, now=time.monotonic())
        _watchdog.start()
    if jax.local_device_count() * count != jax.device_count():
        raise UserError(
            f"process {index}: found {jax.local_device_count()} of {jax.device_count()} devices; expected the same "
            f"number on each of the {count} processes."
        )


class Watchdog:
    """Detects processes that are silent or stuck, from what each has published.

    Only time differences on this host are used, so clocks of hosts may disagree. One thread reads the store, which may
    never answer; another one judges by the answers so far.

    Attributes:
      has_spoken: whether it has printed why this process ends; later failures have the same cause.
    """

    def __init__(self, count: int, index: int, silent_seconds: float, stuck_seconds: float, *, now: float):
        """Creates the watchdog of process `index` of `count`; for the seconds see `multihost.start`."""
        self._count, self._index = count, index
        self._silent_seconds, self._stuck_seconds = silent_seconds, stuck_seconds
        self._interval = min(5.0, silent_seconds / 8)
        self._beats, self._places = [-1] * count, [Place()] * count
        self._since = [now] * count  # when another process last published; when this one last made progress
        self._published: dict[int, tuple[int, Place]] = {}  # process -> (number of its publication, place)
        self._publishing, self._over = threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._ask, self._judge)]
        self.has_spoken = False

    def hear(self, published: Mapping[int, tuple[int, Place]], here: Place, now: float) -> None:
        """Updates the places of the other processes and of this one at time `now` of a monotonic clock."""
        for i, (beat, place) in published.items():
            # A process that has ended publishes its last place repeatedly.
            if i != self._index and beat != self._beats[i] and not self._places[i].ended:
                self._beats[i], self._places[i], self._since[i] = beat, place, now
        if here != self._places[self._index]:
            self._places[self._index], self._since[self._index] = here, now

    def missing(self, now: float) -> str | None:
        """Describes a process that has ended or is silent; None if there is none."""
        silent = {i: now - since for i, since in enumerate(self._since) if i != self._index}
        # Processes that have ended come first, but after a delay: all may be ending for the same reason.
        ended = [i for i, seconds in silent.items() if self._places[i].ended and seconds > self._silent_seconds / 8]
        for i in ended + [i for i, seconds in silent.items() if seconds > self._silent_seconds]:
            how = "has ended" if self._places[i].ended else "does not respond, last seen"
            return f"process {i} of {self._count} {how} {self._places[i]}"
        return None

    def stuck(self, now: float) -> str | None:
        """Describes where all processes are if this one has made no progress for too long; else None."""
        if not self._stuck_seconds or now - self._since[self._index] <= self._stuck_seconds:
            return None
        places = "; ".join(f"process {i} is {place}" for i, place in enumerate(self._places))
        return f"no progress for {self._stuck_seconds:g} s: {places}"

    def start(self) -> None:
        for thread in self._threads:
            thread.start()
        atexit.register(self.end)

    def end(self) -> None:
        """Waits for the other processes to end, then ends the threads.

        A thread inside JAX's client would abort the process when Python shuts down.
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
            with contextlib.suppress(Exception):  # process 0, which serves the store, may be gone
                answers = [(key, json.loads(value)) for key, value in _store().key_value_dir_get(_KEY)]
                self._published = {int(key.rpartition("/")[2]): (n, Place(*place)) for key, (n, *place) in answers}
            self._over.wait(self._interval)

    def publish(self, beat: int = 0) -> None:
        """Publishes where this process is; the others ignore it unless `beat` differs from the last one."""
        with self._publishing, contextlib.suppress(Exception):  # as above
            _store().key_value_set(f"{_KEY}{self._index}", json.dumps([beat, *pulse.here()]), allow_overwrite=True)

    def _judge(self) -> None:
        while not (self._over.is_set() or pulse.here().ended):  # a process that has ended has printed why
            now = time.monotonic()
            self.hear(self._published, pulse.here(), now)
            stuck = self.stuck(now)
            if reason := stuck or self.missing(now):
                self.stop(reason, dump=stuck is not None)
            self._over.wait(self._interval)

    def stop(self, reason: str, *, dump: bool) -> None:
        """Prints the reason and exits with EXIT_OTHERS; `dump` prints the stacks of all threads first."""
        self.has_spoken = True
        console.quiet()
        hint = " (with a larger --stuck_seconds if it was only slow)" if dump else ""
        with contextlib.suppress(Exception):  # stderr may be gone
            if dump:
                faulthandler.dump_traceback(all_threads=True)
            print(
                f"\nerror: process {self._index} stops {pulse.here()}: {reason}; start the same command again on all "
                f"hosts to resume from the newest checkpoint{hint}.",
                file=sys.stderr,
                flush=True,
            )
        self.leave(EXIT_OTHERS)

    def leave(self, status: int) -> NoReturn:
        """Exits at once; process 0 waits until the others have detected the failure or read its reason.

        Without the store of process 0, JAX aborts the remaining processes by SIGABRT, without our message.
        """
        time.sleep(self._interval if self._index else self._silent_seconds / 2)
        os._exit(status)

    def wait(self) -> None:
        """Sleeps long enough for the watchdog to detect a dead process and end this one."""
        time.sleep(self._silent_seconds + 3 * self._interval)


_watchdog: Watchdog | None = None  # None in a run of one process


def _store() -> Any:
    return jax._src.distributed.global_state.client  # private: up to jax 0.12 the store has no public name


def exit_with(status: int, reason: str = "") -> NoReturn:
    """Exits with a status; in a multi-host run at once, after publishing the reason.

    JAX's own exit handler would wait for all processes.
    """
    if _watchdog is not None and status != 0:
        if reason:
            pulse.ends(reason)
            # In a thread: if process 0 is frozen, the store never answers.
            threading.Thread(target=_watchdog.publish, daemon=True).start()
        sys.stdout.flush()
        sys.stderr.flush()
        _watchdog.leave(status)
    sys.exit(status)


def abandon(error: Exception) -> None:
    """Exits a multi-host run on an unexpected exception: a bug, or the consequence of another process's death."""
    if _watchdog is not None:
        if not _watchdog.has_spoken:
            traceback.print_exc()
            sys.stderr.flush()
        _watchdog.wait()
        exit_with(1, f"stopped by {type(error).__name__}")
