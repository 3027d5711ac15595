"""The variational law's own fitter: for fixed beta it is linear, so the fit is a global search for one number.

The search runs on stretches of updates taken at their mean rate; the minimum is then polished on every update,
so that exact data give exact parameters and a hundred thousand points take a fraction of a second.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from analysis.curves import LossCurve, bin_means
from analysis.fit.varpro import OUTLIER, Solution, huber_weights, solve_linear
from analysis.laws.variational import LAW, columns, pieces
from analysis.schedules.features import Path

STRETCHES = 300  # of one run in the search
GRID = 32  # values of beta tried, from a lag of a few updates to one of many runs
SAME_START = 0.01  # runs whose rates summed to within this share before the window share one L_start


@dataclass(frozen=True)
class Segment:
    """One run from the window's first step on; ``group`` numbers the L_start it has."""

    eta: np.ndarray  # [T - first]
    at: np.ndarray  # [n] states counted from the window's first step
    loss: np.ndarray  # [n]
    group: int

    def columns(self, beta: float) -> np.ndarray:
        return columns(Path(self.eta, self.at), {"beta": beta})

    @cached_property
    def stretches(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Their lengths, mean rates, mean losses and point counts, each ``[m]``."""
        at, loss, count = bin_means(self.at, self.loss, STRETCHES)
        sums = np.concatenate([[0.0], np.cumsum(self.eta)])
        length = np.diff(at, prepend=0)
        rate = np.diff(sums[at], prepend=0.0) / np.maximum(length, 1)
        return length, rate, loss, count


def segments(curves: Sequence[LossCurve], first: int) -> list[Segment]:
    """The runs from step ``first`` on; equal groups where the rates summed so far agree."""
    starts: list[float] = []
    found = []
    for curve in curves:
        total = float(curve.eta[:first].sum())
        same = [i for i, other in enumerate(starts) if abs(total - other) <= SAME_START * max(other, 1e-300)]
        if not same:
            starts.append(total)
        kept = curve.step >= first
        group = same[0] if same else len(starts) - 1
        found.append(Segment(curve.eta[first:], curve.step[kept] - first, curve.loss[kept], group))
    return found


def _grouped(three: np.ndarray, group: int, groups: int) -> np.ndarray:
    """Columns ``[n, 2 + groups]`` with L_start's in its group's place."""
    wide = np.zeros((len(three), 2 + groups))
    wide[:, :2] = three[:, :2]
    wide[:, 2 + group] = three[:, 2]
    return wide


def fit_variational(curves: Sequence[LossCurve], first: int, *, polish: bool = True) -> Solution:
    """The law's parameters from ``curves`` jointly, on their points from step ``first`` on.

    Runs that came to the window by different rates have an L_start each: L_start, L_start_2, ... in the order of the
    curves. ``polish=False`` stops at the search's own precision, about 1e-4.
    """
    runs = segments(curves, first)
    groups = 1 + max(run.group for run in runs)
    eta_max = max(float(run.eta.max()) for run in runs)
    (parameter,) = LAW.nonlinear(eta_max)
    weights = [np.ones(len(run.loss)) for run in runs]

    def coarse(log_beta: float) -> tuple[np.ndarray, np.ndarray]:
        beta = float(np.exp(log_beta))
        wide, loss, weight = [], [], []
        for run in runs:
            length, rate, mean, count = run.stretches
            wide.append(_grouped(pieces(length, rate, beta), run.group, groups))
            loss.append(mean)
            weight.append(np.sqrt(count))
        return _solve(np.concatenate(wide), np.concatenate(loss), np.concatenate(weight))

    def exact(log_beta: float) -> tuple[np.ndarray, np.ndarray]:
        beta = float(np.exp(log_beta))
        wide = np.concatenate([_grouped(run.columns(beta), run.group, groups) for run in runs])
        return _solve(wide, np.concatenate([run.loss for run in runs]), np.sqrt(np.concatenate(weights)))

    longest = max(len(run.eta) for run in runs)
    low = max(np.log(parameter.low), np.log(0.02 / (eta_max * longest)))
    high = np.log(parameter.high)
    log_beta = _global_minimum(lambda x: float(np.sum(coarse(x)[1] ** 2)), low, high)
    if polish:
        log_beta = _polish(exact, log_beta, low, high)
        residual = exact(log_beta)[1]
        scale = 1.4826 * np.median(np.abs(residual))
        if scale > 1e-9 and (np.abs(residual) > OUTLIER * scale).any():
            weights = np.split(huber_weights(residual, OUTLIER), np.cumsum([len(run.loss) for run in runs])[:-1])
            log_beta = _polish(exact, log_beta, low, high)
    coefficients, residual = (exact if polish else coarse)(log_beta)
    names = ["L0", "alpha", "L_start", *(f"L_start_{i + 2}" for i in range(groups - 1))]
    mean_loss = float(np.mean(np.concatenate([run.loss for run in runs])))
    return Solution(
        linear=dict(zip(names, map(float, coefficients), strict=True)),
        nonlinear={"beta": float(np.exp(log_beta))},
        cost=float(np.mean(residual**2)) / mean_loss**2,
        weights=weights,
    )


def _solve(wide: np.ndarray, loss: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    coefficients = solve_linear(wide, loss, weight)
    return coefficients, (wide @ coefficients - loss) * weight


def _global_minimum(cost, low: float, high: float) -> float:
    """The best of a grid, refined by golden sections between its neighbours."""
    from scipy.optimize import minimize_scalar

    grid = np.linspace(low, high, GRID)
    costs = [cost(x) for x in grid]
    best = int(np.argmin(costs))
    bracket = (grid[max(best - 1, 0)], grid[min(best + 1, GRID - 1)])
    return float(minimize_scalar(cost, bounds=bracket, method="bounded", options={"xatol": 1e-5}).x)


def _polish(solve, log_beta: float, low: float, high: float) -> float:
    """Gauss-Newton on the projected residual; its derivative by a secant."""
    step = 1e-4
    residual = solve(log_beta)[1]
    slope = (solve(log_beta + step)[1] - residual) / step
    for _ in range(8):
        square = float(slope @ slope)
        if square == 0:
            break
        move = float(np.clip(-(slope @ residual) / square, -0.5, 0.5))
        new = float(np.clip(log_beta + move, low, high))
        new_residual = solve(new)[1]
        if not new_residual @ new_residual < residual @ residual:
            break
        if abs(new - log_beta) > 1e-9:
            slope = (new_residual - residual) / (new - log_beta)
        log_beta, residual, moved = new, new_residual, abs(move)
        if moved < 1e-7:
            break
    return log_beta
