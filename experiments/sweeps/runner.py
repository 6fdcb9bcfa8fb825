"""Runs the points of a sweep, on this machine. The state of a sweep is the content of its workdirs.

A sweep locks the workdir of a run, and the run's process inherits the lock: it is free when both have ended, however
they end. An attempt that ends by itself writes its exit status as the last line of the log; an attempt without that
line was killed.
"""

import contextlib
import dataclasses
import fcntl
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Literal

from grafit_jax.errors import UserError, warn
from grafit_jax.runs import locks, workdir
from grafit_jax.runs.preemption import EXIT_PREEMPTED

_ENDED = "exit status "
_LONGEST = 300  # characters of the reason of a failure
_POLL = 0.05  # seconds between two checks for runs that have ended

# The name of a point -> the words of its command line.
Commands = Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Standing:
    """The state of a point, and the last log line of a failed attempt."""

    state: Literal["complete", "running", "failed", "stopped", "not started"]
    why: str = ""

    def __str__(self) -> str:
        return f"{self.state} ({self.why})" if self.why else self.state


def standing(run: pathlib.Path) -> Standing:
    """Returns the state of the point with the workdir `run`."""
    left = _left(run)
    return Standing("running") if left.state != "complete" and locks.is_held(run / workdir.LOCK) else left


def _left(run: pathlib.Path) -> Standing:
    """Returns the state of a point that no process is running."""
    log = run / workdir.LOG
    if (run / "metrics.json").is_file():
        return Standing("complete")
    if not log.is_file() and not (run / "config.json").is_file():
        return Standing("not started")
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    ended = re.fullmatch(rf"{_ENDED}(-?\d+)", lines[-1]) if lines else None
    if ended is None or int(ended[1]) in (EXIT_PREEMPTED, -signal.SIGTERM):
        return Standing("stopped")
    if int(ended[1]) < 0:
        return Standing("failed", f"killed by signal {-int(ended[1])}")
    return Standing("failed", lines[-2:][0][:_LONGEST])


@dataclasses.dataclass
class Attempt:
    """A running point: its process, the log that the process writes to, and the lock of its workdir."""

    run: pathlib.Path
    process: subprocess.Popen
    log: IO[bytes]
    lock: IO[bytes]

    def finish(self) -> Standing:
        """Waits for the process and returns how it ended."""
        status = self.process.wait()
        try:
            with self.log:
                self.log.write(f"\n{_ENDED}{status}\n".encode())
        except OSError as error:  # without the line it counts as stopped
            warn(f"{self.run}: the exit status {status} cannot be written to the log ({error}).")
        self.lock.close()
        return standing(self.run)


def begin(run: pathlib.Path, words: Sequence[str], since: float = math.inf) -> Attempt | Standing:
    """Starts the run of a workdir by a command line, or returns the state of a run that must not be started.

    It is running, complete, or failed with a log of more than `since` bytes: another sweep has already tried it.

    Raises:
      UserError: the workdir or a file in it cannot be created.
    """
    try:
        with contextlib.ExitStack() as files:
            run.mkdir(parents=True, exist_ok=True)
            lock = files.enter_context((run / workdir.LOCK).open("ab"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):  # PermissionError on some network file systems
                return Standing("running")
            except OSError as error:
                warn(f"{run}: found a file system without locks ({error}); make sure that no other sweep runs it.")
            left = _left(run)
            if left.state == "complete" or (left.state == "failed" and _log_size(run) > since):
                return left
            log = files.enter_context((run / workdir.LOG).open("ab"))
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[lock.fileno()],
                # Unbuffered, so that the last printed line is the last line of the log.
                env=os.environ | {"PYTHONUNBUFFERED": "1", locks.INHERITED: os.path.abspath(lock.name)},
                process_group=0,  # Ctrl-C reaches only the sweep, which then asks its runs to save themselves
            )
            files.pop_all()
            return Attempt(run, process, log, lock)
    except OSError as error:
        raise UserError(
            f"{run} cannot be created ({error}); running points continue; free disk space or make it writable, then "
            "start the sweep again."
        ) from error


def run_all(commands: Commands, directory: pathlib.Path, *, jobs: int) -> bool:
    """Runs the incomplete points of `directory`, `jobs` at a time; skips the points that another sweep is running.

    Returns:
      whether SIGTERM or SIGINT stopped it; its runs were asked to stop then.
    """
    began = {name: _log_size(directory / name) for name in commands}
    waiting, skipped = deque(commands), deque[str]()
    running: dict[str, Attempt] = {}
    with _asked_to_stop(running) as asked:
        while True:
            while waiting and len(running) < jobs and not asked:
                name = waiting.popleft()
                try:
                    begun = begin(directory / name, commands[name], began[name])
                except UserError as error:
                    warn(f"{error} No more runs are started.")  # now, since the running points may take hours
                    for name, attempt in running.items():
                        _say(f"{name}: {attempt.finish()}")
                    raise
                if isinstance(begun, Attempt):
                    running[name] = begun
                    if asked:  # the signal came before the run was in `running`
                        begun.process.terminate()
                    _say(f"{name}: started, process {begun.process.pid}")
                elif begun.state == "running":
                    skipped.append(name)
            ended = [name for name, attempt in running.items() if attempt.process.poll() is not None]
            for name in ended:
                _say(f"{name}: {running.pop(name).finish()}")
            if running and not ended:
                time.sleep(_POLL)
                continue
            waiting.extend(skipped)  # which may be free now
            skipped.clear()
            if not running and (asked or all(standing(directory / name).state == "running" for name in waiting)):
                return bool(asked)


@contextlib.contextmanager
def _asked_to_stop(running: Mapping[str, Attempt]) -> Iterator[list[int]]:
    """Yields the list of received SIGTERM and SIGINT signals; each sends SIGTERM to the running processes."""
    asked: list[int] = []

    def handle(number, frame):
        # Not print, which the signal may have interrupted.
        os.write(2, f"{signal.Signals(number).name}: asking the runs to save themselves\n".encode())
        asked.append(number)
        for attempt in running.values():
            attempt.process.terminate()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _log_size(run: pathlib.Path) -> int:
    log = run / workdir.LOG
    return log.stat().st_size if log.is_file() else 0


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
