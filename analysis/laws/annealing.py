"""The annealing law: the area under the schedule, and the area it gave up by annealing.

    L = L0 + A S1^-a - C S2,   S1 = sum of the rates,   S2 = sum of m,   m[i] = 0.999 m[i-1] + eta[i-1] - eta[i]

Tissue, Wang and Wang 2024, arXiv 2408.11029. Good to predict; its own best schedule is bang-bang, so it is never
optimised.
"""

from collections.abc import Mapping

import numpy as np

from analysis.laws.law import Law, Nonlinear
from analysis.schedules.features import Path, recurrence

MEMORY = 0.999


def annealing_area(path: Path) -> np.ndarray:
    """``[n]`` S2 at the path's states: every past fall of the rate, credited over the following 1/(1-0.999) updates."""
    momentum = recurrence(np.full(len(path.eta), MEMORY), -path.changes)[1:]
    return np.concatenate([[0.0], np.cumsum(momentum)])[path.at]


def columns(path: Path, nonlinear: Mapping[str, float]) -> np.ndarray:
    return np.stack([np.ones(len(path.at)), path.S ** -nonlinear["a"], -annealing_area(path)], axis=1)


def nonlinear(eta_max: float) -> tuple[Nonlinear, ...]:
    return (Nonlinear("a", 0.02, 4.0, usual=0.5, spread=0.7, starts=(0.2, 1.2)),)


LAW = Law(
    name="annealing",
    formula="L = L0 + A S1^-a - C S2",
    source="Tissue et al. 2024, arXiv 2408.11029",
    linear=("L0", "A", "C"),
    nonlinear=nonlinear,
    columns=columns,
)
