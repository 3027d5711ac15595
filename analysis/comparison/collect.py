"""Reads run directories into records, whatever state they are in: no run is ever dropped."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import Run, find

STATUSES = ("complete", "stale", "running", "interrupted", "failed", "unreadable")
FINISHED = ("complete", "stale")


@dataclass(frozen=True)
class Record:
    """One run as the comparison sees it. ``status`` is one of ``STATUSES``; ``columns`` those of metrics.csv."""

    path: Path
    status: str
    reason: str = ""  # why it failed, is stale or cannot be read
    manifest: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    sample: str = ""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def study(self) -> str:
        return self.path.parent.name

    @property
    def finished(self) -> bool:
        """Whether its result counts: it ran to its end, by this code or another."""
        return self.status in FINISHED

    @property
    def seed(self) -> Any:
        return self.config.get("seed")

    def fact(self, *keys: str) -> Any:
        """A value of the manifest, ``fact("result", "val_bpb")``; None where it is not there."""
        value: Any = self.manifest
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def number(self, *keys: str) -> float:
        """A number of the manifest, NaN where there is none."""
        value = self.fact(*keys)
        return float(value) if isinstance(value, (int, float)) else float("nan")

    def column(self, name: str) -> np.ndarray:
        """A column of metrics.csv, all NaN where the file has none of that name."""
        if name in self.columns:
            return self.columns[name]
        length = len(next(iter(self.columns.values()), ()))
        return np.full(length, np.nan)


def _stale_reason(run: Run) -> str:
    commit = (run.manifest.get("git") or {}).get("commit")
    return f"made by other code than this checkout's (commit {commit[:8] if commit else 'unknown'})"


def read(run: Run, fingerprint: str) -> Record:
    """The record of ``run``; what cannot be read makes it ``unreadable`` instead of an error."""
    try:
        manifest, config, status, columns = run.manifest, run.config, run.status, run.metrics()
    except (UserError, OSError, AttributeError) as error:
        return Record(run.path, "unreadable", reason=str(error))
    reason = str(manifest.get("reason") or "")
    if status == "complete" and run.stale(fingerprint):
        status, reason = "stale", _stale_reason(run)
    sample = run.path / "sample.txt"
    text = sample.read_text(errors="replace") if sample.is_file() else ""
    return Record(run.path, status, reason, manifest, config or {}, columns, text)


def collect(paths: Iterable[Path | str], fingerprint: str) -> list[Record]:
    """Every run under ``paths`` (runs, studies, or runs/ itself), in the order of their names.

    ``fingerprint`` is that of the code at hand: ``rwkv_lab.runs.provenance.code_fingerprint()``.
    """
    return sorted((read(run, fingerprint) for run in find(*paths)), key=lambda record: (record.study, record.name))
