"""Being asked to stop: SIGTERM, on any host, ends a run after the step that it is in, with a checkpoint."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

# How a run ends on the command line that is to be started again: EX_TEMPFAIL of sysexits.h.
EXIT_PREEMPTED = 75


class Preempted(Exception):
    """The run was asked to stop, and has saved itself."""

    def __init__(self, step: int):
        super().__init__(f"stopped by SIGTERM after step {step}, which is saved: start the same command again to go on")


@contextlib.contextmanager
def watch() -> Iterator[Callable[[int], bool]]:
    """Gives a function from the number of steps taken to whether to stop there: the same answer on all processes.

    On several hosts JAX's own preemption service catches SIGTERM, which Cloud TPU, SLURM and Kubernetes send, and finds
    a step that no process has gone beyond. It says so at that very step and never again, and it may be any one from the
    first on: a signal that came while a run was being restored means step 1. So it is asked for each.
    """
    if jax.process_count() > 1:
        asked_for = 0

        def reached(step: int) -> bool:
            nonlocal asked_for
            # All processes ask for all of them, whatever one of the answers is.
            since, asked_for = range(asked_for + 1, step + 1), step
            answers = [multihost_utils.reached_preemption_sync_point(each) for each in since]
            return any(answers)

        yield reached
        return
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # where Python takes no signals
        yield lambda step: False
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield lambda step: asked.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
