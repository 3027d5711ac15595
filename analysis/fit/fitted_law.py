"""One fitted law: its numbers, the window it was fitted on, and the loss it gives for any schedule."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from analysis.curves import LossCurve, bin_means
from analysis.fit.variational_fit import fit_variational
from analysis.fit.varpro import Data, fit_law, predict
from analysis.laws.registry import LAWS
from analysis.schedules.features import Path

POINTS = 100  # points a run is binned to for the laws other than the variational one
EXACT = 3e-4  # relative residual below which the binning itself is the error and every point is fitted
ALL = 4000  # points at most, then
STATES = 1500  # states at which a law summed over blocks is evaluated for a whole curve; linear in between


@dataclass(frozen=True)
class Member:
    """A law with its parameters.

    ``first`` is the window's first step, ``reference`` the highest rate of the runs fitted, ``cost`` the mean squared
    relative residual.
    """

    law: str
    linear: dict[str, float]
    nonlinear: dict[str, float]
    first: int
    reference: float
    cost: float

    @property
    def parameters(self) -> dict[str, float]:
        return self.linear | self.nonlinear

    def loss(self, eta: np.ndarray, at: np.ndarray) -> np.ndarray:
        """``[n]`` the loss in nats per token at the states ``at`` (rising) of the schedule ``eta [T]``."""
        law = LAWS[self.law]
        if law.from_window:
            return self._from_window(eta, at)
        if law.blocked and len(at) > STATES:
            some = np.unique(np.linspace(at[0], at[-1], STATES).astype(int))
            return np.interp(at, some, self.loss(eta, some))
        return predict(law, Path(eta, at, self.reference), self.linear, self.nonlinear)

    def _from_window(self, eta: np.ndarray, at: np.ndarray) -> np.ndarray:
        """The variational law from its window's first step on; before it, its own recursion run backwards."""
        law = LAWS[self.law]
        inside = at >= self.first
        path = Path(eta[self.first :], at[inside] - self.first)
        loss = np.empty(len(at))
        loss[inside] = predict(law, path, self.linear, self.nonlinear)
        if not inside.all():
            L0, alpha, beta = self.linear["L0"], self.linear["alpha"], self.nonlinear["beta"]
            earlier = np.empty(self.first + 1)
            earlier[-1] = self.linear["L_start"]
            for t in range(self.first - 1, -1, -1):
                step = min(beta * eta[t], 0.5)
                earlier[t] = (earlier[t + 1] - step * (L0 + alpha * eta[t])) / (1 - step)
            loss[~inside] = earlier[at[~inside]]
        return loss

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def binned(curve: LossCurve, first: int, reference: float, points: int = POINTS) -> Data:
    """A run from step ``first`` on as the shared fitter takes it: bin means at up to ``points`` states."""
    kept = curve.step >= first
    at, loss, count = bin_means(curve.step[kept], curve.loss[kept], points)
    return Data(Path(curve.eta, at, reference), loss, count)


def fit_member(
    law: str,
    curves: Sequence[LossCurve],
    first: int,
    *,
    points: int = POINTS,
    start: Mapping[str, float] | None = None,
    final: bool = True,
) -> Member:
    """The law called ``law`` fitted to ``curves`` jointly, on their points from step ``first`` on.

    ``start`` gives nonlinear parameters to set out from. ``final=False`` is quicker and less precise, to
    compare fits.
    """
    reference = max(float(curve.eta.max()) for curve in curves)
    if LAWS[law].from_window:
        solution = fit_variational(curves, first, polish=final)
    else:
        data = [binned(curve, first, reference, points) for curve in curves]
        solution = fit_law(LAWS[law], data, start=start, rounds=2 if final else 1)
        if final and solution.cost < EXACT**2:
            data = [binned(curve, first, reference, ALL) for curve in curves]
            solution = fit_law(LAWS[law], data, start=solution.nonlinear, rounds=0, prior=False, tolerance=1e-15)
    return Member(law, solution.linear, solution.nonlinear, first, reference, solution.cost)
