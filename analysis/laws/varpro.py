"""Variable projection, the fitter of every law that does not bring another.

For fixed nonlinear parameters the best linear coefficients follow from a bounded least-squares problem with three
unknowns, so only the nonlinear ones are searched (Golub and Pereyra 1973), from several starts, on a log scale. The
residuals are relative and weighted by Huber's rule, which bounds the effect of an outlier.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.laws.law import Law, Nonlinear, Solution
from analysis.schedules.features import ScheduleFeatures

HUBER = 1.345  # of the residuals' robust standard deviation: 95 % efficient on normal noise
OUTLIER = 4.0  # the same where only gross outliers are to be held back
FIRST_LOOK = 10  # evaluations spent on every start before the best one is followed
INDEPENDENT = 40  # residuals of a law are correlated along a run: a run counts as about this many independent ones


@dataclass(frozen=True)
class Data:
    """One run for the fitter: ``loss [n]`` at the states of ``schedule``, each the mean of ``count [n]`` points."""

    schedule: ScheduleFeatures
    loss: np.ndarray
    count: np.ndarray


def solve_linear(columns: np.ndarray, loss: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the coefficients ``[k] >= 0`` of the weighted least-squares fit of ``columns [n,k]`` to ``loss [n]``."""
    from scipy.optimize import nnls

    A, b = columns * weights[:, None], loss * weights
    scale = np.linalg.norm(A, axis=0)
    scale[scale == 0] = 1.0
    A = A / scale
    free, *_ = np.linalg.lstsq(A, b, rcond=None)
    if (free < 0).any():
        active = nnls(A, b)[0] > 0
        free = np.zeros(A.shape[1])
        free[active], *_ = np.linalg.lstsq(A[:, active], b, rcond=None)
        free = np.maximum(free, 0.0)
    return free / scale


def huber_weights(residual: np.ndarray, threshold: float = HUBER) -> np.ndarray:
    """Return weights ``[n]`` in (0, 1] that make squares Huber's loss at ``threshold`` robust standard deviations."""
    scale = 1.4826 * np.median(np.abs(residual))
    return np.minimum(1.0, threshold * max(scale, 1e-12) / np.maximum(np.abs(residual), 1e-300))


class Problem:
    """Residuals of one law on several runs as a function of the coordinates of its nonlinear parameters."""

    def __init__(self, law: Law, data: Sequence[Data], parameters: Sequence[Nonlinear], prior: bool):
        self.law, self.data, self.parameters = law, data, parameters
        self.loss = np.concatenate([d.loss for d in data])
        self.base = np.concatenate([np.sqrt(d.count / d.count.mean()) for d in data]) / self.loss
        self.huber = np.ones(len(self.loss))
        self.prior = prior
        self.noise = 1.0

    def named(self, z: np.ndarray) -> dict[str, float]:
        """Return the nonlinear parameters at the coordinates ``z``."""
        return {p.name: p.value(coordinate) for p, coordinate in zip(self.parameters, z, strict=True)}

    def columns(self, z: np.ndarray) -> np.ndarray:
        """Return the law's columns on all runs."""
        nonlinear = self.named(z)
        return np.concatenate([self.law.columns(d.schedule, nonlinear) for d in self.data])

    def solve(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return linear coefficients ``[k]`` and the relative residuals ``[n]`` before Huber weighting."""
        columns = self.columns(z)
        coefficients = solve_linear(columns, self.loss, self.base * np.sqrt(self.huber))
        return coefficients, (columns @ coefficients - self.loss) * self.base

    def residual(self, z: np.ndarray) -> np.ndarray:
        """Return weighted residuals, then one a prior: a parameter's distance from its usual value in its spread."""
        fit = np.sqrt(self.huber) * self.solve(z)[1]
        if not self.prior:
            return fit
        weight = self.noise * np.sqrt(len(self.loss) / (INDEPENDENT * len(self.data)))
        usual = [weight * (x - p.coordinate(p.usual)) / p.spread for p, x in zip(self.parameters, z, strict=True)]
        return np.concatenate([fit, usual])


def fit_law(
    law: Law,
    data: Sequence[Data],
    *,
    prior: bool = True,
    start: Mapping[str, float] | None = None,
    rounds: int = 2,
    tolerance: float = 1e-8,
) -> Solution:
    """Return the law's parameters fitted to the runs ``data`` jointly.

    ``start``: nonlinear parameters to set out from, instead of the law's several starts. ``prior``: pull the nonlinear
    parameters towards their usual values, in proportion to the residuals: not at all on exact data, firmly if one run
    cannot determine them.
    """
    from scipy.optimize import least_squares

    eta_max = max(float(d.schedule.lr.max()) for d in data)
    parameters = law.nonlinear(eta_max)
    problem = Problem(law, data, parameters, prior)
    bounds = np.array([[p.coordinate(p.low) for p in parameters], [p.coordinate(p.high) for p in parameters]])

    def search(z: np.ndarray, evaluations: int = 60) -> Any:
        return least_squares(
            problem.residual,
            np.clip(z, bounds[0] + 1e-9, bounds[1] - 1e-9),
            bounds=bounds,
            xtol=tolerance,
            ftol=tolerance,
            gtol=1e-15,
            x_scale=[p.spread for p in parameters],
            max_nfev=evaluations,
        )

    usual = np.array([p.coordinate(p.usual) for p in parameters])
    starts = [usual]
    for i, p in enumerate(parameters):
        for value in p.starts:
            other = usual.copy()
            other[i] = p.coordinate(value)
            starts.append(other)
    if start is not None:
        starts = [np.array([p.coordinate(start[p.name]) for p in parameters])]
    problem.noise = min(float(np.sqrt(np.mean(problem.solve(z)[1] ** 2))) for z in starts)
    looks = [search(z, FIRST_LOOK) for z in starts] if len(starts) > 1 else [search(starts[0])]
    z = min(looks, key=lambda found: found.cost).x
    z = search(z).x if len(looks) > 1 else z
    for _ in range(rounds):
        residual = problem.solve(z)[1]
        problem.huber = huber_weights(residual)
        problem.noise = float(np.sqrt(np.mean(problem.huber * residual**2)))
        z = search(z).x
    coefficients, residual = problem.solve(z)
    ends = np.cumsum([len(d.loss) for d in data])[:-1]
    return Solution(
        linear=dict(zip(law.linear, map(float, coefficients), strict=True)),
        nonlinear=problem.named(z),
        cost=float(np.mean(problem.huber * residual**2)),
        weights=np.split(problem.huber, ends),
    )
