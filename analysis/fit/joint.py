"""``fit(curves)``: fit a law, or a mixture of laws, to runs jointly."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from analysis.curves.curve import LossCurve, bin_curve
from analysis.fit import fit_start
from analysis.fit.error_budget import ErrorBudget, LeftOut
from analysis.fit.fit_start import Window
from analysis.fit.fitted_law import Correlations, FittedLaw, covariance, fit_one
from analysis.fit.model import FittedModel, Prediction, RunSummary, middle_start, parameters_of
from analysis.laws import registry
from analysis.schedules.features import warmup_steps
from rwkv_lab.config.errors import UserError

MIXTURE_FRACTIONS = (0.05, 0.1, 0.2)  # first steps of the mixture's fits, as fractions of the shortest run
DRAWN = 400  # points of a run kept in fit.json for the figures
MISFIT_BINS = 20  # parts of a run over which residuals are averaged before they count as misfit
END = 0.02  # share of a run over which the loss at its end is averaged


@dataclass(frozen=True, eq=False)
class Fit:
    """Result of a fit with the curves it was made from; ``model`` is the part that predicts and is stored.

    Rivals, left-out runs and standard errors are computed when first used.
    """

    law: str
    members: tuple[FittedLaw, ...]
    windows: tuple[Window, ...]  # first steps compared
    curves: tuple[LossCurve, ...] = field(repr=False)

    @cached_property
    def model(self) -> FittedModel:
        """The fitted model, complete."""
        standard_errors, correlations = self._uncertainty()
        return FittedModel(
            law=self.law,
            members=self.members,
            rivals=self.rivals,
            error_budget=self.error_budget,
            windows=self.windows,
            runs=self.runs,
            prefix_lrs=self._prefix_lrs(),
            standard_errors=standard_errors,
            correlations=correlations,
        )

    @property
    def runs(self) -> tuple[RunSummary, ...]:
        """Summaries of the curves."""
        return tuple(map(summarise, self.curves))

    @property
    def fit_start(self) -> int:
        """First step fitted; the middle one of a mixture's."""
        return middle_start(self.members)

    @property
    def reference(self) -> float:
        """Highest rate of the runs."""
        return self.members[0].reference

    @property
    def params(self) -> dict[str, float]:
        """Parameters by name, as in ``FittedModel.params``."""
        return parameters_of(self.members)

    @cached_property
    def rivals(self) -> tuple[FittedLaw, ...]:
        """Other laws on the same steps, for the spread; none for a mixture, which has its own."""
        if len(self.members) > 1:
            return ()
        first = max(self.fit_start, fit_start.beginning(self.curves))
        return tuple(fit_one(name, self.curves, first, final=False) for name in registry.rivals(self.law))

    @cached_property
    def error_budget(self) -> ErrorBudget:
        """Errors measured on the runs: each predicted from the others, noise, misfit."""
        return measure_errors(self)

    def predict(
        self,
        lr: np.ndarray | Sequence[float] | str | Callable[..., float],
        steps: int | None = None,
        **parameters: Any,
    ) -> Prediction:
        """Predict the losses of a schedule; see ``FittedModel.predict``."""
        return self.model.predict(lr, steps, **parameters)

    def to_json(self) -> str:
        """Return the model as JSON text."""
        return self.model.to_json()

    def _uncertainty(self) -> tuple[dict[str, float], Correlations]:
        if len(self.members) == 1:
            return covariance(self.members[0], self.curves)
        errors: dict[str, float] = {}
        correlations: Correlations = {}
        for member in (m for m in self.members if m.fit_start == self.fit_start):
            own, together = covariance(member, self.curves)
            errors |= {f"{member.law}.{a}": e for a, e in own.items()}
            correlations |= {
                f"{member.law}.{a}": {f"{member.law}.{b}": r for b, r in row.items()} for a, row in together.items()
            }
        return errors, correlations

    def _prefix_lrs(self) -> tuple[float, ...]:
        counts_from_start = self.law != "auto" and registry.get(self.law).from_start
        return tuple(self.curves[0].lr[: self.fit_start].tolist()) if counts_from_start else ()


