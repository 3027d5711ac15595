"""What of a run a server has: ``uploaded.json`` in the run directory."""

import json
from dataclasses import asdict, dataclass

from rwkv_lab.runs import Run
from rwkv_lab.util.paths import write_json

NAME = "uploaded.json"


@dataclass(frozen=True)
class Uploaded:
    """How far the server has followed a run."""

    started: str | None = None  # when the run was started: a run begun afresh has uploaded nothing
    step: int = 0  # last row
    status: str | None = None  # of the run then


def read(run: Run) -> Uploaded:
    """What was uploaded of ``run``; nothing where the note is missing, damaged or of an earlier attempt."""
    try:
        noted = Uploaded(**json.loads((run.path / NAME).read_text()))
    except (OSError, ValueError, TypeError):
        return Uploaded()
    return noted if noted.started == run.manifest.get("started") else Uploaded()


def write(run: Run, step: int) -> None:
    write_json(run.path / NAME, asdict(Uploaded(run.manifest.get("started"), step, run.status)))


def is_whole(run: Run) -> bool:
    """Whether the server has every row of ``run`` and its present status."""
    noted = read(run)
    steps = run.metrics().get("step", ())
    return noted.status == run.status and noted.step >= max(steps, default=0)
