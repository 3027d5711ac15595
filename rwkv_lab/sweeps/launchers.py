"""Where the jobs of a sweep run: how each of Hydra's launchers runs them, and the GPUs that jobs side by side share."""

import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

MOST_JOBS_A_GPU = 64
LISTING_SECONDS = 20.0


@dataclass(frozen=True)
class LauncherSpec:
    """How a launcher runs the jobs of a sweep."""

    threads: int | None  # torch threads of a job, so that jobs side by side share the cores; None: all of them
    batch: int | None  # jobs handed over together; None: all
    visible: bool = False  # a job is alone on the terminal and may print to it
    tied: bool = False  # the worker processes end with the one that started them
    shares_gpus: bool = False  # jobs side by side on one machine choose a GPU each
    detached: bool = False  # jobs go on after the terminal is closed


def launcher_policy(launcher: Mapping[str, Any], cores: int) -> LauncherSpec:
    """Return how the launcher configured by ``launcher`` runs jobs on a machine of ``cores`` cores."""
    kind = str(launcher["_target_"]).rpartition(".")[2]
    cpus = launcher.get("cpus_per_task")
    if kind == "JoblibLauncher":
        wanted = launcher.get("n_jobs") or 1
        at_once = max(1, cores + 1 + wanted) if wanted < 0 else wanted
        return LauncherSpec(max(1, cores // at_once), None, tied=True, shares_gpus=True)
    if kind == "LocalLauncher":
        # The local executor starts everything it is given at once.
        return LauncherSpec(cpus or 1, max(1, cores // (cpus or 1)), detached=True)
    if kind == "SlurmLauncher":
        return LauncherSpec(cpus, None, detached=True)
    if kind.startswith("Ray"):
        remote = (launcher.get("ray") or {}).get("remote") or {}
        return LauncherSpec(max(1, int(remote.get("num_cpus") or 1)), None)
    return LauncherSpec(None, 1, visible=True)


def visible_gpus(drivers: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """Return the NVIDIA GPUs this process may use, a MIG GPU as its parts, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    if listed := _listed_gpus():
        return listed
    return [str(i) for i in range(len(list(drivers.iterdir())))] if drivers.is_dir() else []


def _listed_gpus() -> list[str]:
    """Return what nvidia-smi lists: the UUID of each part, or the number of a whole GPU; empty without nvidia-smi."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=LISTING_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return []
    names: list[list[str]] = []
    for line in done.stdout.splitlines():
        if found := re.match(r"GPU (\d+):", line):
            names.append([found[1]])
        elif names and (found := re.search(r"MIG .*\(UUID: (MIG-[^)]+)\)", line)):
            names[-1].append(found[1])
    return [name for whole, *parts in names for name in parts or [whole]]


@contextmanager
def gpu_lock(gpus: Sequence[str], folder: Path) -> Iterator[str | None]:
    """Context manager: takes the GPU with the fewest jobs; yields its name, or None if there are no ``gpus``.

    ``folder`` contains the locks, which the system frees when their holder dies; processes that share GPUs must name
    the same one.
    """
    taken = _take(gpus, folder / platform.node()) if gpus else None
    try:
        yield taken[0] if taken else None
    finally:
        if taken:
            taken[1].release()


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
