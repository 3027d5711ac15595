"""The cache folder of downloads and tokens: where it is, its locks, and the errors of writing there."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.kinds import DataConfig
from rwkv_lab.util.console import say
from rwkv_lab.util.hashing import home_expanded


def cache_dir(data: DataConfig) -> Path:
    """Return ``data.cache_dir``, or rwkv_lab in the user's cache folder."""
    if data.cache_dir:
        return home_expanded(data.cache_dir, "data.cache_dir").absolute()
    from platformdirs import user_cache_path

    with contextlib.suppress(RuntimeError):
        folder = user_cache_path("rwkv_lab")
        if folder.is_absolute():
            return folder
    raise UserError("data.cache_dir must be given: the home folder is not known (HOME is not set)")


@contextmanager
def locked(cache: Path, name: str) -> Iterator[None]:
    """Hold the lock ``name`` of the cache, with a line if another process has it. A process that dies releases it."""
    from filelock import FileLock, Timeout

    with cache_errors(cache):
        (cache / "locks").mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache / "locks" / f"{name}.lock")
        try:
            # The ranks of a run come here together: a second passes without a line.
            lock.acquire(timeout=1)
        except Timeout:
            say("waiting for another process that prepares the same data")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def cache_errors(cache: Path) -> Iterator[None]:
    """Turn a failed write to the cache, e.g. one that is full or read-only, into a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"data.cache_dir={cache} cannot be written: {error.strerror or error}") from error
