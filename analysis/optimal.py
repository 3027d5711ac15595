"""``best(fit, steps, eta_max)``: the schedule a fit says is best, and what it gains over the usual ones.

A schedule is best only under a law, and the search finds where the law errs in its favour: predicted gains come
out smaller when trained (the winner's curse). So the gain is set beside the error of the fit, and a mixture is
optimised for the least regret under the worst of its laws.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis import kernels, shapes
from analysis.fit import Fit, Prediction
from analysis.fitting.member import Member
from rwkv_lab.config.errors import UserError, nearest

KINDS = ("free", *shapes.KINDS)
KNOTS = 16  # of a free schedule: rates between them are interpolated on a log scale
STEEPEST = 3.0  # largest fall of the rate's logarithm between two knots
COARSE = 2000  # updates the search works with: of a longer schedule every so many are taken as one
LAG = 0.1  # most of an exponential's memory that one such update may take up
SOFT = 3e-4  # nats: below this differences between laws' regrets are averaged rather than maximised
STARTS = np.array([[0.0, 0.1, 0.25], [0.25, 0.4, 0.6]])  # first looks of a shape's numbers, combined
NOT_OPTIMISED = ("annealing",)  # their own optima are bang-bang


@dataclass(frozen=True)
class Row:
    """One schedule of the comparison; ``gain`` is what the optimum is below it, in nats."""

    kind: str
    final_loss: float
    interval: tuple[float, float]
    gain: float
    beyond_error: bool
    schedule: dict[str, Any] | None  # the `schedule` group that gives it
    eta: np.ndarray


@dataclass(frozen=True, eq=False)
class Optimum:
    """The best schedule found: ``eta [steps]``, for the variational law from L_start on, after the rates ``lead``."""

    eta: np.ndarray
    final_loss: float
    kind: str
    law: str
    schedule: dict[str, Any] | None
    table: list[Row]  # the same fit's best cosine, linear, exponential and WSD
    error: float  # nats: the error of the fit's predictions, which a gain must exceed to be believed
    prediction: Prediction
    lead: np.ndarray
    method: str

    @property
    def steps(self) -> int:
        """Updates of the whole run, ``lead`` included."""
        return len(self.lead) + len(self.eta)

    def interval(self, level: float = 0.9) -> tuple[float, float]:
        return self.prediction.interval(level)

    @property
    def remarks(self) -> list[str]:
        """What the user should know before training it, a sentence each."""
        doubtful = [row.kind for row in self.table if row.kind != self.kind and not row.beyond_error]
        said = ["a recommended schedule tends to end above its prediction: the search favours the errors of the law"]
        if doubtful:
            said.append(f"its gain over {', '.join(doubtful)} is below the error of the fit, {self.error:.4f} nats")
        return said


@dataclass(frozen=True)
class Goal:
    """What is minimised: the final losses of the laws, for schedules of ``steps`` updates from ``warmup`` on up to
    ``eta_max``. ``factor`` updates of the real schedule count as one of ``factor`` times the rate."""

    members: tuple[Member, ...]
    steps: int
    warmup: int
    eta_max: float
    factor: float

    def finals(self, eta: np.ndarray) -> np.ndarray:
        at = np.array([self.steps])
        return np.array([member.loss(eta, at)[0] for member in self.members])

    def mean(self, eta: np.ndarray) -> float:
        return float(self.finals(eta).mean())


def coarser(member: Member, factor: float) -> Member:
    """The law for updates that stand for ``factor`` each: the same loss at ``factor`` times the rate, nearly."""
    linear, nonlinear = dict(member.linear), dict(member.nonlinear)
    for name in ("alpha", "c", "B"):
        if name in linear:
            linear[name] /= factor
    if member.law == "multi_power":
        nonlinear["C"] *= factor ** nonlinear["g"]
    first = 0 if member.law == "variational" else member.first
    return replace(member, linear=linear, nonlinear=nonlinear, reference=member.reference * factor, first=first)


def goal_of(fit: Fit, steps: int, warmup: int, eta_max: float) -> Goal:
    """The laws of the middle window that may be optimised; the variational one from its L_start on."""
    chosen = [m for m in fit.members if m.first == fit.first and m.law not in NOT_OPTIMISED]
    if not chosen:
        raise UserError("the annealing law's own best schedule is bang-bang: fit law=auto or law=vplus to optimise")
    fastest = max((m.nonlinear["beta"] for m in chosen if "beta" in m.nonlinear), default=0.0)
    most = LAG / (fastest * eta_max) if fastest else np.inf
    wanted = max(min(steps / COARSE, most), 1.0)
    count = round(steps / wanted)
    factor = steps / count
    return Goal(tuple(coarser(m, factor) for m in chosen), count, round(warmup / factor), eta_max * factor, factor)


def finer(eta: np.ndarray, goal: Goal, steps: int, warmup: int) -> np.ndarray:
    """Rates ``[steps]`` of the real schedule from those of the coarse one."""
    if goal.factor == 1:
        return eta
    decayed = eta[goal.warmup :] / goal.factor
    at = (np.arange(steps - warmup) + 0.5) * len(decayed) / (steps - warmup) - 0.5
    after = np.interp(at, np.arange(len(decayed)), decayed)
    return np.concatenate([shapes.warmup_ramp(after[0], warmup), after])


def search_shape(goal: Goal, kind: str) -> tuple[float, float, float]:
    """Peak, end and decaying fraction of the best schedule of a kind."""
    from scipy.optimize import minimize

    count = 3 if kind == "wsd" else 2

    def rates(numbers: np.ndarray) -> np.ndarray:
        chosen = shapes.from_numbers(kind, np.clip(numbers, 0, 1), goal.eta_max)
        return shapes.build(kind, goal.steps, goal.warmup, *chosen)

    grid = np.stack(np.meshgrid(*[STARTS[:, i] for i in range(count)], indexing="ij"), axis=-1).reshape(-1, count)
    start = min(grid, key=lambda x: goal.mean(rates(x)))
    found = minimize(
        lambda x: goal.mean(rates(x)) + float(np.sum((x - np.clip(x, 0, 1)) ** 2)),
        start,
        method="Nelder-Mead",
        options={"xatol": 1e-3, "fatol": 1e-7, "maxfev": 90, "initial_simplex": _simplex(start)},
    )
    return shapes.from_numbers(kind, np.clip(found.x, 0, 1), goal.eta_max)


def _simplex(start: np.ndarray) -> np.ndarray:
    """Corners well inside the unit cube, so that the first moves are not all clipped."""
    return np.vstack([start, start + 0.2 * np.eye(len(start))])


def refine(goal: Goal, objective: Callable[[np.ndarray], float], start: np.ndarray, rounds: int = 40) -> np.ndarray:
    """Rates moved freely, knot by knot and never rising after warm-up, from ``start`` to a lower ``objective``."""
    from scipy.optimize import minimize

    warmup, eta_max = goal.warmup, goal.eta_max
    steps = goal.steps - warmup
    left = np.unique(np.rint(np.geomspace(1, steps, KNOTS)).astype(int))[::-1]
    knots = steps - left
    after = np.maximum(start[warmup:], 1e-6 * eta_max)
    level = np.log(after[knots])
    first = np.array([np.log(eta_max) - level[0], *np.clip(-np.diff(level), 0, STEEPEST)])
    t = np.arange(steps)

    def rates(falls: np.ndarray) -> np.ndarray:
        decayed = np.exp(np.interp(t, knots, np.log(eta_max) - np.cumsum(falls)))
        return np.concatenate([shapes.warmup_ramp(decayed[0], warmup), decayed])

    found = minimize(
        lambda falls: objective(rates(falls)) * 1e3,
        np.maximum(first, 0.0),
        method="L-BFGS-B",
        bounds=[(0.0, STEEPEST)] * len(first),
        options={"maxiter": rounds, "eps": 1e-5},
    )
    return rates(found.x)


def search_free(goal: Goal, usual: list[np.ndarray]) -> tuple[np.ndarray, str]:
    """The best schedule of any shape that does not rise after warm-up, and how it was found."""
    closed = []
    for member in goal.members:
        own = kernels.best_profile(member, goal.steps, goal.eta_max, goal.warmup)
        if own is not None:
            closed.append(own)
    candidates = closed + usual
    lowest = np.array([goal.finals(eta) for eta in candidates]).min(axis=0)

    def regret(eta: np.ndarray) -> float:
        """The worst law's final loss above the lowest it gives any candidate, smoothed."""
        above = goal.finals(eta) - lowest
        worst = above.max()
        return float(worst + SOFT * np.log(np.mean(np.exp((above - worst) / SOFT))))

    chosen = int(np.argmin([regret(eta) for eta in candidates]))
    start = candidates[chosen]
    refined = refine(goal, regret, start)
    if regret(refined) < regret(start) - 1e-9:
        best, method = refined, "free search"
    else:
        best, method = start, "closed form" if chosen < len(closed) else "search over shapes"
    return best, method + (", least regret under the worst law" if len(goal.members) > 1 else "")


