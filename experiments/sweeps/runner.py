"""Runs the points of a sweep, on this machine or as jobs of SLURM. Its state is what lies in the runs' directories.

A sweep that runs a point holds the point's sweep lock, and the run itself holds the lock of its workdir, also when its
sweep was killed: a point runs as long as one of them is held, and the system frees both when their processes die. Of
two runs on one workdir the second one ends without training (`workdir.lock`). An attempt that has ended by itself
leaves a last line in the log with its exit status; an attempt without that line was killed.
"""

import contextlib
import dataclasses
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

import filelock

from grafit_jax.commands.cli import EXIT_MISTAKE
from grafit_jax.errors import UserError, warn
from grafit_jax.runs import locks, workdir
from grafit_jax.runs.preemption import EXIT_PREEMPTED

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
    left = _left(run)
    if left.state != "complete" and any(locks.is_held(run / name) for name in (workdir.SWEEP_LOCK, workdir.LOCK)):
        return Standing("running")
    return left


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
    """A point that is being run: its process, the log that this writes to, and the sweep lock."""

    run: pathlib.Path
    process: subprocess.Popen
    log: IO[bytes]
    lock: filelock.BaseFileLock

    def finish(self) -> Standing:
        """Waits for the process and says how it ended."""
        status = self.process.wait()
        # A run that was started by hand may have come first: then this was no attempt.
        if not (status == EXIT_MISTAKE and locks.is_held(self.run / workdir.LOCK)):
            try:
                self.log.write(f"\n{_ENDED}{status}\n".encode())
                self.log.flush()
            except OSError as error:  # it counts as stopped
                warn(f"how {self.run} has ended ({status}) cannot be written to its log ({error}).")
        with contextlib.suppress(OSError):  # what could not be written above
            self.log.close()
        self.lock.release()
        return standing(self.run)


def hold(run: pathlib.Path) -> filelock.BaseFileLock | None:
    """The sweep lock of a point; None while the point is being run; UserError where the lock cannot be created."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = locks.take(run / workdir.SWEEP_LOCK)
    except OSError as error:
        raise _cannot_be_created(run, error) from error
    if lock is not None and locks.is_held(run / workdir.LOCK):  # a run started by hand, or whose sweep was killed
        lock.release()
        return None
    return lock


def _cannot_be_created(run: pathlib.Path, error: OSError) -> UserError:
    return UserError(
        f"{run} cannot be created ({error}): runs that have started continue to their end; make room, or make it "
        "writable, then start the sweep again."
    )


def start(run: pathlib.Path, words: Sequence[str], lock: filelock.BaseFileLock) -> Attempt:
    """Starts a run by a command line, with the point's lock held; UserError where its log cannot be created."""
    try:
        log = (run / workdir.LOG).open("ab")
    except OSError as error:
        lock.release()
        raise _cannot_be_created(run, error) from error
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},  # the log's last line is to be the last thing that was said
        process_group=0,  # its own: Ctrl-C is for the sweep, which asks its runs to save themselves
    )
    return Attempt(run, process, log, lock)


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
                    lock = hold(run)
                    if lock is None:
                        passed_over.append(name)
                        continue
                    left = _left(run)
                    # Another sweep has tried this point since we began; do not retry it.
                    if left.state == "complete" or (left.state == "failed" and _size(run / workdir.LOG) > began[name]):
                        lock.release()
                        continue
                    attempt = start(run, commands[name], lock)
                except UserError as error:  # said at once: the others may take hours
                    warn(f"{error} No more runs are started.")
                    full = error
                    waiting.clear()
                    break
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
