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
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rwkv_lab.config.kinds import TrackerConfig
from rwkv_lab.runs import Run
from rwkv_lab.tracking.tracker import settings_of
from rwkv_lab.util.console import warn
from rwkv_lab.util.paths import IMPORT_ROOT, as_typed

FINISH_SECONDS = 10
STOPPED_SECONDS = 0.5
FORECAST_FROM = 0.1  # share of a run from which its final loss is forecast
FORECAST_SHARE = 0.01  # of the run's time that forecasts may take
FORECAST_START = 1.0  # CPU seconds until the first forecast
FORECAST_SECONDS = 2.0  # between two looks


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


class LiveForecast:
    """The forecast of a run's final loss, made by a process of its own once a tenth of the run is done.

    That process takes at most a hundredth of the run's time, so that a run of less than about two minutes has none; it
    writes forecast.json, and the run never waits for it.
    """

    def __init__(self, folder: Path, total: int, step: int) -> None:
        self._folder, self._total, self._first = folder, total, step
        self._began = self._looked = time.monotonic()
        self._process: subprocess.Popen | None = None
        self._text, self._failed = "", False

    def note(self, step: int) -> str:
        """Return the forecast for the progress line, empty without one; looks for a new one every two seconds."""
        now = time.monotonic()
        if now - self._looked >= FORECAST_SECONDS:
            self._looked = now
            expected = (now - self._began) / max(step - self._first, 1) * self._total
            if self._process is None and not self._failed and begins(step / self._total, expected):
                self._start()
            if self._process is not None:
                found = Run(self._folder).forecast
                self._text = f"  forecast {found['loss']:.3f} ({found['low']:.3f}–{found['high']:.3f})" if found else ""
        return self._text

    def _start(self) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "analysis", "forecast", str(self._folder.absolute()), "--follow"],
                cwd=IMPORT_ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            self._failed = True
            warn(f"the final loss is not forecast ({error.strerror})")

    def close(self) -> None:
        """End the process; forecast.json stays as it wrote it last."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(STOPPED_SECONDS)
        except subprocess.TimeoutExpired:
            end(self._process)


def affordable(done: float, expected: float) -> float:
    """Return the CPU seconds that forecasts may have taken once the share ``done`` of ``expected`` seconds is over."""
    return FORECAST_SHARE * expected * (0.3 + 0.7 * done)


def begins(done: float, expected: float) -> bool:
    """Return whether the process that forecasts is worth its start."""
    return FORECAST_FROM <= done < 1 and affordable(done, expected) >= FORECAST_START
