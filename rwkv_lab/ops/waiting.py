"""How OpenMP's threads wait for each other: spinning while the cores are this process's own, else asleep.

GNU's OpenMP spins for milliseconds at every barrier. That is fast alone, as waking a thread takes longer than most of
its work; where two processes share the cores, each burns the time the other needs. It spins a thousandth as long while
the process has more OpenMP threads than cores, so a team of idle threads switches the spinning off, and its end on.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TASKS = Path("/proc/self/task")
INTERVAL = 0.25  # seconds between two looks
CROWDED, CALM = 0.05, 0.02  # share of the time that threads wait for a core: above and below which the mode changes
CALM_LOOKS = 4  # in a row, before threads spin again


class Mode:
    """Whether threads should sleep, given how long they had to wait for a core."""

    def __init__(self) -> None:
        self.asleep = False
        self._calm = 0

    def look(self, delay: float) -> bool:
        """Return whether threads should sleep after an interval of which they waited the share ``delay``."""
        self._calm = self._calm + 1 if delay < CALM else 0
        if delay > CROWDED:
            self.asleep = True
        elif self._calm >= CALM_LOOKS:
            self.asleep = False
        return self.asleep


class IdleTeam:
    """A team of OpenMP threads, more than there are cores, that does nothing from ``begin`` to ``end``."""

    def __init__(self, library: ctypes.CDLL, cores: int):
        self._library, self._cores = library, cores
        self._release: threading.Event | None = None
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Start the team, unless it is there."""
        if self._release is None:
            self._release, ready = threading.Event(), threading.Event()
            self._thread = threading.Thread(target=self._stay, args=(self._release, ready), daemon=True)
            self._thread.start()
            ready.wait()

    def end(self) -> None:
        """End the team, if it is there."""
        if self._release is not None and self._thread is not None:
            self._release.set()
            self._thread.join()
            self._release = self._thread = None

    def _stay(self, release: threading.Event, ready: threading.Event) -> None:
        # A team belongs to the thread that made it and lasts as long; free(NULL) is its work.
        self._library.GOMP_parallel(ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p), None, self._cores + 1, 0)
        ready.set()
        release.wait()


@contextmanager
def sharing_cores(threads: int) -> Iterator[None]:
    """Context manager: while other processes want the cores, the ``threads`` of this one sleep instead of spinning.

    Results and the number of threads stay. Does nothing for one thread, or without Linux and GNU's OpenMP.
    """
    library = _gnu_openmp() if threads > 1 else None
    if library is None:
        yield
        return
    team, over = IdleTeam(library, os.cpu_count() or 1), threading.Event()
    watcher = threading.Thread(target=_watch, args=(team, over), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        team.end()


def _gnu_openmp() -> ctypes.CDLL | None:
    """Return the GNU OpenMP library this process has loaded, with torch; None if there is none."""
    if sys.platform != "linux" or not TASKS.is_dir():
        return None
    with suppress(OSError, StopIteration, AttributeError):
        lines = Path("/proc/self/maps").read_text().splitlines()
        library = ctypes.CDLL(next(line.split(maxsplit=5)[5] for line in lines if "libgomp" in line))
        library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        library.GOMP_parallel.restype = None
        return library
    return None


def _watch(team: IdleTeam, over: threading.Event) -> None:
    mode, before = Mode(), _seconds_waited()
    while not over.wait(INTERVAL):
        now = _seconds_waited()
        (team.begin if mode.look((now - before) / INTERVAL) else team.end)()
        before = now


def _seconds_waited() -> float:
    """Return how long the threads of this process have waited for a core, all together."""
    total = 0
    for task in TASKS.iterdir():
        with suppress(OSError, ValueError, IndexError):
            total += int((task / "schedstat").read_text().split()[1])
    return total / 1e9
