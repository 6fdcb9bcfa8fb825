"""Runs the points of a sweep, on this machine or as jobs of SLURM. Its state is what lies in the runs' directories.

Who runs a point holds the lock of its log, and so does the process of the run, which inherits it: a point is locked for
as long as anybody is at it, and the system lets go of the lock when all of them are dead. An attempt that has ended by
itself has a last line in the log that says how; an attempt without it was killed.
"""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import IO, Literal

from grafit_jax import workdir
from grafit_jax.cli import EXIT_MISTAKE
from grafit_jax.errors import UserError, warn
from grafit_jax.preemption import EXIT_PREEMPTED

_ENDED = "exit status "
_TAIL = 8192  # bytes of a log in which its last lines are
_LONGEST = 300  # characters of a failure's line

# The name of a point -> the words of its command line.
Commands = Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Standing:
    """How far a point is.

    Attributes:
      state: complete; running, by somebody; failed, in its newest attempt; stopped before its end; not started.
      why: of a failure, its last line.
    """

    state: Literal["complete", "running", "failed", "stopped", "not started"]
    why: str = ""

    def __str__(self) -> str:
        return f"{self.state} ({self.why})" if self.why else self.state


def standing(run: pathlib.Path) -> Standing:
    """How far the point is whose run is in `run`."""
    at_it = workdir.is_locked(run / workdir.LOG) or workdir.is_locked(run / workdir.LOCK)
    left = _left(run)
    return Standing("running") if at_it and left.state != "complete" else left


def is_complete(run: pathlib.Path) -> bool:
    """Whether the run in `run` has its result."""
    return (run / "metrics.json").is_file()


def _left(run: pathlib.Path) -> Standing:
    """How far the point was when it was left, if nobody is at it."""
    if is_complete(run):
        return Standing("complete")
    if not (run / workdir.LOG).is_file() and not (run / "config.json").is_file():
        return Standing("not started")
    lines = _last_lines(run / workdir.LOG)
    status = int(lines[-1].removeprefix(_ENDED)) if lines and re.fullmatch(rf"{_ENDED}-?\d+", lines[-1]) else None
    if status is None or status in (EXIT_PREEMPTED, -signal.SIGTERM):
        return Standing("stopped")
    if status < 0:
        return Standing("failed", f"killed by signal {-status}")
    return Standing("failed", lines[-2][:_LONGEST] if len(lines) > 1 else lines[-1])


def _last_lines(log: pathlib.Path) -> list[str]:
    """The lines at the end of a log that are not empty."""
    if not log.is_file():
        return []
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        text = file.read().decode(errors="replace")
    return [stripped for text_line in text.splitlines() if (stripped := text_line.strip())]


@dataclasses.dataclass
class Attempt:
    """A point that is being run: its process, and the log whose lock says so."""

    run: pathlib.Path
    process: subprocess.Popen
    log: IO[bytes]

    def finish(self) -> Standing:
        """Waits for the process and says how it ended."""
        status = self.process.wait()
        # A run that was started by hand may have come first: then this was no attempt.
        if not (status == EXIT_MISTAKE and workdir.is_locked(self.run / workdir.LOCK)):
            try:
                self.log.write(f"\n{_ENDED}{status}\n".encode())
                self.log.flush()
            except OSError as error:  # it counts as stopped
                warn(f"how {self.run} has ended ({status}) cannot be written to its log ({error}).")
        with contextlib.suppress(OSError):  # what could not be written above
            self.log.close()
        return standing(self.run)


def hold(run: pathlib.Path) -> IO[bytes] | None:
    """The log of a run with its lock; None while somebody is at that run; UserError for a disk that takes neither."""
    with contextlib.ExitStack() as undo:
        try:
            run.mkdir(parents=True, exist_ok=True)
            log = undo.enter_context((run / workdir.LOG).open("ab"))
        except OSError as error:
            raise UserError(
                f"{run} cannot be made ({error}): runs that were started go on to their end; make room, or make it "
                "writable, then start the sweep again."
            ) from error
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        except OSError as error:
            warn(f"{run} is on a file system without locks ({error.strerror}): see that no other sweep uses it.")
        if workdir.is_locked(run / workdir.LOCK):  # by a run that was started by hand
            return None
        undo.pop_all()
    return log


def start(run: pathlib.Path, words: Sequence[str], log: IO[bytes]) -> Attempt:
    """Starts a run by a command line, with its log held."""
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},  # the log's last line is to be the last thing that was said
        process_group=0,  # its own: Ctrl-C is for the sweep, which asks its runs to save themselves
    )
    return Attempt(run, process, log)


def run_all(commands: Commands, directory: pathlib.Path, *, jobs: int) -> bool:
    """Runs all points that are not complete, some at a time, and passes over those that somebody else is at.

    Args:
      commands: of the points.
      directory: of their runs.
      jobs: how many at a time.

    Returns:
      whether it was asked to stop, by SIGTERM or SIGINT, and has asked its runs to do so.
    """
    began = {name: _size(directory / name / workdir.LOG) for name in commands}
    waiting, full = deque(commands), None
    running: dict[futures.Future[Standing], tuple[str, Attempt]] = {}
    with futures.ThreadPoolExecutor(jobs) as pool, _asked_to_stop(lambda: [a for _, a in running.values()]) as stop:
        while True:
            passed_over = []
            while waiting and len(running) < jobs and not stop():
                name = waiting.popleft()
                run = directory / name
                try:
                    log = hold(run)
                except UserError as error:  # told of at once: the others may take hours
                    warn(f"{error} No more runs are started.")
                    full = error
                    waiting.clear()
                    break
                if log is None:
                    passed_over.append(name)
                    continue
                left = _left(run)
                # What failed since we began, failed in other hands: once is enough.
                if left.state == "complete" or (left.state == "failed" and _size(run / workdir.LOG) > began[name]):
                    log.close()
                    continue
                attempt = start(run, commands[name], log)
                running[pool.submit(attempt.finish)] = (name, attempt)
                if stop():  # which came when it was not yet among those that are asked
                    attempt.process.terminate()
                _say(f"{name}: started, process {attempt.process.pid}")
            waiting.extend(name for name in passed_over if not is_complete(directory / name) and full is None)
            if not running:
                if full is not None:
                    raise full
                if stop() or all(standing(directory / name).state == "running" for name in waiting):
                    return stop()
                continue
            for future in futures.wait(running, return_when=futures.FIRST_COMPLETED).done:
                name, _ = running.pop(future)
                _say(f"{name}: {future.result()}")


@contextlib.contextmanager
def _asked_to_stop(attempts: Callable[[], Sequence[Attempt]]) -> Iterator[Callable[[], bool]]:
    """Gives a function to whether SIGTERM or SIGINT has come, on which the attempts' processes get SIGTERM."""
    asked: list[int] = []

    def handle(number, frame):
        # Not by print, in the midst of which the signal may have come.
        os.write(2, f"{signal.Signals(number).name}: the runs are asked to save themselves\n".encode())
        asked.append(number)
        for attempt in attempts():
            attempt.process.terminate()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
