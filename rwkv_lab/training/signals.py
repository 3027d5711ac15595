"""Stopping on request: the first Ctrl-C, SIGTERM or hang-up of the terminal sets a flag, the second acts at once."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType


class Stopped(Exception):
    """The run was asked to stop and has saved a checkpoint."""


# One request reaches a process of a sweep or of torchrun by several ways: the terminal, its parent, its parent's death.
SAME_REQUEST_SECONDS = 2.0
STOPPED = 130  # exit code
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _hung_up_ignored(number: int) -> bool:
    """Whether the process was started by nohup, which wants SIGHUP ignored."""
    return number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


@contextmanager
def like_ctrl_c() -> Iterator[None]:
    """A context in which SIGTERM, as clusters send it, and SIGHUP raise KeyboardInterrupt as Ctrl-C does."""
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if not _hung_up_ignored(number)]
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def one_request() -> Iterator[None]:
    """A context in which a request to stop raises KeyboardInterrupt and a later one ends the process."""
    asked: float | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked is None:
            asked = time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - asked > SAME_REQUEST_SECONDS:
            # Threads that were to end what is waited for would keep Python from ending.
            os._exit(STOPPED)

    handlers = {number: signal.signal(number, stop) for number in SIGNALS if not _hung_up_ignored(number)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class StopRequest:
    """A context in which the first of ``SIGNALS`` only sets ``requested``; left by ``Stopped``, it stays in force."""

    def __init__(self) -> None:
        self.requested = False
        self._asked = 0.0
        self._before: dict[int, object] = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested, self._asked = True, time.monotonic()
        elif time.monotonic() - self._asked > SAME_REQUEST_SECONDS:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            if not _hung_up_ignored(number):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not Stopped:
            self._restore()
        elif not self.requested:
            # Another process of the run was asked first; the same request is on its way to this one.
            self.requested, self._asked = True, time.monotonic()
