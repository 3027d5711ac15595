"""The annealing law: the area under the schedule, and the area it gave up by annealing.

    L = L0 + A S1^-a - C S2,   S1 = sum of the rates,   S2 = sum of m,   m[i] = 0.999 m[i-1] + eta[i-1] - eta[i]

Tissue, Wang and Wang 2024, arXiv 2408.11029. It predicts well, but its own best schedule is bang-bang, so it is not
optimised.
"""

import numpy as np

from analysis.laws.law import Law, Nonlinear, Parameters
from analysis.schedules.features import ScheduleFeatures, recurrence
from rwkv_lab.config.registry import register

MEMORY = 0.999


def annealing_area(schedule: ScheduleFeatures) -> np.ndarray:
    """Return S2 ``[n]``: every past fall of the rate, credited over the following 1/(1-0.999) updates."""
    momentum = recurrence(np.full(len(schedule.lr), MEMORY), -schedule.changes)[1:]
    return np.concatenate([[0.0], np.cumsum(momentum)])[schedule.at]


def columns(schedule: ScheduleFeatures, nonlinear: Parameters) -> np.ndarray:
    """Return the columns ``[n, 3]`` of L0, A and C."""
    return np.stack(
        [np.ones(len(schedule.at)), schedule.S ** -nonlinear["a"], -annealing_area(schedule)], axis=1
    )  # fmt: skip


def nonlinear(eta_max: float) -> tuple[Nonlinear, ...]:
    """Return bounds and prior of a."""
    return (Nonlinear("a", 0.02, 4.0, usual=0.5, spread=0.7, starts=(0.2, 1.2)),)


LAW = register("law", "annealing")(
    Law(
        name="annealing",
        formula="L = L0 + A S1^-a - C S2",
        source="Tissue et al. 2024, arXiv 2408.11029",
        linear=("L0", "A", "C"),
        nonlinear=nonlinear,
        columns=columns,
        rival=True,
        optimisable=False,
    )
)
