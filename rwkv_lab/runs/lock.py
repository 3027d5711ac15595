"""One process per run: an advisory lock the system frees when its holder dies, so that none is ever stale."""

import fcntl
import os
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_NAME = ".lock"


def acquire(folder: Path) -> FileLock | None:
    """Takes the run's lock, or None where another process holds it.

    Waits a second first: a reader that asks ``is_held`` holds the lock for an instant.
    """
    lock = FileLock(folder / LOCK_NAME)
    try:
        lock.acquire(timeout=1.0)
    except Timeout:
        return None
    return lock


def is_held(folder: Path) -> bool:
    """Whether a living process holds the run's lock; works in folders one may only read."""
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        # Held, or a file system without such locks, where the file itself is the lock.
        return True
    finally:
        os.close(descriptor)
    return False
