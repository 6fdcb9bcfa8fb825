"""Locks on files: held by one process at a time, and freed by the system when that process dies."""

import os
import pathlib

import filelock

from grafit_jax.errors import warn

# Seconds for which another process may hold a lock only to see whether it is free, in `is_held`.
MOMENT = 0.03
# The environment variable that names the lock that a process has inherited from the one that started it.
INHERITED = "GRAFIT_JAX_INHERITED_LOCK"


def take(path: pathlib.Path, *, timeout: float = 0.0) -> filelock.BaseFileLock | None:
    """Takes the lock of a file, which is created: to be released by its `release()`; None if another process holds it.

    It waits for `timeout` seconds. On a file system without locks there is a warning, and nothing is held. A lock that
    was inherited is held until the process ends, and its `release()` does nothing. OSError: the file cannot be created.
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
        warn(f"{path} is on a file system without locks ({error}): make sure that no other process uses that folder.")
    return lock


def is_held(path: pathlib.Path) -> bool:
    """Whether a process holds the lock of a file; False for a file that is missing or cannot be opened."""
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
    # Taken in one thread, released in another. A soft lock would outlive its process.
    return filelock.FileLock(path, poll_interval=MOMENT / 6, thread_local=False, fallback_to_soft=False)
