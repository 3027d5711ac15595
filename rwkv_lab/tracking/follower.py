"""The processes that feed a tracker: one follows a run while it trains, one uploads what a server lacks."""

import contextlib
import signal
import sys
import threading
from pathlib import Path

from rwkv_lab.config.kinds import TrackerConfig
from rwkv_lab.runs import Run
from rwkv_lab.tracking import FINISH_SECONDS, remedy, uploads
from rwkv_lab.tracking.tracker import Replay, Tracker, Undelivered, reason, settings_of

LOOK_SECONDS = 0.5


def follow(folder: Path, after: int) -> None:
    """Feed the tracker with the rows behind update ``after`` of the run in ``folder`` until standard input closes.

    Rows up to there belong to an earlier session; a server gets those it lacks. What goes wrong is one line on
    standard output, which the run shows as a warning.
    """
    run, ended = Run(folder), threading.Event()
    threading.Thread(target=_watch, args=(ended,), daemon=True).start()
    settings, tracker = _open(run, settings_of(run), after)
    if tracker is None:
        return
    try:
        replay = Replay(run, tracker, min(after, uploads.read(run).step) if settings.remote else after)
        while not ended.wait(LOOK_SECONDS):
            replay.send()
        send_rest(Run(folder), replay, tracker, settings)
    except Undelivered as refused:
        print_line(f"{settings.name}: the server did not take the rows ({refused}); {remedy(settings, folder)}")
    except Exception as error:
        print_line(f"{settings.name} stopped working ({reason(error)}); metrics.csv has everything")


def upload(folder: Path, settings: TrackerConfig) -> str | None:
    """Send to the server what it lacks of a run that is not training; return why that failed, None if it did not."""
    run = Run(folder)
    try:
        after = uploads.read(run).step
        tracker = settings.open(run, after)
        send_rest(run, Replay(run, tracker, after), tracker, settings)
    except Exception as error:
        return reason(error)
    return None


def send_rest(run: Run, replay: Replay, tracker: Tracker, settings: TrackerConfig) -> None:
    """Send the rows that are left and the result, and note what a server has acknowledged."""
    replay.send()
    tracker.close(run)
    if settings.remote:
        uploads.write(run, replay.last)


def print_line(text: str) -> None:
    """Print one line for the run; nobody may be listening any more."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


def _watch(ended: threading.Event) -> None:
    """Wait for the run to close the pipe, by ending or by dying; from then on this process has little time."""
    sys.stdin.read()
    # Unhandled, the alarm ends the process whatever the tracker is waiting for.
    signal.alarm(FINISH_SECONDS)
    ended.set()


def _open(run: Run, settings: TrackerConfig, after: int) -> tuple[TrackerConfig, Tracker | None]:
    """Return the tracker with the settings it was opened by, offline ones if the given ones fail."""
    try:
        return settings, settings.open(run, after)
    except Exception as error:
        offline = settings.offline()
        left = "going on offline" if offline else "going on without it; metrics.csv has everything"
        print_line(f"{settings.name} could not start ({reason(error)}); {left}")
    return _open(run, offline, after) if offline else (settings, None)
