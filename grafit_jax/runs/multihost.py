"""Several processes, one on each host: how they find each other, and how one ends without the others waiting for it."""

import sys
import traceback
from typing import NoReturn

import jax

from grafit_jax.errors import UserError
from grafit_jax.runs import watchdog


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
    if jax.local_device_count() * jax.process_count() != jax.device_count():
        raise UserError(
            f"process {jax.process_index()} has {jax.local_device_count()} of {jax.device_count()} devices over "
            f"{jax.process_count()} processes: want the same number for each."
        )
    watchdog.start(silent_seconds=heartbeat_seconds, stuck_seconds=stuck_seconds)


def exit_with(status: int, reason: str = "") -> NoReturn:
    """Ends this process, of several: without JAX's own way out, which waits for all of them.

    Args:
      status: of the process.
      reason: what the others are told, which cannot go on without it.
    """
    if jax.process_count() > 1 and status != 0:
        if reason:
            watchdog.end(reason)
        sys.stdout.flush()
        sys.stderr.flush()
        watchdog.leave(status)
    sys.exit(status)


def abandon(error: Exception) -> None:
    """Ends this process, of several, while an exception is on its way that is a bug, or comes of another's death."""
    if jax.process_count() > 1:
        if not watchdog.has_spoken():
            traceback.print_exc()
            sys.stderr.flush()
        watchdog.wait()  # which names the one that has died, and ends this one
        exit_with(1, f"stopped by {type(error).__name__}")
