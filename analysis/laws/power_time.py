"""V+ in its own time: how far an update brings a run need not be proportional to its rate.

    s_k = eta_ref (eta_k / eta_ref)^p

takes the place of the rate wherever V+ counts progress, with eta_ref the highest rate of the runs fitted; p = 1
gives V+ back. Fitted to all runs of a family p came out between 0.64 and 1.05. Ours; a member of the default mixture.
"""

from collections.abc import Mapping

import numpy as np

from analysis.laws import vplus
from analysis.laws.law import Law, Nonlinear
from analysis.schedules.features import Path, recurrence

POWER = Nonlinear("p", 0.2, 1.5, usual=1.0, spread=0.15, log=False)


def own_rates(path: Path, p: float) -> np.ndarray:
    """``[T]`` how far every update brings the run."""
    reference = path.reference or path.eta.max()
    return reference * (path.eta / reference) ** p


def own_time(path: Path, rates: np.ndarray) -> np.ndarray:
    """``[n]`` their sums at the path's states, at least the first, so that powers stay finite."""
    return np.maximum(np.concatenate([[0.0], np.cumsum(rates)])[path.at], rates[np.argmax(rates > 0)])


def columns(path: Path, nonlinear: Mapping[str, float]) -> np.ndarray:
    rates = own_rates(path, nonlinear["p"])
    step = np.minimum(nonlinear["beta"] * rates, 1.0)
    lagged = recurrence(1 - step, step * path.eta)[path.at]
    return np.stack([np.ones(len(path.at)), own_time(path, rates) ** -nonlinear["a"], lagged], axis=1)


LAW = Law(
    name="vplus_own_time",
    formula="L = L0 + A S^-a + alpha y,  y' = beta s (eta - y),  S = sum of s = eta_ref (eta / eta_ref)^p",
    source="V+ with the exponent of its time fitted",
    linear=vplus.LAW.linear,
    nonlinear=lambda eta_max: (*vplus.nonlinear(eta_max), POWER),
    columns=columns,
)
