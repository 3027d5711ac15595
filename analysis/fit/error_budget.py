"""Error budget of a prediction: how far a predicted final loss may be off.

    scale^2 = FLOOR^2 + noise^2 + (MISFIT misfit)^2 + (SPREAD spread)^2 + (LEFT_OUT left_out)^2 + (BEYOND log S/S_fit)^2
    half-width = t(level) scale

misfit: the fit's smooth residual over the later half of the runs. spread: standard deviation over laws and windows.
left_out: error on each run predicted from the others, or ONE_RUN for a single run. S/S_fit: how much further than the
runs fitted the schedule goes, by the sum of its rates. The factors were calibrated on schedules held out of real
families; docs/laws.md has the coverage measured. Standard errors of the fit are not used: intervals from them are
several times too narrow.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

FLOOR = 0.0035  # nats: two runs of one schedule differ by about 0.001, and no law here is better than 0.002
MISFIT = 1.2
SPREAD = 0.5
LEFT_OUT = 0.15
ONE_RUN = 0.012  # nats: in place of LEFT_OUT left_out
BEYOND = 0.008  # nats
FREEDOM = 4  # degrees of freedom of the t quantile


@dataclass(frozen=True)
class LeftOut:
    """A run predicted from the others: final losses in nats."""

    name: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Predicted minus measured."""
        return self.predicted - self.measured


@dataclass(frozen=True)
class ErrorBudget:
    """Errors measured on the runs fitted, from which the width of intervals follows."""

    left_out: list[LeftOut] = field(default_factory=list)
    noise: float = 0.0  # nats: standard deviation of the loss logged at the runs' ends
    misfit: float = 0.0  # nats: root mean square of the smoothed residuals over the later half of the runs
    furthest: float = np.inf  # largest sum of rates of a run fitted

    @property
    def left_out_share(self) -> float:
        """Share of the runs left out, in nats."""
        if not self.left_out:
            return ONE_RUN
        return LEFT_OUT * float(np.sqrt(np.mean([run.error**2 for run in self.left_out])))

    def scale(self, spread: np.ndarray, reached: np.ndarray) -> np.ndarray:
        """Return the half-width in units of the quantile: ``spread`` in nats, ``reached`` sum of the rates."""
        beyond = np.log(np.maximum(reached / self.furthest, 1.0))
        fixed = FLOOR**2 + self.noise**2 + (MISFIT * self.misfit) ** 2 + self.left_out_share**2
        return np.sqrt(fixed + (SPREAD * spread) ** 2 + (BEYOND * beyond) ** 2)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(stored: dict[str, Any]) -> "ErrorBudget":
        """Read ``to_dict``'s form."""
        return ErrorBudget(**stored | {"left_out": [LeftOut(**run) for run in stored["left_out"]]})


def quantile(level: float) -> float:
    """Return the half-width of an interval at ``level`` in units of the scale."""
    from scipy.special import stdtrit

    return float(stdtrit(FREEDOM, (1 + level) / 2))
