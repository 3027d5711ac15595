"""Experiment trackers: what a run reports elsewhere, at no cost to the run.

A process of its own follows metrics.csv and feeds the tracker, so that nothing the tracker does, or fails to do, can
stop the run or hold it up: the run waits for it at its end only, and no longer than ``FINISH_SECONDS``. Imports neither
wandb nor torch.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from rwkv_lab.tracking.config import TrackerConfig
from rwkv_lab.util.console import warn
from rwkv_lab.util.paths import REPOSITORY

FINISH_SECONDS = 10
STOPPED_SECONDS = 0.5


@contextlib.contextmanager
def following(settings: TrackerConfig, folder: Path, step: int) -> Iterator[None]:
    """A context in which the configured tracker hears of the rows behind update ``step`` of the run in ``folder``.

    config.yaml, run.json and metrics.csv must be there. Whoever leaves the context by an exception, as a stopped run
    does, waits a moment only; the tracker then finishes by itself.
    """
    if settings.name == "none" or settings.mode == "disabled":
        yield
        return
    follower = _start(settings, folder, step)
    warnings = threading.Thread(target=_pass_on_warnings, args=(follower,), daemon=True)
    warnings.start()
    patience: float = STOPPED_SECONDS
    try:
        yield
        patience = FINISH_SECONDS
    finally:
        if follower is not None:
            _finish(follower, patience, folder)
            # Its last words may be on their way; wandb's own service, should it stay behind, keeps the pipe open.
            warnings.join(STOPPED_SECONDS)


def follow_command(folder: Path, place: Path, step: int) -> list[str]:
    """What starts the process that feeds the tracker, in the repository."""
    follow = [sys.executable, "-m", "rwkv_lab.tracking", "follow", str(folder)]
    return [*follow, "--place", str(place), "--after", str(step)]


def _start(settings: TrackerConfig, folder: Path, step: int) -> subprocess.Popen | None:
    place = Path(settings.folder).absolute() if settings.folder else folder
    try:
        # A session of its own: Ctrl-C in the terminal is the run's affair.
        follower = subprocess.Popen(
            follow_command(folder.absolute(), place, step),
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
    except OSError as error:
        warn(f"the tracker could not be started ({error.strerror}); metrics.csv has everything")
        return None
    return follower


def _pass_on_warnings(follower: subprocess.Popen | None) -> None:
    if follower is None or follower.stdout is None:
        return
    for line in follower.stdout:
        warn(line.strip())


def _finish(follower: subprocess.Popen, patience: float, folder: Path) -> None:
    assert follower.stdin is not None
    # The closed pipe tells it that the run has ended, as the run's death would.
    with contextlib.suppress(OSError):
        follower.stdin.close()
    try:
        follower.wait(patience)
    except subprocess.TimeoutExpired:
        if patience < FINISH_SECONDS:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(follower.pid, signal.SIGKILL)
        warn(
            f"wandb did not finish within {FINISH_SECONDS} s; nothing is lost, "
            f"'python -m rwkv_lab.tracking sync {folder.parent.name}' uploads it"
        )
