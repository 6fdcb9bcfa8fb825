"""Being asked to stop: SIGTERM, on any host, or Ctrl-C ends a run after the step that it is in, with a checkpoint."""

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

# How a run ends on the command line that is to be started again: EX_TEMPFAIL of sysexits.h.
EXIT_PREEMPTED = 75
# How a process ends by a second Ctrl-C, as a shell tells of it.
EXIT_INTERRUPTED = 128 + signal.SIGINT
# Seconds after Ctrl-C until a line says what the process is waiting for.
_PATIENCE = 2.0
_NAMES = {int(signal.SIGINT): "Ctrl-C", int(signal.SIGTERM): "SIGTERM"}


class Preempted(BaseException):
    """The run was asked to stop, and all that it had to save is saved.

    Like KeyboardInterrupt no Exception: a signal may come while a file is read, which is not damaged by that.
    """

    def __init__(self, step: int | None = None, number: int = signal.SIGTERM):
        """After a step that it has saved; None: in the midst of what `pulse` tells, of which nothing is to be kept."""
        when = f"while {pulse.here().doing}" if step is None else f"after step {step}, which is saved"
        super().__init__(f"stopped by {_NAMES[number]} {when}: start the same command again to resume")


class Stop:
    """Whether a run is asked to stop: `stop(step)`, the same answer on all processes."""

    def __init__(self):
        self.number = 0  # of the signal that has come
        self._at_once = False
        self._asked_for = 0

    def __call__(self, step: int) -> bool:
        """Whether to stop after so many steps.

        On several hosts JAX's own preemption service catches SIGTERM, which Cloud TPU, SLURM and Kubernetes send, and
        finds a step that no process has gone beyond. It says so at that very step and never again, and it may be any
        one from the first on: a signal that came while a run was being restored means step 1. So it is asked for each.
        """
        if jax.process_count() == 1:
            return bool(self.number)
        # All processes ask for all of them, whatever one of the answers is.
        since, self._asked_for = range(self._asked_for + 1, step + 1), step
        answers = [multihost_utils.reached_preemption_sync_point(each) for each in since]
        return any(answers)

    def preempted(self, step: int | None = None) -> Preempted:
        """What to raise; of several processes JAX has caught the signal."""
        return Preempted(step, self.number or signal.SIGTERM)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """What is done in here is cut short by a signal, as nothing of it is to be saved: Preempted.

        Of several processes, of which none can be left alone with what all do together, a signal waits for a step.
        """
        self._at_once = True
        try:
            if self.number:
                raise self.preempted()
            yield
            if self.number:  # raised by the handler where nothing can be raised, as in a finaliser
                raise self.preempted()
        finally:
            self._at_once = False

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # which JAX's service waits for
            return
        self.number = self.number or number
        if self._at_once:
            self._at_once = False
            raise self.preempted()


@contextlib.contextmanager
def watch() -> Iterator[Stop]:
    """Gives what tells whether the run is asked to stop, by SIGTERM or Ctrl-C. A second Ctrl-C ends the process."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # where Python takes no signals
        yield stop
        return
    # On several hosts SIGTERM is JAX's.
    numbers = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGTERM, signal.SIGINT)
    # Python hears a signal when the main thread comes out of XLA; by this socket a thread hears it at once.
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
    """Ends the process by the second Ctrl-C; after the first, says what it waits for, if that takes its time."""
    interrupts = 0
    with signals:
        while True:
            try:
                heard = signals.recv(1)
            except TimeoutError:
                _say(f"\nCtrl-C: still {pulse.here().doing}, and saves after that; Ctrl-C again ends it at once\n")
                signals.settimeout(None)
                continue
            if not heard:  # the watch is over
                return
            if heard[0] == signal.SIGINT:
                interrupts += 1
                signals.settimeout(_PATIENCE)
            if interrupts > 1:
                _say("\nended by a second Ctrl-C: what was not saved is lost\n")
                os._exit(EXIT_INTERRUPTED)


def _say(text: str) -> None:
    os.write(2, text.encode())  # not by print, in the midst of which the main thread may be
