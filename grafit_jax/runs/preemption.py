"""Preemption: SIGTERM on any host, or Ctrl-C, stops a run after the current step, with a checkpoint."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

from grafit_jax import pulse

# Exit status of a stopped run that the same command resumes: EX_TEMPFAIL of sysexits.h.
EXIT_PREEMPTED = 75
# Exit status after a second Ctrl-C, as a shell reports it.
EXIT_INTERRUPTED = 128 + signal.SIGINT
# Seconds after Ctrl-C until a message says what the process is waiting for.
_PATIENCE = 2.0
_NAMES = {int(signal.SIGINT): "Ctrl-C", int(signal.SIGTERM): "SIGTERM"}


class Preempted(BaseException):
    """Raised when a run was asked to stop and has saved its state.

    Like KeyboardInterrupt it is no Exception, so that a handler around reading a file does not report a damaged file.
    """

    def __init__(self, step: int | None = None, number: int = signal.SIGTERM):
        """Creates the error for a stop after `step`, which is saved; None: during an activity with nothing to save."""
        when = f"while {pulse.here().doing}" if step is None else f"after step {step}, which is saved"
        super().__init__(f"stopped by {_NAMES[number]} {when}: start the same command again to resume")


class Stop:
    """Answers whether a run is asked to stop: `stop(step)` returns the same on all processes."""

    def __init__(self):
        self.number = 0  # the signal received
        self._at_once = False
        self._asked_for = 0

    def __call__(self, step: int) -> bool:
        """Returns whether to stop after `step`.

        On several hosts, JAX's preemption service catches SIGTERM (sent by Cloud TPU, SLURM and Kubernetes) and picks a
        step that no process has passed. It returns True for that step only, which may be any step, even one before the
        run resumed: a signal during restoring means step 1. So it is queried for every step.
        """
        if jax.process_count() == 1:
            return bool(self.number)
        # Every process must query every step, whatever the answers.
        since, self._asked_for = range(self._asked_for + 1, step + 1), step
        answers = [multihost_utils.reached_preemption_sync_point(each) for each in since]
        return any(answers)

    def preempted(self, step: int | None = None) -> Preempted:
        """Returns the exception to raise."""
        return Preempted(step, self.number or signal.SIGTERM)  # JAX does not say which signal it caught

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Context in which a signal raises Preempted at once, since there is nothing to save.

        In a multi-host run a signal waits for the next step: a process must not leave a collective operation.
        """
        self._at_once = True
        try:
            if self.number:
                raise self.preempted()
            yield
            if self.number:  # Python swallows what the handler raises inside a finaliser
                raise self.preempted()
        finally:
            self._at_once = False

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX's preemption service catches it
            return
        self.number = self.number or number
        if self._at_once:
            self._at_once = False
            raise self.preempted()


@contextlib.contextmanager
def watch() -> Iterator[Stop]:
    """Yields a `Stop` that listens for SIGTERM and Ctrl-C. A second Ctrl-C exits the process."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set signal handlers
        yield stop
        return
    # On several hosts JAX handles SIGTERM.
    numbers = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGTERM, signal.SIGINT)
    # Python runs its handlers only when the main thread returns from XLA; this socket wakes a thread at once.
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = {number: signal.signal(number, stop._hear) for number in numbers}
    woken = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_count, args=(ours,), name="interrupts", daemon=True).start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        theirs.close()


def _count(signals: socket.socket) -> None:
    """Exits the process on the second Ctrl-C; after the first, prints what it is waiting for if that takes long."""
    interrupts = 0
    with signals:
        while True:
            try:
                heard = signals.recv(1)
            except TimeoutError:
                _say(f"\nCtrl-C: still {pulse.here().doing}, then saving; press Ctrl-C again to exit at once\n")
                signals.settimeout(None)
                continue
            if not heard:  # `watch` has ended
                return
            if heard[0] == signal.SIGINT:
                interrupts += 1
                signals.settimeout(_PATIENCE)
            if interrupts > 1:
                _say("\nexited on a second Ctrl-C; unsaved steps are lost\n")
                os._exit(EXIT_INTERRUPTED)


def _say(text: str) -> None:
    os.write(2, text.encode())  # not print, which the main thread may be inside of
