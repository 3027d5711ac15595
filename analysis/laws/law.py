"""What a law of loss against learning rate is: linear numbers times columns that depend on a few nonlinear ones."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from analysis.schedules.features import Path


@dataclass(frozen=True)
class Nonlinear:
    """A parameter the columns depend on: searched between ``low`` and ``high``, expected near ``usual``."""

    name: str
    low: float
    high: float
    usual: float
    spread: float  # how far from `usual` its coordinate may lie before the data must say so
    starts: tuple[float, ...] = ()  # further starting points; `usual` is always one
    log: bool = True  # its coordinate is its logarithm

    def coordinate(self, value: float) -> float:
        return math.log(value) if self.log else value

    def value(self, coordinate: float) -> float:
        return math.exp(coordinate) if self.log else float(coordinate)


@dataclass(frozen=True)
class Law:
    """``loss = sum of coefficients * columns``; ``columns(path, nonlinear) -> [n, len(linear)]``."""

    name: str
    formula: str
    source: str
    linear: tuple[str, ...]  # names of the coefficients, all at least 0
    nonlinear: Callable[[float], tuple[Nonlinear, ...]]  # given the largest rate, which sets the scale of some
    columns: Callable[[Path, Mapping[str, float]], np.ndarray]
    from_window: bool = False  # counts from the window's first step, not from step 0
    blocked: bool = False  # summed over blocks of updates: costly at many states
