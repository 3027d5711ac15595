"""V+: the variational law with a power-law floor.

    L = L0 + A S^-a + alpha y,    y[t+1] = y[t] + beta eta_t (eta_t - y[t]),  y[0] = 0

S is the sum of the rates so far. The power law carries the slow tail that one exponential mode cannot, y is the
rate as the loss feels it, 1/(beta eta) updates late. Ours; the second term is P3 of Bo Peng's variational law (2022).
"""

from collections.abc import Mapping

import numpy as np

from analysis.laws.law import Law, Nonlinear
from analysis.schedules.features import Path, recurrence


def lagged_rate(path: Path, beta: float) -> np.ndarray:
    """``[n]`` the rate as the loss feels it, y, at the path's states."""
    step = np.minimum(beta * path.eta, 1.0)
    return recurrence(1 - step, step * path.eta)[path.at]


def columns(path: Path, nonlinear: Mapping[str, float]) -> np.ndarray:
    return np.stack([np.ones(len(path.at)), path.S ** -nonlinear["a"], lagged_rate(path, nonlinear["beta"])], axis=1)


def nonlinear(eta_max: float) -> tuple[Nonlinear, ...]:
    return (
        Nonlinear("a", 0.02, 4.0, usual=0.5, spread=0.7, starts=(0.2, 1.2)),
        Nonlinear("beta", 1 / (20000 * eta_max), 1 / (2 * eta_max), usual=1 / (200 * eta_max), spread=0.8),
    )


LAW = Law(
    name="vplus",
    formula="L = L0 + A S^-a + alpha y,  y' = beta eta (eta - y)",
    source="the variational law (Bo Peng, 2022) with a power-law floor",
    linear=("L0", "A", "alpha"),
    nonlinear=nonlinear,
    columns=columns,
)
