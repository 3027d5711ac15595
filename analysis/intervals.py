"""How far a predicted final loss may be off: the spread of the laws, the errors on runs left out, and a floor.

    scale^2 = FLOOR^2 + noise^2 + (SPREAD spread)^2 + (LEFT_OUT left_out)^2,   half-width = t(level) scale

The three factors were calibrated on schedules held out of real families; docs/laws.md has the coverage
measured. Standard errors of the fit play no part: intervals made from them are several times too narrow.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

FLOOR = 0.003  # nats: two runs of one schedule differ by about 0.001, and no law here is better than 0.002
SPREAD = 0.8
LEFT_OUT = 0.35
ONE_RUN = 0.01  # nats: in place of the error on runs left out where there is one run only
FREEDOM = 4  # degrees of freedom of the t quantile


@dataclass(frozen=True)
class LeftOut:
    """A run predicted from the others: final losses in nats."""

    name: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        return self.predicted - self.measured


@dataclass(frozen=True)
class Evidence:
    """What the width of a fit's intervals rests on."""

    left_out: list[LeftOut] = field(default_factory=list)
    noise: float = 0.0  # nats: standard deviation of the loss logged at the runs' ends

    @property
    def left_out_error(self) -> float:
        """Root mean square error on the runs left out; a fixed larger value where there are none."""
        if not self.left_out:
            return ONE_RUN / LEFT_OUT
        return float(np.sqrt(np.mean([run.error**2 for run in self.left_out])))

    def scale(self, spread: np.ndarray | float) -> np.ndarray | float:
        """The half-width in units of the quantile, for a spread of the laws (standard deviation, nats)."""
        return np.sqrt(
            FLOOR**2 + self.noise**2 + (SPREAD * np.asarray(spread)) ** 2 + (LEFT_OUT * self.left_out_error) ** 2
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(stored: dict[str, Any]) -> "Evidence":
        return Evidence([LeftOut(**run) for run in stored["left_out"]], stored["noise"])


def quantile(level: float) -> float:
    """How many scales the half-width of an interval at ``level`` is."""
    from scipy.special import stdtrit

    return float(stdtrit(FREEDOM, (1 + level) / 2))
