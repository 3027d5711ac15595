"""Cache of built libraries: each in a folder of its own, with a checksum, put in place in one step.

Parallel first uses, killed builds and full disks cannot leave half a library. One that was cut or altered later is
found before it is loaded: loading it would end the process with SIGBUS.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rwkv_lab.ops.toolchain import BuildFailed
from rwkv_lab.util.io import sync

LIBRARY, RECORD = "kernels.so", "record.json"
WORK = "building-"


def default_cache() -> Path:
    """Return ``rwkv_lab/ops`` in XDG_CACHE_HOME, or in ~/.cache."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    except RuntimeError:
        raise BuildFailed("no home folder to keep kernels in: set HOME or ops.cache_dir") from None
    return base / "rwkv_lab" / "ops"


def whole(folder: Path) -> Path | None:
    """Return the library in ``folder`` if it is as it was written, else None."""
    library = folder / LIBRARY
    try:
        record = json.loads((folder / RECORD).read_text())
        if library.stat().st_size != record["size"]:
            return None
        return library if _sha256(library) == record["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def publish(work: Path, target: Path, about: dict[str, Any]) -> Path:
    """Move the library in the folder ``work`` to the folder ``target``; return its path.

    If another process was faster its library is returned; a damaged one is replaced.
    """
    library = work / LIBRARY
    record = about | {"size": library.stat().st_size, "sha256": _sha256(library)}
    (work / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    for path in (library, work / RECORD, work):
        sync(path)
    for _ in range(2):
        try:
            os.rename(work, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if found := whole(target):
                return found
            discard(target)
        else:
            sync(target.parent)
            return target / LIBRARY
    raise BuildFailed(f"{target} is being replaced again and again")


def discard(folder: Path) -> None:
    """Rename ``folder`` in one step, then remove it; a process that has loaded its library keeps it."""
    with contextlib.suppress(FileNotFoundError):
        away = Path(tempfile.mkdtemp(prefix=WORK, dir=folder.parent))
        os.rename(folder, away)
        shutil.rmtree(away, ignore_errors=True)


@contextlib.contextmanager
def workshop(cache: Path) -> Iterator[Path]:
    """Yield a fresh folder in ``cache`` to build in, removed afterwards; its lock ends with the process that builds."""
    work = cache / f"{WORK}{uuid.uuid4().hex}"
    alive = work.with_suffix(".alive")
    with FileLock(alive):
        try:
            work.mkdir()
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)
            alive.unlink(missing_ok=True)


def clean(cache: Path) -> None:
    """Remove what killed builds left in ``cache``, and end the compilers that still run there."""
    for work in [path for path in cache.glob(f"{WORK}*") if path.is_dir()]:
        alive = work.with_suffix(".alive")
        lock = FileLock(alive)
        with contextlib.suppress(Timeout, OSError):
            lock.acquire(timeout=0)
            end_processes_in(work)
            shutil.rmtree(work, ignore_errors=True)
            alive.unlink(missing_ok=True)
        lock.release()


def end_processes_in(work: Path) -> None:
    """Kill this user's processes whose working directory is ``work`` (Linux)."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(entry / "cwd") == str(work.resolve()) and int(entry.name) != os.getpid():
                os.kill(int(entry.name), signal.SIGKILL)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