def fit_members(law: str, curves: Sequence[LossCurve], firsts: Sequence[int], *, final: bool = True) -> list[FittedLaw]:
    """Fit a law, or every law of the mixture, from each first step; later fits set out from the parameters before."""
    found: list[FittedLaw] = []
    for name in registry.mixture() if law == "auto" else (law,):
        start = None
        for first in firsts:
            member = fit_one(name, curves, first, start=start, final=final)
            start = member.nonlinear
            found.append(member)
    return found


def end_loss(curve: LossCurve) -> float:
    """Return the loss at a run's end, averaged over its last points."""
    kept = curve.step >= curve.step[-1] - END * len(curve.lr)
    return float(curve.loss[kept].mean())


def end_noise(curve: LossCurve) -> float:
    """Return the standard deviation of the loss at a run's end, from second differences, which a trend leaves alone."""
    tail = curve.loss[-max(len(curve.loss) // 5, 5) :]
    return float(1.4826 * np.median(np.abs(np.diff(tail, n=2))) / np.sqrt(6))


def mean_loss(members: Sequence[FittedLaw], lr: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return the mean loss ``[n]`` of the laws at the states ``at``."""
    return np.mean([member.loss(lr, at) for member in members], axis=0)


def misfit(result: Fit, curve: LossCurve) -> float:
    """Return the mean square of a run's residuals over its later half, averaged over twentieths, in nats squared."""
    kept = curve.step >= result.fit_start
    at, loss, _ = bin_curve(curve.step[kept], curve.loss[kept], MISFIT_BINS)
    later = at >= min(len(curve.lr) / 2, at[-1])
    return float(np.mean((mean_loss(result.members, curve.lr, at)[later] - loss[later]) ** 2))


def measure_errors(result: Fit) -> ErrorBudget:
    """Measure the errors of a fit; fits to all runs but one predict the loss at the end of the run left out."""
    left_out = []
    for i, curve in enumerate(result.curves):
        others = fit_start.without(result.curves, i)
        if not others or not fit_start.varies(others, result.fit_start):
            continue
        members = fit_members(result.law, others, [result.fit_start], final=False)
        at = np.unique(curve.step[curve.step >= curve.step[-1] - END * len(curve.lr)])
        predicted = float(np.mean([member.loss(curve.lr, at).mean() for member in members]))
        left_out.append(LeftOut(curve.name, predicted, end_loss(curve)))
    return ErrorBudget(
        left_out,
        noise=float(np.mean([end_noise(curve) for curve in result.curves])),
        misfit=float(np.sqrt(np.mean([misfit(result, curve) for curve in result.curves]))),
        furthest=float(max(curve.lr.sum() for curve in result.curves)),
    )


def summarise(curve: LossCurve) -> RunSummary:
    """Return what the figures need of a curve."""
    step, loss, _ = bin_curve(curve.step, curve.loss, DRAWN)
    return RunSummary(
        name=curve.name,
        column=str(curve.meta.get("column", "loss")),
        steps=len(curve.lr),
        warmup=warmup_steps(curve.lr),
        step=step.tolist(),
        loss=loss.tolist(),
        rate=curve.lr[np.minimum(step, len(curve.lr) - 1)].tolist(),
        notes=curve.notes,
    )


def fit(curves: LossCurve | Sequence[LossCurve], law: str = "auto", window: int | str = "auto") -> Fit:
    """Fit ``law`` jointly to ``curves``, losses in nats per token.

    ``law``: auto, which is the mixture, or one of ``laws.registry.fittable()``. ``window``: the first step fitted, or
    auto. UserError if the curves cannot be fitted: too few points, a constant rate, mixed batch sizes, a rising loss.
    """
    curves = (curves,) if isinstance(curves, LossCurve) else tuple(curves)
    if not curves:
        raise UserError("fit needs at least one curve")
    registry.check_fittable(law)
    fit_start.check_window(window)
    earliest = int(window) if window != "auto" else fit_start.beginning(curves)
    fit_start.check_curves(curves, law, earliest)
    if law == "auto":
        firsts = [earliest] if window != "auto" else fit_start.candidates(curves, MIXTURE_FRACTIONS)
        windows: list[Window] = []
    else:
        first, windows = fit_start.choose(law, curves, window)
        firsts = [first]
    return Fit(law, tuple(fit_members(law, curves, firsts)), tuple(windows), curves)
