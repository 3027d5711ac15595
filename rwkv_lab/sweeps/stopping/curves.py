"""What a stop rule sees: the held-out losses of a study's jobs, read from their run directories."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import Run, is_run, listing

# Jobs that differ in one of these groups or keys measure different losses and never stop each other.
_SAME_METRIC = ("data.", "tokenizer.", "objective", "trainer.eval_tokens", "trainer.overfit")


@dataclass(frozen=True)
class JobCurve:
    """One job's held-out loss so far."""

    name: str
    step: np.ndarray  # [n] completed updates at each evaluation
    loss: np.ndarray  # [n] val_loss of the fixed held-out part, nats per token
    total: int  # updates of the whole run
    complete: bool = False
    forecast: tuple[float, float] | None = None  # interval of the final loss, as the job itself recorded it
    path: Path | None = None
    lr: np.ndarray | None = None  # [total] rate of every update; only for the job that is judged

    @property
    def done(self) -> float:
        """Fraction of its updates at the last evaluation."""
        return float(self.step[-1]) / self.total if len(self.step) else 0.0

    def first_at(self, fraction: float) -> int | None:
        """Return the index of the first evaluation at or past ``fraction`` of the run; None if it is still to come."""
        late = np.flatnonzero(self.step >= fraction * self.total)
        return int(late[0]) if len(late) else None


@dataclass(frozen=True)
class Verdict:
    """The decision of a stop rule at one evaluation."""

    reason: str = ""  # one sentence if the job is to be stopped, else empty
    forecast: dict[str, float] = field(default_factory=dict)  # loss, low, high, step; empty for rules without forecasts


GO_ON = Verdict()


def read_curve(run: Run) -> JobCurve | None:
    """Return the curve of a run; None if it has no length or no evaluation yet, or cannot be read."""
    try:
        manifest = run.manifest
    except UserError:
        return None
    metrics, total = run.metrics(), int(manifest.get("steps") or 0)
    if not total or not {"step", "val_loss"} <= metrics.keys():
        return None
    measured = np.isfinite(metrics["val_loss"]) & np.isfinite(metrics["step"])
    if not measured.any():
        return None
    predicted = manifest.get("forecast") or {}
    interval = (float(predicted["low"]), float(predicted["high"])) if {"low", "high"} <= predicted.keys() else None
    return JobCurve(
        name=run.name,
        step=metrics["step"][measured].astype(int),
        loss=metrics["val_loss"][measured],
        total=total,
        complete=manifest.get("status") == "complete",
        forecast=interval,
        path=run.path,
    )


@dataclass
class Peers:
    """The comparable runs of the study a run belongs to; a run that has ended is read once."""

    run: Run
    _ended: dict[Path, JobCurve] = field(default_factory=dict)
    _others: dict[Path, bool] = field(default_factory=dict)  # whether comparable, for every run seen

    def curves(self) -> list[JobCurve]:
        """Return the curves of the other runs that share data, metric and length with this one."""
        found = []
        for manifest in sorted(self.run.path.parent.glob("*/run.json")):
            path = manifest.parent
            if path == self.run.path or not self._is_comparable(path):
                continue
            curve = self._ended.get(path) or read_curve(Run(path))
            if curve is not None:
                found.append(curve)
                if curve.complete:
                    self._ended[path] = curve
        return found

    def _is_comparable(self, path: Path) -> bool:
        if path not in self._others:
            try:
                self._others[path] = is_run(path) and _metric(Run(path)) == _metric(self.run)
            except UserError:
                # Not yet written whole, or damaged: looked at again at the next evaluation.
                return False
        return self._others[path]


def _metric(run: Run) -> Mapping[str, Any]:
    """Return everything two runs must share for their losses to be comparable: data, tokens in total, metric."""
    config = listing.flat(run.config)
    kept = {key: value for key, value in config.items() if key.startswith(_SAME_METRIC)}
    return kept | {"sha256": (run.manifest.get("data") or {}).get("sha256"), "tokens": run.manifest.get("tokens")}


def best_final(others: Sequence[JobCurve]) -> float:
    """Return the lowest final loss known of ``others``: measured, or the upper end of a forecast; inf if none is."""
    known = [float(other.loss[-1]) for other in others if other.complete]
    known += [other.forecast[1] for other in others if other.forecast and not other.complete]
    return min(known, default=math.inf)
