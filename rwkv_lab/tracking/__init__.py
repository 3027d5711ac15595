"""Experiment trackers: what a run reports elsewhere, at no cost to the run.

A process of its own follows metrics.csv and feeds the tracker, so that nothing the tracker does, or fails to do, can
stop the run or hold it up: the run waits for it at its end only, and no longer than ``FINISH_SECONDS``. Imports neither
a tracker's library nor torch.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from rwkv_lab.config.kinds import TrackerConfig
from rwkv_lab.runs import Run
from rwkv_lab.tracking.tracker import settings_of
from rwkv_lab.util.console import warn
from rwkv_lab.util.paths import IMPORT_ROOT, as_typed

FINISH_SECONDS = 10
STOPPED_SECONDS = 0.5


@contextlib.contextmanager
def log_in_background(folder: Path, step: int) -> Iterator[None]:
    """Context manager: streams metrics after ``step`` of the run in ``folder`` to the tracker in its config.yaml.

    config.yaml, run.json and metrics.csv must be there. Left by an exception, as by a stopped run, it waits a moment
    only; the tracker then finishes by itself.
    """
    settings = settings_of(Run(folder))
    if not settings.active:
        yield
        return
    follower = _follow(folder, step, settings.name)
    warnings = threading.Thread(target=_pass_on_warnings, args=(follower,), daemon=True)
    warnings.start()
    patience: float = STOPPED_SECONDS
    try:
        yield
        patience = FINISH_SECONDS
    finally:
        if follower is not None:
            _finish(follower, patience, remedy(settings, folder), settings.name)
            # Its last words may be on their way; a tracker's own service, should it stay behind, keeps the pipe open.
            warnings.join(STOPPED_SECONDS)


def command(*arguments: str) -> list[str]:
    """Return the command of a process that feeds a tracker."""
    return [sys.executable, "-m", "rwkv_lab.tracking", *arguments]


def start(arguments: Sequence[str], stdin: int = subprocess.DEVNULL) -> subprocess.Popen:
    """Start ``arguments``, a command that feeds a tracker, in the folder of the code; its output is piped as text."""
    # A session of its own: Ctrl-C in the terminal is the run's affair.
    return subprocess.Popen(
        arguments,
        cwd=IMPORT_ROOT,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )


def _follow(folder: Path, step: int, name: str) -> subprocess.Popen | None:
    try:
        return start(command("follow", str(folder.absolute()), "--after", str(step)), subprocess.PIPE)
    except OSError as error:
        warn(f"{name} could not be started ({error.strerror}); metrics.csv has everything")
        return None


def _pass_on_warnings(follower: subprocess.Popen | None) -> None:
    if follower is None or follower.stdout is None:
        return
    for line in follower.stdout:
        warn(line.strip())


def _finish(follower: subprocess.Popen, patience: float, left: str, name: str) -> None:
    assert follower.stdin is not None
    # The closed pipe tells it that the run has ended, as the run's death would.
    with contextlib.suppress(OSError):
        follower.stdin.close()
    try:
        follower.wait(patience)
    except subprocess.TimeoutExpired:
        if patience < FINISH_SECONDS:
            return
        end(follower)
        warn(f"{name} did not finish within {FINISH_SECONDS} s; {left}")


def remedy(settings: TrackerConfig, folder: Path) -> str:
    """Return what to do about rows a tracker did not get."""
    if settings.uploading(folder) is None:
        return "metrics.csv has everything"
    return as_typed(f"nothing is lost, 'python -m rwkv_lab.tracking sync {folder.parent.name}' uploads it")


def end(process: subprocess.Popen) -> None:
    """End a process that was started in a session of its own, with all it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
