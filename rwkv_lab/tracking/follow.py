"""The process that feeds the tracker: reads metrics.csv as it grows, until the run that started it has ended."""

import contextlib
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from rwkv_lab import tracking
from rwkv_lab.runs import Run
from rwkv_lab.tracking import uploads, wandb_run

LOOK_SECONDS = 0.5


def follow(folder: Path, place: Path, step: int) -> None:
    """Feeds the tracker with the rows behind update ``step`` of the run in ``folder`` until standard input closes.

    Earlier rows belong to an earlier session: offline they are in its own wandb run. wandb's files go to ``place``.
    What goes wrong is one line on standard output, which the run shows as a warning.
    """
    ended = threading.Event()
    threading.Thread(target=_watch, args=(ended,), daemon=True).start()
    run = Run(folder)
    opened, mode = _open(run, place)
    if opened is None:
        return
    last = min(step, uploads.read(run).step) if mode == "online" else step
    try:
        over = False
        while not over:
            over = ended.wait(LOOK_SECONDS)
            last = wandb_run.log(opened, wandb_run.rows_after(run, last)) or last
        run = Run(folder)
        wandb_run.close(opened, run)
        if mode == "online":
            uploads.write(run, last)
    except Exception as error:
        say(f"wandb stopped working ({_reason(error)}); metrics.csv has everything")


def say(text: str) -> None:
    """One line to the run; nobody may be listening any more."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


def _watch(ended: threading.Event) -> None:
    """Waits for the run to close the pipe, by ending or by dying; from then on this process has little time."""
    sys.stdin.read()
    # Unhandled, the alarm ends the process whatever wandb is waiting for.
    signal.alarm(int(tracking.FINISH_SECONDS))
    ended.set()


def _open(run: Run, place: Path) -> tuple[Any, str]:
    wanted = run.config["tracker"]["mode"]
    for mode in dict.fromkeys((wanted, "offline")):
        try:
            return wandb_run.open_run(run, mode, place), mode
        except Exception as error:
            left = "going on offline" if mode == "online" else "going on without it; metrics.csv has everything"
            say(f"wandb could not start in mode {mode} ({_reason(error)}); {left}")
    return None, "none"


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0].rstrip(".") if lines else type(error).__name__)[:200]