def _check(steps: int, eta_max: float, warmup: int, kind: str) -> None:
    if steps != int(steps) or steps < 2:
        raise UserError(f"steps: must be a whole number of updates from 2 on, not {steps}")
    if not np.isfinite(eta_max) or eta_max <= 0:
        raise UserError(f"eta_max: must be a rate above 0, not {eta_max}")
    if warmup != int(warmup) or not 0 <= warmup < steps - 1:
        raise UserError(f"warmup: must be a whole number of updates from 0 to {int(steps) - 2}, not {warmup}")
    if kind not in KINDS:
        raise UserError(f"kind: unknown '{kind}'{nearest(kind, KINDS)}; choose one of {', '.join(KINDS)}")


def best(fit: Fit, steps: int, eta_max: float | None = None, warmup: int = 0, kind: str = "free") -> Optimum:
    """The schedule of ``steps`` updates with the lowest final loss under ``fit``, never above ``eta_max`` (per
    update; the runs' highest rate by default) and not rising after ``warmup`` updates.

    It starts at L_start for the variational law, from step 0 for the others. ``kind``: free, or the best linear,
    exponential, cosine or wsd. Mistake for a fit of the annealing law, whose optimum is no schedule to train.
    """
    eta_max = fit.reference if eta_max is None else float(eta_max)
    _check(steps, eta_max, warmup, kind)
    steps, warmup = int(steps), int(warmup)
    goal = goal_of(fit, steps, warmup, eta_max)
    usual = {name: search_shape(goal, name) for name in shapes.KINDS}
    fine = {
        name: (shapes.build(name, steps, warmup, peak / goal.factor, end / goal.factor, fraction), fraction)
        for name, (peak, end, fraction) in usual.items()
    }
    schedule = None
    if kind != "free":
        eta, method = fine[kind][0], "search"
        schedule = described(kind, usual[kind], goal.factor, warmup)
    elif fit.law == "variational":
        eta, method = kernels.feedback(replace(fit.members[0], first=0), steps, eta_max, warmup), "feedback form"
    else:
        coarse = [shapes.build(name, goal.steps, goal.warmup, *numbers) for name, numbers in usual.items()]
        found, method = search_free(goal, coarse)
        eta = np.minimum(finer(found, goal, steps, warmup), eta_max)
    lead = np.array(fit.lead)
    prediction = fit.predict(np.concatenate([lead, eta]))
    error = float(prediction.error[-1])
    rows = []
    for name, (rates, _) in fine.items():
        other = fit.predict(np.concatenate([lead, rates]))
        gain = other.final_loss - prediction.final_loss
        description = described(name, usual[name], goal.factor, warmup)
        rows.append(Row(name, other.final_loss, other.interval(), gain, gain > error, description, rates))
    return Optimum(eta, prediction.final_loss, kind, fit.law, schedule, rows, error, prediction, lead, method)


def described(kind: str, numbers: tuple[float, float, float], factor: float, warmup: int) -> dict[str, Any]:
    peak, end, fraction = numbers
    return shapes.describe(kind, warmup, peak / factor, end / factor, fraction)
