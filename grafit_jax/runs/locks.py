"""File locks, held by one process at a time and released by the system when that process dies."""

import os
import pathlib

import filelock

from grafit_jax.errors import warn

# Seconds to wait for a lock that another process holds only briefly, in `is_held`.
MOMENT = 0.03
# Environment variable with the path of the lock that a process has inherited from its parent.
INHERITED = "GRAFIT_JAX_INHERITED_LOCK"


def take(path: pathlib.Path, *, timeout: float = 0.0) -> filelock.BaseFileLock | None:
    """Takes the lock of a file, which is created if missing; returns None if another process holds it.

    Waits up to `timeout` seconds. The caller releases the lock by `release()`. An inherited lock is held until the
    process ends; its `release()` does nothing. On a file system without locks, warns and holds nothing.

    Raises:
      OSError: the file cannot be created.
    """
    path.open("ab").close()
    lock = _lock(path)
    if os.environ.get(INHERITED) == os.path.abspath(path):
        return lock
    try:
        lock.acquire(timeout=timeout)
    except filelock.Timeout:
        return None
    except (OSError, NotImplementedError) as error:
        warn(f"{path}: found a file system without locks ({error}); make sure that no other process uses this folder.")
    return lock


def is_held(path: pathlib.Path) -> bool:
    """Returns whether a process holds the lock of a file; False if the file is missing or cannot be opened."""
    if not path.is_file():
        return False
    try:
        with _lock(path).acquire(timeout=MOMENT):
            return False
    except filelock.Timeout:
        return True
    except (OSError, NotImplementedError):
        return False


def _lock(path: pathlib.Path) -> filelock.BaseFileLock:
    # thread_local=False: a lock may be taken in one thread and released in another. A soft lock would outlive its
    # process.
    return filelock.FileLock(path, poll_interval=MOMENT / 6, thread_local=False, fallback_to_soft=False)
