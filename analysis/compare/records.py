"""Records of runs in whatever state they are, and their curves against tokens, seconds and FLOPs.

No run is dropped: one that cannot be read has the status ``unreadable``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.curves.curve import bin_means
from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import Run, find, listing
from rwkv_lab.runs.manifest import Foretold, foretold
from rwkv_lab.runs.metrics import read_metrics

STATUSES = ("complete", "stale", "stopped early", "running", "interrupted", "failed", "unreadable")
FINISHED = ("complete", "stale")
AXES = ("tokens", "seconds", "flops")


@dataclass(frozen=True)
class Record:
    """One run; ``status`` is one of ``STATUSES``, ``columns`` are those of metrics.csv."""

    path: Path
    status: str
    reason: str = ""  # why it failed, is stale or cannot be read
    manifest: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    sample: str = ""
    images: bytes = b""  # PNG of what a run of data=images drew
    label: str = ""  # how it is shown: by what differs within its study, or its name
    positions: dict[str, np.ndarray] = field(default_factory=dict)  # distance, carried, window; empty if not measured

    @property
    def name(self) -> str:
        """Name of its directory."""
        return self.path.name

    @property
    def study(self) -> str:
        """Name of its study."""
        return self.path.parent.name

    @property
    def finished(self) -> bool:
        """Return whether it ran to its end, by this code or another; only then its result counts."""
        return self.status in FINISHED

    @property
    def seed(self) -> Any:
        """Seed of its configuration."""
        return self.config.get("seed")

    def fact(self, *keys: str) -> Any:
        """Return a value of the manifest, e.g. ``fact("result", "val_bpb")``; None if it is missing."""
        value: Any = self.manifest
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def number(self, *keys: str) -> float:
        """Return a number of the manifest; NaN if it is missing."""
        value = self.fact(*keys)
        return float(value) if isinstance(value, (int, float)) else float("nan")

    @property
    def foretold(self) -> Foretold | None:
        """What a fit predicted for it; None unless its schedule is of a fit."""
        return foretold(self.manifest)

    def column(self, name: str) -> np.ndarray:
        """Return a column of metrics.csv; all NaN if it is missing."""
        if name in self.columns:
            return self.columns[name]
        length = len(next(iter(self.columns.values()), ()))
        return np.full(length, np.nan)


def _stale_reason(run: Run) -> str:
    commit = (run.manifest.get("git") or {}).get("commit")
    return f"made by other code than this checkout's (commit {commit[:8] if commit else 'unknown'})"


def read(run: Run, fingerprint: str) -> Record:
    """Return the record of ``run``, with the status ``unreadable`` if it cannot be read."""
    try:
        manifest, config, status, columns = run.manifest, run.config, run.status, run.metrics()
    except (UserError, OSError, AttributeError) as error:
        return Record(run.path, "unreadable", reason=str(error))
    reason = str(manifest.get("reason") or "")
    if status == "complete" and run.stale(fingerprint):
        status, reason = "stale", _stale_reason(run)
    sample = run.path / "sample.txt"
    text = sample.read_text(errors="replace") if sample.is_file() else ""
    positions = read_metrics(run.path / "by_position.csv")
    drawn = run.path / "images.png"
    images = drawn.read_bytes() if drawn.is_file() else b""
    return Record(run.path, status, reason, manifest, config or {}, columns, text, images=images, positions=positions)


def collect(paths: Iterable[Path | str], fingerprint: str, ids: bool = False) -> list[Record]:
    """Return every run under ``paths`` (runs, studies, or runs/ itself), by name.

    ``fingerprint`` is that of the code at hand: ``rwkv_lab.runs.provenance.code_fingerprint()``. ``ids``: show the
    names of directories.
    """
    runs = find(*paths)
    labels = {run.path: run.name for run in runs} if ids else listing.names_within_studies(runs)
    records = [replace(read(run, fingerprint), label=labels[run.path]) for run in runs]
    return sorted(records, key=lambda record: (record.study, record.name))


def axis_values(record: Record, axis: str) -> np.ndarray:
    """Return the rows ``[n]`` of metrics.csv in units of ``axis``: training tokens, seconds or FLOPs."""
    if axis == "flops":
        return record.column("tokens") * record.number("flops_per_token")
    return record.column(axis)


def measured(record: Record, axis: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of the rows that have both, x strictly rising (a repeated x keeps its last row)."""
    x, y = axis_values(record, axis), record.column(column)
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    last = np.append(np.diff(x) > 0, True) if len(x) else np.zeros(0, bool)
    return x[last], y[last]


def binned(record: Record, axis: str, column: str, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``measured`` in at most ``bins`` points, each the mean of its rows."""
    x, y = measured(record, axis, column)
    means, _ = bin_means(np.stack([x, y], axis=1), bins)
    return means[:, 0], means[:, 1]


@dataclass(frozen=True)
class Band:
    """Mean and sample standard deviation over ``n`` runs on a grid ``x``; ``std`` is 0 for one run."""

    x: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    n: int


def band(records: Sequence[Record], axis: str, column: str, points: int) -> Band | None:
    """Return the mean curve of ``records`` over the range that all of them cover; None without measurements."""
    curves = [curve for record in records if len((curve := binned(record, axis, column, points))[0])]
    if not curves:
        return None
    if len(curves) == 1:
        x, y = curves[0]
        return Band(x, y, np.zeros_like(y), 1)
    start, stop = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    if stop < start:
        return None
    inner = curves[0][0]
    inner = inner[(inner > start) & (inner < stop)]
    grid = np.unique(np.concatenate([[start], inner, [stop]]))
    values = np.stack([np.interp(grid, x, y) for x, y in curves])
    return Band(grid, values.mean(axis=0), values.std(axis=0, ddof=1), len(curves))


def value_at(record: Record, axis: str, column: str, budget: float) -> float:
    """Return ``column`` once ``budget`` of ``axis`` is spent, linear between measurements; NaN outside them."""
    x, y = measured(record, axis, column)
    if not len(x) or not np.isfinite(budget) or budget < x[0] or budget > x[-1] * (1 + 1e-9):
        return float("nan")
    return float(np.interp(budget, x, y))


def common_budget(records: Sequence[Record], axis: str, column: str) -> float:
    """Return the largest budget of ``axis`` that all ``records`` with measurements have spent; NaN without any."""
    ends = [x[-1] for record in records if len(x := measured(record, axis, column)[0])]
    return float(min(ends)) if ends else float("nan")
