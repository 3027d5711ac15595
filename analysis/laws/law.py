"""A law of loss against learning rate: linear coefficients times columns that depend on a few nonlinear parameters."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.curves.curve import LossCurve
from analysis.schedules.features import ScheduleFeatures

Parameters = Mapping[str, float]


@dataclass(frozen=True)
class Nonlinear:
    """A parameter that the columns depend on, searched between ``low`` and ``high``, with a prior around ``usual``."""

    name: str
    low: float
    high: float
    usual: float
    spread: float  # width of the prior, in the coordinate that is searched
    starts: tuple[float, ...] = ()  # further starting points; `usual` is always one
    log: bool = True  # search the logarithm

    def coordinate(self, value: float) -> float:
        """Return the coordinate in which ``value`` is searched."""
        return math.log(value) if self.log else value

    def value(self, coordinate: float) -> float:
        """Return the value at a searched ``coordinate``."""
        return math.exp(coordinate) if self.log else float(coordinate)


@dataclass(frozen=True)
class Kernel:
    """Weight ``w(u)`` of the noise injected ``u`` of progress ago; progress of an update is a power ``p`` of its rate.

    ``w`` takes and returns arrays ``[n]``. ``schedules.features`` turns it into the law's best schedule.
    """

    w: Callable[[np.ndarray], np.ndarray]
    p: float = 1.0


@dataclass(frozen=True)
class Solution:
    """Parameters of a law fitted to some runs."""

    linear: dict[str, float]
    nonlinear: dict[str, float]
    cost: float  # mean squared weighted relative residual
    weights: list[np.ndarray]  # Huber weights, one array a run

    @property
    def parameters(self) -> dict[str, float]:
        """All parameters by name."""
        return self.linear | self.nonlinear


@dataclass(frozen=True)
class Law:
    """``loss = sum of coefficients * columns``, and what fitting and optimising it need to know.

    ``columns(features, nonlinear) -> [n, len(linear)]`` and ``nonlinear(eta_max)``, whose argument is the highest rate
    of the runs fitted, are required. The rest has defaults that suit a law summed from step 0.
    """

    name: str
    formula: str
    source: str
    linear: tuple[str, ...]  # names of the coefficients, all at least 0
    nonlinear: Callable[[float], tuple[Nonlinear, ...]]
    columns: Callable[[ScheduleFeatures, Parameters], np.ndarray]
    formerly: tuple[str, ...] = ()  # earlier names, still read from fit.json

    # Roles
    rival: bool = False  # fitted beside a law that is fitted alone, for the spread of the predictions

    # Fitting
    blocked: bool = False  # sums over blocks of updates: costly at many states
    fitter: Callable[[Sequence[LossCurve], int, bool], Solution] | None = None  # (curves, fit_start, precise)
    # (rates [first] before the fit's first step, linear, nonlinear) -> losses [first + 1]; for a law that counts from
    # there instead of from step 0
    before_start: Callable[[np.ndarray, Parameters, Parameters], np.ndarray] | None = None

    # Optimising the schedule
    optimisable: bool = True  # whether its own best schedule is worth training
    per_rate: tuple[str, ...] = ()  # coefficients to divide by n when n updates count as one of n times the rate
    coarsen: Callable[[Parameters, float], dict[str, float]] | None = None  # nonlinear parameters for that n
    forgetting: Callable[[Parameters], float] | None = None  # exponential forgetting per unit of summed rate
    kernel: Callable[[Parameters], Kernel] | None = None
    # (linear, nonlinear, steps, eta_max, warmup) -> rates [steps]: the best schedule exactly
    best_schedule: Callable[[Parameters, Parameters, int, float, int], np.ndarray] | None = None

    @property
    def from_start(self) -> bool:
        """Return whether the law counts from the fit's first step instead of from step 0."""
        return self.before_start is not None

    def losses(self, features: ScheduleFeatures, linear: Parameters, nonlinear: Parameters) -> np.ndarray:
        """Return the loss ``[n]`` in nats per token at the states of ``features``."""
        return self.columns(features, nonlinear) @ np.array([linear[name] for name in self.linear])
