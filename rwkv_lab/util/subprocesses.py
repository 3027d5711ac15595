"""A child process that ends with its parent, and that may save a checkpoint when it is asked to stop."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from rwkv_lab.util.signals import StopSignals

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    code: int  # exit code, negative for the signal that ended it
    stopped: bool  # because its parent was told to stop
    last_line: str  # the last one on standard error

    @property
    def reason(self) -> str:
        """One sentence on a child that failed without recording why in its run directory."""
        if self.code < 0:
            return killed_by(-self.code)
        return self.last_line.removeprefix("error: ") or f"exit code {self.code}"


def killed_by(number: int) -> str:
    """Return ``killed by SIGKILL, perhaps out of memory``."""
    name = signal.Signals(number).name
    return f"killed by {name}" + (", perhaps out of memory" if name == "SIGKILL" else "")


def end_with_parent(parent: int | None = None) -> None:
    """Ask the kernel for SIGTERM when the parent dies, so that a hard-killed parent leaves nothing running (Linux).

    Raises KeyboardInterrupt, as the signal would, if ``parent`` has died before.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent is not None and os.getppid() != parent:
        raise KeyboardInterrupt


def run_child(command: Sequence[str], extra: Mapping[str, str], quiet: bool) -> Ended:
    """Run ``command`` with ``extra`` environment variables and wait for it.

    The child is a process group of its own: Ctrl-C in the terminal and SIGTERM reach it through this process, as
    SIGTERM, and it may finish saving. ``quiet`` drops its standard output.
    """
    child = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL if quiet else None,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **extra},
        process_group=0,
        preexec_fn=end_with_parent,
    )
    last: deque[str] = deque(maxlen=1)
    assert child.stderr is not None
    reader = threading.Thread(target=pass_on, args=(child.stderr, last), daemon=True)
    reader.start()
    with StopSignals(child.terminate, child.terminate) as stop:
        code = child.wait()
    # A process the child left behind may keep its standard error open.
    reader.join(timeout=1)
    return Ended(code, stop.requested, last[0] if last else "")


def pass_on(stream: IO[bytes], last: deque[str]) -> None:
    """Copy ``stream`` to standard error; ``last`` keeps its last line that is not empty."""
    for raw in stream:
        line = raw.decode(errors="replace")
        sys.stderr.write(line)
        sys.stderr.flush()
        if line.strip():
            last.append(line.strip())
