"""V+ in power time: the progress of an update is a fitted power of its rate.

    s_k = eta_ref (eta_k / eta_ref)^p

replaces the rate wherever V+ counts progress; eta_ref is the highest rate of the runs fitted, and p = 1 gives V+.
Fitted to all runs of a family, p came out between 0.64 and 1.05. Not from a paper.
"""

import numpy as np

from analysis.laws import vplus
from analysis.laws.law import Law, Nonlinear, Parameters
from analysis.schedules.features import ScheduleFeatures, recurrence
from rwkv_lab.config.registry import register

POWER = Nonlinear("p", 0.2, 1.5, usual=1.0, spread=0.15, log=False)


def progress_rates(schedule: ScheduleFeatures, p: float) -> np.ndarray:
    """Return the progress s ``[T]`` of every update."""
    reference = schedule.reference or schedule.lr.max()
    return reference * (schedule.lr / reference) ** p


def power_time(schedule: ScheduleFeatures, rates: np.ndarray) -> np.ndarray:
    """Return the sums ``[n]`` of ``rates`` at the schedule's states, at least the first, so that powers are finite."""
    return np.maximum(np.concatenate([[0.0], np.cumsum(rates)])[schedule.at], rates[np.argmax(rates > 0)])


def columns(schedule: ScheduleFeatures, nonlinear: Parameters) -> np.ndarray:
    """Return the columns ``[n, 3]`` of L0, A and alpha."""
    rates = progress_rates(schedule, nonlinear["p"])
    step = np.minimum(nonlinear["beta"] * rates, 1.0)
    lagged = recurrence(1 - step, step * schedule.lr)[schedule.at]
    return np.stack([np.ones(len(schedule.at)), power_time(schedule, rates) ** -nonlinear["a"], lagged], axis=1)


LAW = register("law", "power_time")(
    Law(
        name="power_time",
        formula="L = L0 + A S^-a + alpha y,  y' = beta s (eta - y),  S = sum of s = eta_ref (eta / eta_ref)^p",
        source="V+ with the exponent of its time fitted",
        linear=vplus.LAW.linear,
        nonlinear=lambda eta_max: (*vplus.nonlinear(eta_max), POWER),
        columns=columns,
        formerly=("vplus_own_time",),
        per_rate=("alpha",),
        forgetting=vplus.forgetting,
        kernel=vplus.kernel,
    )
)
