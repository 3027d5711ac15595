"""V+: the variational law with a power-law floor.

    L = L0 + A S^-a + alpha y,    y[t+1] = y[t] + beta eta_t (eta_t - y[t]),  y[0] = 0

S is the sum of the rates so far. The power law describes the slow tail that one exponential mode cannot; y is the
rate as the loss feels it, 1/(beta eta) updates late. The last term is P3 of Bo Peng's variational law (2022); the
floor was added here.
"""

import numpy as np

from analysis.laws.law import Kernel, Law, Nonlinear, Parameters
from analysis.schedules.features import ScheduleFeatures, recurrence
from rwkv_lab.config.registry import register


def lagged_rate(schedule: ScheduleFeatures, beta: float) -> np.ndarray:
    """Return y ``[n]`` at the schedule's states."""
    length, rate, index = schedule.stretches
    kept = np.exp(length * np.log1p(-np.minimum(beta * rate, 1 - 1e-12)))
    return recurrence(kept, (1 - kept) * rate)[index]


def columns(schedule: ScheduleFeatures, nonlinear: Parameters) -> np.ndarray:
    """Return the columns ``[n, 3]`` of L0, A and alpha."""
    lagged = lagged_rate(schedule, nonlinear["beta"])
    return np.stack([np.ones(len(schedule.at)), schedule.S ** -nonlinear["a"], lagged], axis=1)


def nonlinear(eta_max: float) -> tuple[Nonlinear, ...]:
    """Return bounds and priors of a and beta."""
    return (
        Nonlinear("a", 0.02, 4.0, usual=0.5, spread=0.7, starts=(0.2, 1.2)),
        Nonlinear("beta", 1 / (20000 * eta_max), 1 / (2 * eta_max), usual=1 / (200 * eta_max), spread=0.8),
    )


def forgetting(nonlinear: Parameters) -> float:
    """Return beta."""
    return nonlinear["beta"]


def kernel(nonlinear: Parameters) -> Kernel:
    """Return the exponential kernel; ``p`` is 1 unless the law has a parameter p."""
    return Kernel(lambda u: np.exp(-nonlinear["beta"] * u), nonlinear.get("p", 1.0))


LAW = register("law", "vplus")(
    Law(
        name="vplus",
        formula="L = L0 + A S^-a + alpha y,  y' = beta eta (eta - y)",
        source="the variational law (Bo Peng, 2022) with a power-law floor",
        linear=("L0", "A", "alpha"),
        nonlinear=nonlinear,
        columns=columns,
        rival=True,
        per_rate=("alpha",),
        forgetting=forgetting,
        kernel=kernel,
    )
)
