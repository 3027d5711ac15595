"""Search for the schedule with the lowest predicted final loss, by a few numbers.

A schedule is a group of ``conf/schedule``: a peak, an end, and for some shapes the share that decays and a power. The
laws are evaluated on coarse schedules in which one update stands for several.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from analysis.fit.model import FittedModel
from analysis.schedules.features import LevelBlocks
from rwkv_lab.config import registry
from rwkv_lab.config.errors import UserError
from rwkv_lab.training import schedules

COARSE = 600  # updates of the coarse schedule, unless that is too coarse for a law
LAG = 0.1  # largest share of an exponential's memory that one coarse update may take up
STARTS = (0.15, 0.5)  # values of every number that the search starts from, combined
LEAST = 1e-3  # lowest end, as a share of the peak, of a decay that must stay above 0
POWERS = (0.7, 2.0)  # laws credit a decay that falls fast at first with more than it gains: not beyond 2
FRACTIONS = (0.02, 1.0)  # of the run that decays
EVALUATIONS = 150  # of one shape, after the starts
BEYOND = 1.5  # times the highest peak of the runs that a peak may be


@dataclass(frozen=True)
class Shape:
    """A schedule as the search varies it."""

    name: str  # of the schedule
    lowest: float  # lowest end, as a share of the peak
    fixed: Mapping[str, Any] = field(default_factory=dict)  # fields that are not searched
    free: tuple[str, ...] = ("lr_final",)  # fields that are, besides lr_init

    def group(self, numbers: np.ndarray, peaks: tuple[float, float], warmup: int) -> dict[str, Any]:
        """Return the ``schedule`` group for ``numbers`` in [0, 1]: the peak within ``peaks``, then ``free``."""
        x = dict(zip(("lr_init", *self.free), np.clip(numbers, 0, 1), strict=True))
        peak = peaks[0] * (peaks[1] / peaks[0]) ** x.pop("lr_init")
        group = {"name": self.name, "lr_init": float(peak), "lr_final": 0.0, "warmup_steps": warmup, **self.fixed}
        for name, value in x.items():
            if name == "lr_final":
                group[name] = float(peak * (self.lowest + (1 - self.lowest) * value**2))
            elif name == "power":
                group[name] = float(POWERS[0] * (POWERS[1] / POWERS[0]) ** value)
            else:
                group[name] = float(FRACTIONS[0] + (FRACTIONS[1] - FRACTIONS[0]) * value)
        return group


def shapes() -> dict[str, Shape]:
    """Return what can be searched, by name: every registered schedule that decays from lr_init to lr_final, and two
    that practice uses, a straight line to 0 and a plateau followed by 1 - sqrt to 0."""
    found = {}
    for name, config in registry.members("schedule").items():
        names = {one.name for one in fields(config)}
        if {"lr_init", "lr_final"} <= names:
            try:
                schedules.rates(name, 2, lr_init=1.0, lr_final=0.0)
                lowest = 0.0
            except UserError:
                lowest = LEAST
            free = [one for one in ("lr_final", "decay_fraction", "power") if one in names]
            found[name] = Shape(name, lowest, free=tuple(free))
    found["linear to 0"] = Shape("linear", 0.0, free=())
    found["1-sqrt"] = Shape("wsd", 0.0, {"decay_shape": "sqrt"}, ("decay_fraction",))
    return found


def rates_of(group: Mapping[str, Any], steps: int) -> np.ndarray:
    """Return the rates ``[steps]`` of a ``schedule`` group."""
    return schedules.rates(group["name"], steps, **{key: value for key, value in group.items() if key != "name"})


@dataclass(frozen=True)
class Goal:
    """The final loss to minimise over schedules of ``steps`` coarse updates, each standing for ``factor`` of them."""

    final: Callable[[np.ndarray], float]  # of rates [steps] as the real schedule has them
    steps: int
    warmup: int  # coarse updates
    factor: float


def goal_of(model: FittedModel, steps: int, warmup: int, eta_max: float) -> Goal:
    """Return the goal for ``steps`` updates; UserError for a law whose best schedule is not practical.

    A law that counts from the fit's first step starts there.
    """
    if model.level is not None:
        count = min(steps, COARSE)
        factor = steps / count
        posterior = model.level.posterior
        coarse_warmup = round(warmup / factor)

        def final(lr: np.ndarray) -> float:
            return float(posterior.mean(LevelBlocks(lr, np.array([len(lr)]), coarse_warmup, each=factor))[0])

        return Goal(final, count, coarse_warmup, factor)
    chosen = [m for m in model.members if m.fit_start == model.fit_start and m.definition.optimisable]
    if not chosen:
        raise UserError(f"the law {model.law} is not optimised (its best schedule is not practical); fit auto or vplus")
    memory = [m.definition.forgetting(m.nonlinear) for m in chosen if m.definition.forgetting]
    fastest = max(memory, default=0.0)
    most = LAG / (fastest * eta_max) if fastest else np.inf
    count = round(steps / max(min(steps / COARSE, most), 1.0))
    factor = steps / count
    coarser = [m.coarser(factor) for m in chosen]
    return Goal(
        lambda lr: float(np.mean([m.final_loss(lr * factor) for m in coarser])), count, round(warmup / factor), factor
    )


def peaks_of(model: FittedModel, eta_max: float | None) -> tuple[float, float]:
    """Return the lowest and highest peak to search: those of the runs if they have several, up to ``BEYOND`` times the
    highest; else the one they have. ``eta_max``, if given, is the highest and without several peaks the one taken."""
    known = sorted(run.peak for run in model.runs if run.peak > 0) or [model.reference]
    if known[-1] <= 1.05 * known[0]:
        peak = model.reference if eta_max is None else eta_max
        return peak, peak
    high = BEYOND * known[-1] if eta_max is None else min(eta_max, BEYOND * known[-1])
    return min(known[0], high), high


def search_shape(goal: Goal, shape: Shape, peaks: tuple[float, float], warmup: int) -> tuple[dict[str, Any], float]:
    """Return the ``schedule`` group of the best schedule of a shape, with ``warmup`` real updates, and its loss."""
    from scipy.optimize import minimize

    searched = [*([0] if peaks[1] > peaks[0] else []), *range(1, 1 + len(shape.free))]

    def loss(numbers: np.ndarray) -> float:
        every = np.ones(1 + len(shape.free))
        every[searched] = np.clip(numbers, 0, 1)
        outside = float(np.sum((numbers - np.clip(numbers, 0, 1)) ** 2))
        return goal.final(rates_of(shape.group(every, peaks, goal.warmup), goal.steps)) + outside

    def group(numbers: np.ndarray) -> dict[str, Any]:
        every = np.ones(1 + len(shape.free))
        every[searched] = np.clip(numbers, 0, 1)
        return shape.group(every, peaks, warmup)

    if not searched:
        return group(np.zeros(0)), loss(np.zeros(0))
    grid = np.stack(np.meshgrid(*[STARTS] * len(searched), indexing="ij"), axis=-1).reshape(-1, len(searched))
    start = min(grid, key=loss)
    # Corners well inside the unit cube, so that the first moves are not all clipped.
    simplex = np.vstack([start, start + 0.2 * np.eye(len(start))])
    options = {"xatol": 1e-3, "fatol": 1e-6, "maxfev": EVALUATIONS, "initial_simplex": simplex}
    found = minimize(loss, start, method="Nelder-Mead", options=options)
    return group(found.x), float(found.fun)
