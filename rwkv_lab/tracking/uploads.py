"""uploaded.json in a run directory: what of the run a tracker's server has acknowledged."""

import json
from dataclasses import asdict, dataclass

from rwkv_lab.runs import Run, last_step
from rwkv_lab.util.io import write_json

NAME = "uploaded.json"


@dataclass(frozen=True)
class Uploaded:
    """How far the server has followed a run."""

    started: str | None = None  # when the run was started: a run begun afresh has uploaded nothing
    step: int = 0  # last row
    status: str | None = None  # of the run then


def read(run: Run) -> Uploaded:
    """Return what was uploaded of ``run``; nothing if the note is missing, damaged or of an earlier attempt."""
    try:
        noted = Uploaded(**json.loads((run.path / NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return Uploaded()
    started_then = noted.started == run.manifest.get("started")
    return noted if started_then and isinstance(noted.step, int) else Uploaded()


def write(run: Run, step: int) -> None:
    """Note that the server has every row up to ``step`` and the run's present status."""
    write_json(run.path / NAME, asdict(Uploaded(run.manifest.get("started"), step, run.status)))


def is_whole(run: Run) -> bool:
    """Return whether the server has every row of ``run`` and its present status."""
    noted = read(run)
    return noted.status == run.status and noted.step >= last_step(run.path / "metrics.csv")
