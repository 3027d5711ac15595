"""Curves of runs: bin means, bands over seeds, and the value at a budget of tokens, seconds or FLOPs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.compare.collect import Record

AXES = ("tokens", "seconds", "flops")


def axis_values(record: Record, axis: str) -> np.ndarray:
    """[rows] of metrics.csv measured in ``axis``: training tokens, training seconds, or training FLOPs."""
    if axis == "flops":
        return record.column("tokens") * record.number("flops_per_token")
    return record.column(axis)


def measured(record: Record, axis: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """The rows where both are known, x strictly increasing (a repeated x keeps its last row)."""
    x, y = axis_values(record, axis), record.column(column)
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    last = np.append(np.diff(x) > 0, True) if len(x) else np.zeros(0, bool)
    return x[last], y[last]


def bin_means(values: np.ndarray, bins: int) -> np.ndarray:
    """Means of ``bins`` runs of nearly equal length along the first axis; ``values`` itself where it is not longer."""
    if len(values) <= bins:
        return values
    edges = np.linspace(0, len(values), bins + 1).astype(int)
    return np.add.reduceat(values, edges[:-1], axis=0) / np.diff(edges).reshape(-1, *[1] * (values.ndim - 1))


def binned(record: Record, axis: str, column: str, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """``measured`` in at most ``bins`` points, each the mean of its rows, never one row in many."""
    x, y = measured(record, axis, column)
    means = bin_means(np.stack([x, y], axis=1), bins)
    return means[:, 0], means[:, 1]


@dataclass(frozen=True)
class Band:
    """Mean and sample standard deviation over ``n`` runs on a grid ``x``; ``std`` is 0 where n is 1."""

    x: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    n: int


def band(records: Sequence[Record], axis: str, column: str, points: int) -> Band | None:
    """The mean curve of ``records`` where all of them have measurements; None where there are none."""
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
    """``column`` once ``budget`` of ``axis`` is spent, between measurements linearly; NaN outside the measurements."""
    x, y = measured(record, axis, column)
    if not len(x) or not np.isfinite(budget) or budget < x[0] or budget > x[-1] * (1 + 1e-9):
        return float("nan")
    return float(np.interp(budget, x, y))


def common_budget(records: Sequence[Record], axis: str, column: str) -> float:
    """The largest budget of ``axis`` that every one of ``records`` with measurements has spent; NaN without any."""
    ends = [x[-1] for record in records if len(x := measured(record, axis, column)[0])]
    return float(min(ends)) if ends else float("nan")
