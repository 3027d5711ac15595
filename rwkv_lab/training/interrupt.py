"""Stopping on request: the first Ctrl-C or SIGTERM sets a flag, the second acts at once."""

import signal
import time
from types import FrameType, TracebackType


class Stopped(Exception):
    """The run was asked to stop and has saved a checkpoint."""


# One request reaches a process of a sweep or of torchrun by several ways: the terminal, its parent, its parent's death.
SAME_REQUEST_SECONDS = 2.0


class StopRequest:
    """A context in which the first SIGINT or SIGTERM only sets ``requested``."""

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
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()
