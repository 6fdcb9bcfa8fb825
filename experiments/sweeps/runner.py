"""Runs the points of a sweep, on this machine or as jobs of SLURM. Its state is the content of the run directories.

A sweep takes the lock of a run's workdir, and the run's process inherits it: the lock is free when both have ended,
however they end. An attempt that ends by itself leaves its exit status as the last line of the log; an attempt without
that line was killed.
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
_LONGEST = 300  # characters of a failure's line
_POLL = 0.05  # seconds until a sweep looks again for runs that have ended

# The name of a point -> the words of its command line.
Commands = Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Standing:
    """The state of a point, and the last line of an attempt that has failed."""

    state: Literal["complete", "running", "failed", "stopped", "not started"]
    why: str = ""

    def __str__(self) -> str:
        return f"{self.state} ({self.why})" if self.why else self.state


def standing(run: pathlib.Path) -> Standing:
    """The state of the point whose run is in `run`."""
    left = _left(run)
    return Standing("running") if left.state != "complete" and locks.is_held(run / workdir.LOCK) else left


def _left(run: pathlib.Path) -> Standing:
    """The state of a point that no process is running."""
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
    """A point that is being run: its process, the log that the process writes to, and the lock of its workdir."""

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
        except OSError as error:  # it counts as stopped
            warn(f"how {self.run} has ended ({status}) cannot be written to its log ({error}).")
        self.lock.close()
        return standing(self.run)


def begin(run: pathlib.Path, words: Sequence[str], since: float = math.inf) -> Attempt | Standing:
    """Starts the run of a workdir by a command line, or returns the state of a point that is not to be started.

    It is running, complete, or has failed with a log of more than `since` bytes: another sweep has already tried this
    run; do not retry it. UserError where the workdir, or a file in it, cannot be created.
    """
    try:
        with contextlib.ExitStack() as files:
            run.mkdir(parents=True, exist_ok=True)
            lock = files.enter_context((run / workdir.LOCK).open("ab"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):  # the latter on some network file systems
                return Standing("running")
            except OSError as error:
                warn(f"{run} is on a file system without locks ({error}): make sure that no other sweep runs it.")
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
                # The log's last line is to be the last thing that was printed.
                env=os.environ | {"PYTHONUNBUFFERED": "1", locks.INHERITED: os.path.abspath(lock.name)},
                process_group=0,  # its own: Ctrl-C is for the sweep, which asks its runs to save themselves
            )
            files.pop_all()
            return Attempt(run, process, log, lock)
    except OSError as error:
        raise UserError(
            f"{run} cannot be created ({error}): runs that have started continue to their end; make room, or make it "
            "writable, then start the sweep again."
        ) from error


def run_all(commands: Commands, directory: pathlib.Path, *, jobs: int) -> bool:
    """Runs the points of `directory` that are not complete, `jobs` at a time; skips those that others are running.

    Returns:
      whether it was asked to stop, by SIGTERM or SIGINT, and has asked its runs to do so.
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
                    warn(f"{error} No more runs are started.")  # at once: those that run may take hours
                    for name, attempt in running.items():
                        _say(f"{name}: {attempt.finish()}")
                    raise
                if isinstance(begun, Attempt):
                    running[name] = begun
                    if asked:  # before it was among those that are asked
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
            waiting.extend(skipped)  # which may be free by now
            skipped.clear()
            if not running and (asked or all(standing(directory / name).state == "running" for name in waiting)):
                return bool(asked)


@contextlib.contextmanager
def _asked_to_stop(running: Mapping[str, Attempt]) -> Iterator[list[int]]:
    """Gives the SIGTERM and SIGINT that have come so far; by each the running processes get SIGTERM."""
    asked: list[int] = []

    def handle(number, frame):
        # Not by print, in the midst of which the signal may have come.
        os.write(2, f"{signal.Signals(number).name}: the runs are asked to save themselves\n".encode())
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
