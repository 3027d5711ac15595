"""GPUs shared out to jobs that run side by side on one machine, by locks the system frees when their holder dies."""

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

MOST_JOBS_A_GPU = 64


def visible_gpus(drivers: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """The NVIDIA GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    return [str(i) for i in range(len(list(drivers.iterdir())))] if drivers.is_dir() else []


@contextmanager
def gpu(gpus: Sequence[str], folder: Path) -> Iterator[str | None]:
    """The GPU that has fewest jobs, taken until the context ends; None where there is none to share out.

    ``folder`` holds the locks; processes that are to share must name the same one.
    """
    held = _take(gpus, folder / platform.node()) if gpus else None
    try:
        yield held[0] if held else None
    finally:
        if held:
            held[1].release()


def _take(gpus: Sequence[str], folder: Path) -> tuple[str, FileLock] | None:
    folder.mkdir(parents=True, exist_ok=True)
    for job in range(MOST_JOBS_A_GPU):
        for name in gpus:
            lock = FileLock(folder / f"gpu-{name.replace('/', '-')}-{job}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            return name, lock
    return None
