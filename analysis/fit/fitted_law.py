"""One fitted law: its parameters, the loss it gives for any schedule, and how well the data determine it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from analysis.curves.curve import LossCurve, bin_curve
from analysis.laws import registry
from analysis.laws.law import Law
from analysis.laws.varpro import Data, fit_law
from analysis.schedules import features
from analysis.schedules.features import ScheduleFeatures

POINTS = 100  # points a run is binned to for the shared fitter
EXACT = 3e-4  # relative residual below which the binning itself is the error and every point is fitted
ALL = 4000  # points at most, then
STATES = 1500  # states at which a law summed over blocks is evaluated for a whole curve; linear in between
STEP = 1e-4  # relative step of the Jacobian
CLOSE = 0.8  # correlation beyond which two parameters are known only together


@dataclass(frozen=True)
class FittedLaw:
    """A law with its parameters.

    ``fit_start`` is the first step fitted, ``reference`` the highest rate of the runs, ``cost`` the mean squared
    relative residual.
    """

    law: str
    linear: dict[str, float]
    nonlinear: dict[str, float]
    fit_start: int
    reference: float
    cost: float

    @property
    def definition(self) -> Law:
        """The law itself, from the registry."""
        return registry.get(self.law)

    @property
    def parameters(self) -> dict[str, float]:
        """All parameters by name."""
        return self.linear | self.nonlinear

    def loss(self, lr: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Return the loss ``[n]`` in nats per token at the states ``at`` (rising) of the rates ``lr [T]``."""
        law = self.definition
        if law.before_start is not None:
            inside = at >= self.fit_start
            loss = np.empty(len(at))
            later = ScheduleFeatures(lr[self.fit_start :], at[inside] - self.fit_start)
            loss[inside] = law.losses(later, self.linear, self.nonlinear)
            if not inside.all():
                loss[~inside] = law.before_start(lr[: self.fit_start], self.linear, self.nonlinear)[at[~inside]]
            return loss
        if law.blocked and len(at) > STATES:
            some = np.unique(np.linspace(at[0], at[-1], STATES).astype(int))
            return np.interp(at, some, self.loss(lr, some))
        return law.losses(ScheduleFeatures(lr, at, self.reference), self.linear, self.nonlinear)

    def final_loss(self, lr: np.ndarray) -> float:
        """Return the loss after the last of the rates ``lr``."""
        return float(self.loss(lr, np.array([len(lr)]))[0])

    def coarser(self, factor: float) -> "FittedLaw":
        """Return the law for updates that stand for ``factor`` each: about the same loss at ``factor`` times the rate.

        A law that counts from the fit's first step counts from step 0 of the coarse schedule.
        """
        law = self.definition
        linear = {name: value / factor if name in law.per_rate else value for name, value in self.linear.items()}
        nonlinear = law.coarsen(self.nonlinear, factor) if law.coarsen else self.nonlinear
        start = 0 if law.from_start else self.fit_start
        return replace(self, linear=linear, nonlinear=nonlinear, reference=self.reference * factor, fit_start=start)

    def kernel_schedule(self, steps: int, eta_max: float, warmup: int) -> np.ndarray | None:
        """Return the best rates ``[steps]`` by the law's kernel; None for a law without one."""
        law = self.definition
        if law.kernel is None:
            return None
        kernel = law.kernel(self.nonlinear)
        return features.best_profile(kernel.w, kernel.p, self.final_loss, steps, eta_max, warmup, self.reference)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers for JSON."""
        stored = asdict(self)
        stored["first"] = stored.pop("fit_start")
        return stored

    @staticmethod
    def from_dict(stored: Mapping[str, Any]) -> "FittedLaw":
        """Read ``to_dict``'s form; a law's earlier name is replaced by its present one."""
        rest = dict(stored)
        return FittedLaw(law=registry.get(rest.pop("law")).name, fit_start=rest.pop("first"), **rest)


def binned(curve: LossCurve, fit_start: int, reference: float, points: int = POINTS) -> Data:
    """Return a run from step ``fit_start`` on for the shared fitter: bin means at up to ``points`` states."""
    kept = curve.step >= fit_start
    at, loss, count = bin_curve(curve.step[kept], curve.loss[kept], points)
    return Data(ScheduleFeatures(curve.lr, at, reference), loss, count)


def fit_one(
    name: str,
    curves: Sequence[LossCurve],
    fit_start: int,
    *,
    points: int = POINTS,
    start: Mapping[str, float] | None = None,
    final: bool = True,
) -> FittedLaw:
    """Return the law ``name`` fitted to ``curves`` jointly, on their points from step ``fit_start`` on.

    ``start`` gives nonlinear parameters to set out from. ``final=False`` is quicker and less precise, to compare fits.
    """
    law = registry.get(name)
    reference = max(float(curve.lr.max()) for curve in curves)
    if law.fitter is not None:
        solution = law.fitter(curves, fit_start, final)
    else:
        data = [binned(curve, fit_start, reference, points) for curve in curves]
        solution = fit_law(law, data, start=start, rounds=2 if final else 1)
        if final and solution.cost < EXACT**2:
            data = [binned(curve, fit_start, reference, ALL) for curve in curves]
            solution = fit_law(law, data, start=solution.nonlinear, rounds=0, prior=False, tolerance=1e-15)
    return FittedLaw(law.name, solution.linear, solution.nonlinear, fit_start, reference, solution.cost)


Correlations = dict[str, dict[str, float]]


def covariance(fitted: FittedLaw, curves: Sequence[LossCurve]) -> tuple[dict[str, float], Correlations]:
    """Return standard errors by parameter and correlations by pair, from the Jacobian at the minimum.

    A parameter at zero has neither. They describe the noise of this fit alone and are far too narrow for predictions.
    """
    names = [name for name, value in fitted.parameters.items() if value != 0]
    data = [binned(curve, fitted.fit_start, fitted.reference) for curve in curves]

    def losses(name: str, factor: float) -> np.ndarray:
        linear = {k: v * (factor if k == name else 1) for k, v in fitted.linear.items()}
        nonlinear = {k: v * (factor if k == name else 1) for k, v in fitted.nonlinear.items()}
        changed = replace(fitted, linear=linear, nonlinear=nonlinear)
        return np.concatenate([changed.loss(d.schedule.lr, d.schedule.at) for d in data])

    loss = np.concatenate([d.loss for d in data])
    residual = losses("", 1.0) - loss
    jacobian = np.stack([(losses(n, 1 + STEP) - losses(n, 1 - STEP)) / (2 * STEP) for n in names], axis=1)
    rho = float(np.clip(residual[1:] @ residual[:-1] / max(residual @ residual, 1e-300), 0.0, 0.95))
    variance = float(residual @ residual) / max(len(loss) - len(names), 1) * (1 + rho) / (1 - rho)
    scale = np.linalg.norm(jacobian, axis=0)
    scale[scale == 0] = 1.0
    inverse = np.linalg.pinv((jacobian / scale).T @ (jacobian / scale))
    deviation = np.sqrt(np.maximum(np.diag(inverse), 1e-300))
    errors = np.sqrt(variance) * deviation / scale
    together = inverse / np.outer(deviation, deviation)
    return (
        {n: float(e * abs(fitted.parameters[n])) for n, e in zip(names, errors, strict=True)},
        {a: {b: float(together[i, j]) for j, b in enumerate(names)} for i, a in enumerate(names)},
    )


def correlated(correlations: Correlations) -> list[str]:
    """Return one sentence for every pair of parameters that are known only together."""
    names = list(correlations)
    return [
        f"{a} and {b} correlate at {correlations[a][b]:+.3f}: the data determine them only together, and predictions "
        "depend little on where along that line they lie"
        for i, a in enumerate(names)
        for b in names[i + 1 :]
        if abs(correlations[a][b]) > CLOSE
    ]


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
    """Errors measured on the runs fitted, from which follows how far a predicted final loss may be off.

        scale^2 = FLOOR^2 + noise^2 + (MISFIT misfit)^2 + (SPREAD spread)^2 + (LEFT_OUT left_out)^2
                  + (BEYOND log S/S_fit)^2
        half-width = t(level) scale

    misfit: the fit's smooth residual over the later half of the runs. spread: standard deviation over laws and windows.
    left_out: error on each run predicted from the others, or ONE_RUN for a single run. S/S_fit: how much further than
    the runs fitted the schedule goes, by the sum of its rates. The factors were calibrated on schedules held out of
    real families; docs/laws.md has the coverage measured. Standard errors of the fit are not used: intervals from them
    are several times too narrow.
    """

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
