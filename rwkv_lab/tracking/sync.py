"""Uploading what a server does not have yet by replaying metrics.csv.

Not a tracker's own files: an offline run that was resumed leaves several, and they overlap.
"""

import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import Run
from rwkv_lab.tracking import command, end, start, uploads
from rwkv_lab.tracking.tracker import settings_of

SHOW_SECONDS = 5.0


class Synced(NamedTuple):
    """What became of one run.

    uploaded, whole (already there), running (left for later), untracked (its tracker is off or has no server),
    unreadable or failed
    """

    run: Run
    outcome: str
    reason: str | None = None


def sync(
    run: Run, folder: Path, changed: Mapping[str, str], limit: float, show: Callable[[float], None] = lambda _: None
) -> Synced:
    """Send ``run`` to its tracker's server, from the first row the server lacks, in at most ``limit`` seconds.

    The tracker's files go to ``folder``; ``changed`` stands in for some of its settings; ``show`` gets the seconds so
    far now and then.
    """
    try:
        if settings_of(run).uploading(folder) is None:
            return Synced(run, "untracked")
        if run.status == "running":
            return Synced(run, "running")
    except UserError as mistake:
        return Synced(run, "unreadable", str(mistake))
    if uploads.is_whole(run):
        return Synced(run, "whole")
    options = [f"--{key}={value}" for key, value in changed.items()]
    # A process of its own can be ended whatever the tracker's library waits for.
    process = start(command("upload", str(run.path), f"--folder={folder}", *options))
    began = time.monotonic()
    while process.poll() is None:
        seconds = time.monotonic() - began
        if seconds > limit:
            end(process)
            return Synced(run, "failed", f"the server did not take everything within {limit:g} s")
        try:
            process.wait(min(SHOW_SECONDS, limit))
        except subprocess.TimeoutExpired:
            show(time.monotonic() - began)
        except BaseException:
            end(process)
            raise
    assert process.stdout is not None
    words = process.stdout.readline().strip()
    return Synced(run, "uploaded") if process.returncode == 0 else Synced(run, "failed", words or "the upload ended")
