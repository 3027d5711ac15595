"""A job's own process: started so that it ends with its parent, stopped so that it can save a checkpoint first."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import IO

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    code: int  # exit code, negative for the signal that ended it
    stopped: bool  # because its parent was told to stop
    last_words: str  # its last line on standard error

    @property
    def reason(self) -> str:
        """One sentence on a child that failed without saying why in its run directory."""
        if self.code < 0:
            return killed_by(-self.code)
        return self.last_words.removeprefix("error: ") or f"exit code {self.code}"


def killed_by(number: int) -> str:
    """``killed by SIGKILL, perhaps for want of memory``."""
    name = signal.Signals(number).name
    return f"killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")


def end_with_parent(parent: int | None = None) -> None:
    """Asks the kernel for SIGTERM when the parent dies, so that nothing goes on behind a hard-killed one (Linux).

    Raises KeyboardInterrupt, as the signal would, where ``parent`` has died before.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent is not None and os.getppid() != parent:
        raise KeyboardInterrupt


def run_child(command: Sequence[str], extra: Mapping[str, str], quiet: bool) -> Ended:
    """Runs ``command`` with ``extra`` environment variables and waits for it.

    The child is a process group of its own: Ctrl-C in the terminal and SIGTERM reach it through here, once each, as
    SIGTERM, and it may finish saving. ``quiet`` drops its standard output.
    """
    stopped = False
    child = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL if quiet else None,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **extra},
        process_group=0,
        preexec_fn=end_with_parent,
    )

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        child.terminate()

    main_thread = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if main_thread else ()
    before = {number: signal.signal(number, stop) for number in numbers}
    words: deque[str] = deque(maxlen=1)
    assert child.stderr is not None
    reader = threading.Thread(target=_pass_on, args=(child.stderr, words), daemon=True)
    reader.start()
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    # A process the child left behind may keep its standard error open.
    reader.join(timeout=1)
    return Ended(code, stopped, words[0] if words else "")


def _pass_on(stream: IO[bytes], words: deque[str]) -> None:
    for raw in stream:
        line = raw.decode(errors="replace")
        sys.stderr.write(line)
        sys.stderr.flush()
        if line.strip():
            words.append(line.strip())
