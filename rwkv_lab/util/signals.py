"""Stopping on request: Ctrl-C, SIGTERM as clusters send it, and the hang-up of the terminal."""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType

# One request reaches a process of a sweep or of torchrun by several ways: the terminal, its parent, its parent's death.
SAME_REQUEST_SECONDS = 2.0
STOPPED = 130  # exit code
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):
    """The run was asked to stop and has saved the checkpoint of ``step``."""

    def __init__(self, step: int):
        super().__init__(f"stopped at step {step}")
        self.step = step


def interrupt() -> None:
    """Raise KeyboardInterrupt, as Ctrl-C does."""
    raise KeyboardInterrupt


def end_process() -> None:
    """End the process at once, whatever its threads wait for."""
    os._exit(STOPPED)


class StopSignals:
    """Context manager that handles requests to stop.

    first     called at the first request; None only sets ``requested``
    again     called at a later one, ``SAME_REQUEST_SECONDS`` after the first or more; None restores what was in force
              before and repeats the signal
    lasting   left by this exception, the handlers stay in force: the same request may still be on its way

    Only the main thread can handle signals; in another one nothing changes. SIGHUP stays ignored under nohup.

        with StopSignals():                                    # SIGTERM and SIGHUP like Ctrl-C
        with StopSignals(again=end_process):                   # Ctrl-C once, then the end
        with StopSignals(None, None, lasting=Stopped) as stop: # poll stop.requested
        with StopSignals(child.terminate, child.terminate):    # pass the request on
    """

    def __init__(
        self,
        first: Callable[[], None] | None = interrupt,
        again: Callable[[], None] | None = interrupt,
        lasting: type[BaseException] | tuple[()] = (),
        signals: Sequence[signal.Signals] = SIGNALS,
    ) -> None:
        self.requested = False
        self._first, self._again, self._lasting, self._signals = first, again, lasting, signals
        self._asked = 0.0
        self._before: dict[signal.Signals, object] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self._note()
            if self._first is not None:
                self._first()
        elif time.monotonic() - self._asked > SAME_REQUEST_SECONDS:
            if self._again is not None:
                self._again()
            else:
                self._restore()
                signal.raise_signal(number)

    def _note(self) -> None:
        self.requested, self._asked = True, time.monotonic()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                under_nohup = number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN
                if not under_nohup:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if not isinstance(value, self._lasting):
            self._restore()
        elif not self.requested:
            # Another process of the run was asked first.
            self._note()
