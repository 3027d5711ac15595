"""The axes the figures and the page's charts share: units that are easy to read, and where a loss axis begins."""

import numpy as np

from analysis.compare.curves import AXES, axis_values
from analysis.compare.summary import Block

# (from, divisor, label), the largest first. Below two minutes a time is easier to read in seconds.
UNITS: dict[str, tuple[tuple[float, float, str], ...]] = {
    "tokens": (
        (1e9, 1e9, "training tokens (billions)"),
        (1e6, 1e6, "training tokens (millions)"),
        (0, 1e3, "training tokens (thousands)"),
    ),
    "seconds": (
        (7200, 3600, "training time (hours)"),
        (120, 60, "training time (minutes)"),
        (0, 1, "training time (seconds)"),
    ),
    "flops": (
        (1e18, 1e18, "training compute (EFLOP)"),
        (1e15, 1e15, "training compute (PFLOP)"),
        (1e12, 1e12, "training compute (TFLOP)"),
        (0, 1e9, "training compute (GFLOP)"),
    ),
}


def unit_of(axis: str, largest: float) -> tuple[float, str]:
    """``(divisor, label)`` that makes numbers up to ``largest`` easy to read."""
    return next((divisor, label) for least, divisor, label in UNITS[axis] if largest >= least)


def scales(block: Block) -> dict[str, tuple[float, float, str]]:
    """For each axis ``(divisor, end, label)``: the end of the longest run in units of the label."""
    found = {}
    for axis in AXES:
        spent = [axis_values(record, axis) for row in block.rows for record in row.group.records]
        known = np.concatenate([np.ones(0), *spent])
        end = float(np.max(known, initial=0.0, where=np.isfinite(known))) or 1.0
        divisor, label = unit_of(axis, end)
        found[axis] = (divisor, end / divisor, label)
    return found


def loss_limits(curves: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float] | None:
    """The range of a loss axis that leaves out the steep start, a sixth of the run; None without any curve."""
    end = max((x[-1] for x, _ in curves), default=0.0)
    late = [np.interp(np.linspace(max(x[0], end / 6), x[-1], 50), x, y) for x, y in curves if x[-1] >= end / 6]
    if not late:
        return None
    low, high = min(map(np.min, late)), max(map(np.max, late))
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return float(low - margin), float(high + margin)
