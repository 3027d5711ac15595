"""What a tracker does, and how the rows of a run reach one."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rwkv_lab.config import registry
from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import instance, validate
from rwkv_lab.config.kinds import TrackerConfig
from rwkv_lab.runs import Run
from rwkv_lab.runs.metrics import OBSERVATIONS, RowReader, read_observations

FORECAST = ("loss", "low", "high")


class Undelivered(Exception):
    """The tracker's server did not accept what it was sent; the message gives the server's reason."""


class Tracker(Protocol):
    """An open tracker."""

    def log(self, row: Mapping[str, float]) -> None:
        """Record a row: its columns, and ``flops`` spent so far where known."""

    def observe(self, line: Mapping[str, Any]) -> None:
        """Record a line of observations.jsonl, whose step is that of the row recorded next."""

    def close(self, run: Run) -> None:
        """Record status and result of ``run`` and deliver everything; raise Undelivered if a server refused."""


@runtime_checkable
class Observes(Protocol):
    """Settings of a tracker that wants more than rows at every evaluation."""

    @property
    def watches_weights(self) -> bool:
        """Return whether the run writes half-lives and gradient norms by layer."""

    @property
    def sample_tokens(self) -> int:
        """Return how many tokens of text the run writes."""


@runtime_checkable
class Publishes(Protocol):
    """Settings of a tracker that takes comparisons."""

    def publish(self, folder: Path, title: str) -> str:
        """Record the tables, figures and page of ``folder``; return where. UserError if that fails."""


class Replay:
    """Sends a run's rows to a tracker as metrics.csv grows."""

    def __init__(self, run: Run, tracker: Tracker, after: int):
        self.last = after  # step of the last row sent
        self._run, self._tracker = run, tracker
        self._waiting: list[dict[str, Any]] = []
        self._reader = RowReader(run.path / "metrics.csv")
        self._flops_per_token = run.manifest.get("flops_per_token")

    def send(self) -> None:
        """Send the rows that were added since the call before."""
        rows = [row for row in self._reader.new() if row.get("step", 0) > self.last]
        for row in rows:
            self.last = int(row["step"])
            for line in self._observed(self.last):
                self._tracker.observe(line)
            if self._flops_per_token and "tokens" in row:
                row["flops"] = row["tokens"] * self._flops_per_token
            # The newest row is the one that the forecast as it stands is of.
            forecast = self._run.forecast if row is rows[-1] else {}
            self._tracker.log(row | {f"forecast_{name}": forecast[name] for name in FORECAST if name in forecast})

    def _observed(self, step: int) -> list[dict[str, Any]]:
        """Return the observations of update ``step``, which are written before its row."""
        if not self._waiting:
            self._waiting = [line for line in read_observations(self._run.path / OBSERVATIONS) if line["step"] >= step]
        found = [line for line in self._waiting if line["step"] == step]
        self._waiting = [line for line in self._waiting if line["step"] > step]
        return found


def settings_of(run: Run) -> TrackerConfig:
    """Return the tracker settings a run was started with; fields this version does not have are left out.

    Raises UserError if config.yaml has none that can be used.
    """
    stored = run.config.get("tracker")
    if not isinstance(stored, dict):
        raise UserError(f"{run.path / 'config.yaml'} has no tracker group")
    owner = registry.get("tracker", str(stored.get("name")), "tracker.name")
    known = [field.name for field in dataclasses.fields(owner)]
    try:
        settings: TrackerConfig = instance(owner, {key: value for key, value in stored.items() if key in known})
    except TypeError as error:
        raise UserError(f"{run.path / 'config.yaml'}: the tracker group cannot be read ({error})") from None
    validate(settings, "tracker.")
    return settings


def reason(error: Exception) -> str:
    """Return an error in one short line: the first of its message, or the one behind pydantic's heading."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    detail = ": ".join(lines[1:3]).partition(" [type=")[0] if "validation error" in lines[0] else lines[0]
    return (detail or lines[0]).rstrip(".")[:200]


def writable(folder: Path) -> Path:
    """Return ``folder``, made if it is missing; OSError if it cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".probe"
    probe.touch()
    probe.unlink()
    return folder
