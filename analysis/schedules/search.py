"""Search for the schedule with the lowest predicted final loss.

The laws are evaluated on coarse schedules in which one update stands for several. A mixture is optimised for the least
regret under the worst of its laws.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from analysis.fit.fitted_law import FittedLaw
from analysis.fit.model import FittedModel
from analysis.schedules.closed_form import warmup_ramp
from rwkv_lab.config import registry
from rwkv_lab.config.errors import UserError
from rwkv_lab.training import schedules

KNOTS = 16  # of a free schedule: rates between them are interpolated on a log scale
STEEPEST = 3.0  # largest fall of the rate's logarithm between two knots
COARSE = 2000  # updates of the coarse schedule, unless that is too coarse for a law
LAG = 0.1  # largest share of an exponential's memory that one coarse update may take up
SOFT = 3e-4  # nats: below this, differences between laws' regrets are averaged rather than maximised
STARTS = np.array([[0.0, 0.1, 0.25], [0.25, 0.4, 0.6]])  # grid of a shape's numbers from which the search starts
LEAST = 1e-3  # lowest end, as a share of the peak, of a decay that must stay above 0


@dataclass(frozen=True)
class Shape:
    """A schedule with a peak and an end, as the search varies it; wsd also has the fraction that decays."""

    name: str
    numbers: int  # 2: peak and end; 3: also the fraction that decays
    lowest: float  # lowest end, as a share of the peak

    def group(self, numbers: np.ndarray, eta_max: float, warmup: int) -> dict[str, Any]:
        """Return the ``schedule`` group for ``numbers`` in [0, 1], any of which give rates up to ``eta_max``."""
        peak = eta_max * 10.0 ** (-2 * numbers[0])
        end = peak * (self.lowest + (1 - self.lowest) * numbers[1] ** 2)
        group = {"name": self.name, "lr_init": float(peak), "lr_final": float(end), "warmup_steps": warmup}
        if self.numbers == 3:
            group["decay_fraction"] = float(0.02 + 0.98 * numbers[2])
        return group


def shapes() -> dict[str, Shape]:
    """Return the registered schedules that decay from lr_init to lr_final, by name."""
    found = {}
    for name, config in registry.members("schedule").items():
        names = {field.name for field in fields(config)}
        if {"lr_init", "lr_final"} <= names:
            try:
                schedules.rates(name, 2, lr_init=1.0, lr_final=0.0)
                lowest = 0.0
            except UserError:
                lowest = LEAST
            found[name] = Shape(name, 3 if "decay_fraction" in names else 2, lowest)
    return found


def rates_of(group: dict[str, Any], steps: int, factor: float = 1.0) -> np.ndarray:
    """Return the rates ``[steps]`` of a ``schedule`` group, its rates multiplied by ``factor``."""
    parameters = {key: value for key, value in group.items() if key != "name"}
    parameters |= {key: group[key] * factor for key in ("lr_init", "lr_final")}
    return schedules.rates(group["name"], steps, **parameters)


@dataclass(frozen=True)
class Goal:
    """Final losses of laws to minimise over schedules of ``steps`` updates, up to ``eta_max`` after ``warmup`` updates.

    One update stands for ``factor`` updates of the real schedule, at ``factor`` times the rate.
    """

    members: tuple[FittedLaw, ...]
    steps: int
    warmup: int
    eta_max: float
    factor: float

    def finals(self, lr: np.ndarray) -> np.ndarray:
        """Return the final loss of every law."""
        return np.array([member.final_loss(lr) for member in self.members])

    def mean(self, lr: np.ndarray) -> float:
        """Return the mean of the final losses."""
        return float(self.finals(lr).mean())


def goal_of(model: FittedModel, steps: int, warmup: int, eta_max: float) -> Goal:
    """Return the goal for ``steps`` updates: the laws of the middle first step that may be optimised.

    A law that counts from the fit's first step starts there.
    """
    chosen = [m for m in model.members if m.fit_start == model.fit_start and m.definition.optimisable]
    if not chosen:
        raise UserError(f"the law {model.law} is not optimised (its best schedule is not practical); fit auto or vplus")
    memory = [m.definition.forgetting(m.nonlinear) for m in chosen if m.definition.forgetting]
    fastest = max(memory, default=0.0)
    most = LAG / (fastest * eta_max) if fastest else np.inf
    wanted = max(min(steps / COARSE, most), 1.0)
    count = round(steps / wanted)
    factor = steps / count
    return Goal(tuple(m.coarser(factor) for m in chosen), count, round(warmup / factor), eta_max * factor, factor)


def finer(lr: np.ndarray, goal: Goal, steps: int, warmup: int) -> np.ndarray:
    """Return the rates ``[steps]`` of the real schedule from those of the coarse one."""
    if goal.factor == 1:
        return lr
    decayed = lr[goal.warmup :] / goal.factor
    at = (np.arange(steps - warmup) + 0.5) * len(decayed) / (steps - warmup) - 0.5
    after = np.interp(at, np.arange(len(decayed)), decayed)
    return np.concatenate([warmup_ramp(after[0], warmup), after])


def search_shape(goal: Goal, shape: Shape, warmup: int) -> dict[str, Any]:
    """Return the ``schedule`` group of the best schedule of a shape, with ``warmup`` updates of the real schedule."""
    from scipy.optimize import minimize

    def mean(numbers: np.ndarray) -> float:
        group = shape.group(np.clip(numbers, 0, 1), goal.eta_max, goal.warmup)
        return goal.mean(rates_of(group, goal.steps))

    columns = [STARTS[:, i] for i in range(shape.numbers)]
    grid = np.stack(np.meshgrid(*columns, indexing="ij"), axis=-1).reshape(-1, shape.numbers)
    start = min(grid, key=mean)
    # Corners well inside the unit cube, so that the first moves are not all clipped.
    simplex = np.vstack([start, start + 0.2 * np.eye(len(start))])
    found = minimize(
        lambda x: mean(x) + float(np.sum((x - np.clip(x, 0, 1)) ** 2)),
        start,
        method="Nelder-Mead",
        options={"xatol": 1e-3, "fatol": 1e-7, "maxfev": 90, "initial_simplex": simplex},
    )
    return shape.group(np.clip(found.x, 0, 1), goal.eta_max / goal.factor, warmup)


def refine(goal: Goal, objective: Callable[[np.ndarray], float], start: np.ndarray, rounds: int = 40) -> np.ndarray:
    """Return rates moved knot by knot, never rising after warm-up, from ``start`` to a lower ``objective``."""
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
        return np.concatenate([warmup_ramp(decayed[0], warmup), decayed])

    found = minimize(
        lambda falls: objective(rates(falls)) * 1e3,
        np.maximum(first, 0.0),
        method="L-BFGS-B",
        bounds=[(0.0, STEEPEST)] * len(first),
        options={"maxiter": rounds, "eps": 1e-5},
    )
    return rates(found.x)


def search_free(goal: Goal, usual: list[np.ndarray]) -> tuple[np.ndarray, str]:
    """Return the best schedule of any shape that does not rise after warm-up, and how it was found.

    The search starts from the laws' closed forms and the schedules ``usual``.
    """
    own = [member.kernel_schedule(goal.steps, goal.eta_max, goal.warmup) for member in goal.members]
    closed = [lr for lr in own if lr is not None]
    candidates = closed + usual
    lowest = np.array([goal.finals(lr) for lr in candidates]).min(axis=0)

    def regret(lr: np.ndarray) -> float:
        # The worst law's final loss above the lowest it gives any candidate, smoothed.
        above = goal.finals(lr) - lowest
        worst = above.max()
        return float(worst + SOFT * np.log(np.mean(np.exp((above - worst) / SOFT))))

    chosen = int(np.argmin([regret(lr) for lr in candidates]))
    start = candidates[chosen]
    refined = refine(goal, regret, start)
    if regret(refined) < regret(start) - 1e-9:
        best, method = refined, "free search"
    else:
        best, method = start, "closed form" if chosen < len(closed) else "search over shapes"
    return best, method + (", least regret under the worst law" if len(goal.members) > 1 else "")
