"""The process that feeds the tracker: reads metrics.csv as it grows, until the run that started it has ended."""

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rwkv_lab.runs import Run
from rwkv_lab.tracking import FINISH_SECONDS, follow_command, uploads, wandb

LOOK_SECONDS = 0.5
OPENING_SECONDS = 4.0  # for a server that has not answered yet when the run ends


def follow(folder: Path, place: Path, step: int, mode: str | None = None) -> None:
    """Feeds the tracker with the rows behind update ``step`` of the run in ``folder`` until standard input closes.

    Earlier rows belong to an earlier session: offline they are in its own wandb run. wandb's files go to ``place``.
    What goes wrong is one line on standard output, which the run shows as a warning. ``mode`` stands in for the run's.
    """
    run = Run(folder)
    mode = mode or str(run.config["tracker"]["mode"])
    ended, opening = threading.Event(), threading.Event()
    offline = functools.partial(_begin_again_offline, folder, place, step) if mode == "online" else None
    threading.Thread(target=_watch, args=(ended, opening, offline), daemon=True).start()
    opened = _open(run, mode, place)
    opening.set()
    if opened is None and offline is not None:
        offline()
    if opened is None:
        return
    last = min(step, uploads.read(run).step) if mode == "online" else step
    try:
        over = False
        while not over:
            over = ended.wait(LOOK_SECONDS)
            last = wandb.log(opened, wandb.rows_after(run, last)) or last
        run = Run(folder)
        wandb.close(opened, run)
        if mode == "online":
            uploads.write(run, last)
    except Exception as error:
        say(f"wandb stopped working ({wandb.reason(error)}); metrics.csv has everything")


def say(text: str) -> None:
    """One line to the run; nobody may be listening any more."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


def _watch(ended: threading.Event, opening: threading.Event, offline: Callable[[], None] | None) -> None:
    """Waits for the run to close the pipe, by ending or by dying; from then on this process has little time."""
    sys.stdin.read()
    # Unhandled, the alarm ends the process whatever wandb is waiting for; it outlives a new beginning.
    signal.alarm(FINISH_SECONDS)
    ended.set()
    if offline is not None and not opening.wait(OPENING_SECONDS):
        say("wandb did not answer before the run ended; going on offline")
        offline()


def _begin_again_offline(folder: Path, place: Path, step: int) -> None:
    """Replaces this process: the wandb service that has failed to start the run keeps the run's id to itself."""
    fresh = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    os.execve(sys.executable, [*follow_command(folder, place, step), "--mode", "offline"], fresh)


def _open(run: Run, mode: str, place: Path) -> Any:
    try:
        return wandb.open_run(run, mode, place)
    except Exception as error:
        left = "going on offline" if mode == "online" else "going on without it; metrics.csv has everything"
        say(f"wandb could not start in mode {mode} ({wandb.reason(error)}); {left}")
        return None
