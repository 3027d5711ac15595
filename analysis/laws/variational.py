"""The variational law: at a fixed rate the loss tends to a level linear in the rate, and it gets there exponentially.

    P1  at a fixed rate eta the loss tends to Lt(eta)
    P2  Lt(eta) = L0 + alpha eta
    P3  L[t+1] = L[t] - beta eta_t (L[t] - Lt(eta_t))

Bo Peng, "Better Learning Rate Schedule via Variational Method of Loss Curve", 2022. For a fixed beta it is linear:
L_t = L0 (1 - P_t) + alpha y_t + L_start P_t with P_t = prod(1 - beta eta) and y' = y + beta eta (eta - y) from 0, all
counted from the fit's first step, where the loss is L_start.

Fitting is a global search for beta alone, on stretches of updates taken at their mean rate; the minimum is then
polished on every update, so that exact data give exact parameters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from analysis.curves.curve import LossCurve, bin_curve
from analysis.laws.law import Law, Nonlinear, Parameters, Solution
from analysis.laws.varpro import OUTLIER, huber_weights, solve_linear
from analysis.schedules.features import ScheduleFeatures, recurrence, warmup_ramp
from rwkv_lab.config.registry import register

Solve = Callable[[float], tuple[np.ndarray, np.ndarray]]
STRETCHES = 300  # of one run in the search
GRID = 32  # values of beta tried, from a lag of a few updates to one of many runs
SAME_START = 0.01  # runs whose rates summed to within this share before the window share one L_start


def columns(schedule: ScheduleFeatures, nonlinear: Parameters) -> np.ndarray:
    """Return the columns ``[n, 3]`` of L0, alpha and L_start."""
    step = np.minimum(nonlinear["beta"] * schedule.lr, 1 - 1e-12)
    lagged = recurrence(1 - step, step * schedule.lr)[schedule.at]
    left = np.concatenate([[1.0], np.exp(np.cumsum(np.log1p(-step)))])[schedule.at]
    return np.stack([1 - left, lagged, left], axis=1)


def pieces(length: np.ndarray, rate: np.ndarray, beta: float) -> np.ndarray:
    """Return the columns ``[n, 3]`` at the ends of ``n`` stretches of ``length`` updates, each at its mean ``rate``."""
    log_left = length * np.log1p(-np.minimum(beta * rate, 1 - 1e-12))
    left = np.exp(np.cumsum(log_left))
    decay = np.exp(log_left)
    lagged = recurrence(decay, rate * -np.expm1(log_left))[1:]
    return np.stack([1 - left, lagged, left], axis=1)


def nonlinear(eta_max: float) -> tuple[Nonlinear, ...]:
    """Return bounds and prior of beta."""
    return (Nonlinear("beta", 1e-7 / eta_max, 0.5 / eta_max, usual=1 / (2000 * eta_max), spread=3.0),)


def before_start(eta: np.ndarray, linear: Parameters, nonlinear: Parameters) -> np.ndarray:
    """Return the losses ``[len(eta) + 1]`` up to L_start: the recursion run backwards over the rates ``eta``."""
    L0, alpha, beta = linear["L0"], linear["alpha"], nonlinear["beta"]
    loss = np.empty(len(eta) + 1)
    loss[-1] = linear["L_start"]
    for t in range(len(eta) - 1, -1, -1):
        step = min(beta * eta[t], 0.5)
        loss[t] = (loss[t + 1] - step * (L0 + alpha * eta[t])) / (1 - step)
    return loss


def best_schedule(linear: Parameters, nonlinear: Parameters, steps: int, eta_max: float, warmup: int) -> np.ndarray:
    """Return the best rates ``[steps]`` from L_start on, never above ``eta_max``.

    With D = L - L0 the next D is least for eta = D / (2 alpha), and less D now is less D later, so this feedback is
    the best schedule exactly. Its continuous limit is eta(t) = 2 D / (beta D t + 4 alpha).
    """
    L0, alpha, beta = linear["L0"], linear["alpha"], nonlinear["beta"]
    excess = linear["L_start"] - L0
    cap = np.concatenate([warmup_ramp(eta_max, warmup), np.full(steps - warmup, eta_max)])
    eta = np.empty(steps)
    for t in range(steps):
        eta[t] = max(min(cap[t], excess / (2 * alpha) if alpha > 0 else cap[t]), 0.0)
        excess += beta * eta[t] * (alpha * eta[t] - excess)
    return eta


@dataclass(frozen=True)
class Segment:
    """One run from the fit's first step on; runs of one ``group`` share an L_start."""

    lr: np.ndarray  # [T - fit_start]
    at: np.ndarray  # [n] states counted from the fit's first step
    loss: np.ndarray  # [n]
    group: int

    def columns(self, beta: float) -> np.ndarray:
        """Return the law's columns at the logged states."""
        return columns(ScheduleFeatures(self.lr, self.at), {"beta": beta})

    @cached_property
    def stretches(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Stretches of updates: lengths, mean rates, mean losses and point counts, each ``[m]``."""
        at, loss, count = bin_curve(self.at, self.loss, STRETCHES)
        sums = np.concatenate([[0.0], np.cumsum(self.lr)])
        length = np.diff(at, prepend=0)
        rate = np.diff(sums[at], prepend=0.0) / np.maximum(length, 1)
        return length, rate, loss, count


def segments(curves: Sequence[LossCurve], fit_start: int) -> list[Segment]:
    """Return the runs from step ``fit_start`` on; runs whose rates summed so far agree are one group."""
    starts: list[float] = []
    found = []
    for curve in curves:
        total = float(curve.lr[:fit_start].sum())
        same = [i for i, other in enumerate(starts) if abs(total - other) <= SAME_START * max(other, 1e-300)]
        if not same:
            starts.append(total)
        kept = curve.step >= fit_start
        group = same[0] if same else len(starts) - 1
        found.append(Segment(curve.lr[fit_start:], curve.step[kept] - fit_start, curve.loss[kept], group))
    return found


def _grouped(three: np.ndarray, group: int, groups: int) -> np.ndarray:
    """Return columns ``[n, 2 + groups]`` with that of L_start in its group's place."""
    wide = np.zeros((len(three), 2 + groups))
    wide[:, :2] = three[:, :2]
    wide[:, 2 + group] = three[:, 2]
    return wide


def fit_variational(curves: Sequence[LossCurve], fit_start: int, polish: bool = True) -> Solution:
    """Return the parameters fitted to ``curves`` jointly, on their points from step ``fit_start`` on.

    Runs that reached the first step by different rates have an L_start each: L_start, L_start_2, ... in the order of
    the curves. ``polish=False`` stops at the search's precision, about 1e-4.
    """
    runs = segments(curves, fit_start)
    groups = 1 + max(run.group for run in runs)
    eta_max = max(float(run.lr.max()) for run in runs)
    (parameter,) = nonlinear(eta_max)
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

    longest = max(len(run.lr) for run in runs)
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


def _global_minimum(cost: Callable[[float], float], low: float, high: float) -> float:
    """Return the minimum of a grid, refined between its neighbours by a bounded scalar search."""
    from scipy.optimize import minimize_scalar

    grid = np.linspace(low, high, GRID)
    costs = [cost(x) for x in grid]
    best = int(np.argmin(costs))
    bracket = (grid[max(best - 1, 0)], grid[min(best + 1, GRID - 1)])
    return float(minimize_scalar(cost, bounds=bracket, method="bounded", options={"xatol": 1e-5}).x)


def _polish(solve: Solve, log_beta: float, low: float, high: float) -> float:
    """Minimise by Gauss-Newton on the projected residual, its derivative from a secant."""
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


LAW = register("law", "variational")(
    Law(
        name="variational",
        formula="L[t+1] = L[t] - beta eta_t (L[t] - L0 - alpha eta_t)",
        source="Bo Peng 2022, Better Learning Rate Schedule via Variational Method of Loss Curve",
        linear=("L0", "alpha", "L_start"),
        nonlinear=nonlinear,
        columns=columns,
        fitter=fit_variational,
        before_start=before_start,
        per_rate=("alpha",),
        forgetting=lambda nonlinear: nonlinear["beta"],
        best_schedule=best_schedule,
    )
)
