"""Uploads what a server does not have yet by replaying metrics.csv.

Not wandb's own files: an offline run that was resumed leaves several, and they overlap.
"""

from pathlib import Path
from typing import NamedTuple

from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import Run
from rwkv_lab.tracking import uploads, wandb


class Synced(NamedTuple):
    """What became of one run: uploaded, whole (already there), running (left for later), unreadable or failed."""

    run: Run
    outcome: str
    reason: str | None = None


def sync(run: Run, place: Path, mode: str = "online", project: str | None = None, entity: str | None = None) -> Synced:
    """Replays ``run`` into wandb, from the first row the server lacks; wandb's files go to ``place``."""
    try:
        if run.status == "running":
            return Synced(run, "running")
    except UserError as mistake:
        return Synced(run, "unreadable", str(mistake))
    if uploads.is_whole(run):
        return Synced(run, "whole")
    try:
        opened = wandb.open_run(run, mode, place, project, entity)
        known = uploads.read(run).step
        last = wandb.log(opened, wandb.rows_after(run, known)) or known
        wandb.close(opened, run)
    except Exception as error:
        return Synced(run, "failed", wandb.reason(error))
    if mode == "online":
        uploads.write(run, last)
    return Synced(run, "uploaded")
