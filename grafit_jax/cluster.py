"""Several processes, one on each host: how they find each other, and how one ends without the others waiting for it."""

import os
import sys
import traceback
from typing import NoReturn

import jax

from grafit_jax.errors import UserError


def start(
    *,
    distributed: bool,
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    heartbeat_seconds: int,
) -> None:
    """Joins the processes of a run, before anything else is asked of JAX; does nothing without any of the arguments.

    Args:
      distributed: JAX finds out by itself: on Cloud TPU, SLURM, Kubernetes and Open MPI.
      coordinator: by hand instead: HOST:PORT of process 0, the same for all.
      num_processes: how many there are.
      process_id: which one this is, from 0.
      heartbeat_seconds: a process that is not heard of for so long is taken for dead, and JAX ends the others.

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
        jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=heartbeat_seconds)
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


def exit_with(status: int) -> NoReturn:
    """Ends this process, of several: at once, for JAX's own way out waits for all of them."""
    if jax.process_count() > 1 and status != 0:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def abandon() -> None:
    """Ends this process, of several, while an exception is on its way that is a bug: with its traceback."""
    if jax.process_count() > 1:
        print(f"process {jax.process_index()} of {jax.process_count()} stops:", file=sys.stderr)
        traceback.print_exc()
        exit_with(1)
