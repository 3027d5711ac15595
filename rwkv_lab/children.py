"""A job's own process: started so that it ends with its parent, stopped so that it can save a checkpoint first."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from rwkv_lab.runs.provenance import usable_cores

_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """Asks the kernel for SIGTERM when the parent dies, so that a hard-killed sweep leaves no job behind (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def run_child(command: Sequence[str], jobs_at_once: int, quiet: bool) -> int:
    """Runs ``command`` and returns its exit code, negative for the signal that ended it.

    The child shares the machine with ``jobs_at_once - 1`` others, so it gets that share of the cores. Ctrl-C
    reaches the child from the terminal; SIGTERM is passed on; either way the child may finish saving. A quiet child
    shows errors only.
    """
    environment = dict(os.environ)
    if jobs_at_once > 1:
        environment["OMP_NUM_THREADS"] = str(max(1, usable_cores() // jobs_at_once))
    stopped = False
    child = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL if quiet else None,
        stdin=subprocess.DEVNULL,
        env=environment,
        preexec_fn=_end_with_parent,
    )

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        if number == signal.SIGTERM:
            child.terminate()

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 130 if stopped else code
