"""``fit(curves)``: fit a law, or a mixture of laws, to runs jointly."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from analysis.curves.curve import LossCurve, bin_curve
from analysis.curves.loading import by_schedule
from analysis.curves.repair import repair
from analysis.fit import fit_start, level_model, level_posterior, summary
from analysis.fit.fit_start import Window
from analysis.fit.fitted_law import Correlations, ErrorBudget, FittedLaw, LeftOut, covariance, fit_one
from analysis.fit.level_model import LevelModel, end_noise, end_of
from analysis.fit.model import FittedModel, Prediction, RunSummary, middle_start, parameters_of
from analysis.laws import registry
from analysis.schedules.features import warmup_steps
from rwkv_lab.config.errors import UserError

DRAWN = 400  # points of a run kept in fit.json for the figures
MISFIT_BINS = 20  # parts of a run over which residuals are averaged before they count as misfit


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """Result of a fit with the curves it was made from; ``model`` is the part that predicts and is stored.

    Rivals, left-out runs and standard errors are computed when first used.
    """

    law: str
    members: tuple[FittedLaw, ...]
    windows: tuple[Window, ...]  # first steps compared
    curves: tuple[LossCurve, ...] = field(repr=False)
    level: LevelModel | None = field(default=None, repr=False)  # of the default law
    left_out: tuple[LeftOut, ...] = field(default=(), repr=False)  # runs predicted from the others by the default law

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
            level=self.level,
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
        """Other laws on the same steps, for the spread; none for the default law, which has its own."""
        if self.level is not None:
            return ()
        first = max(self.fit_start, fit_start.beginning(self.curves))
        return tuple(fit_one(name, self.curves, first, final=False) for name in registry.rivals(self.law))

    @cached_property
    def error_budget(self) -> ErrorBudget:
        """Errors measured on the runs: each predicted from the others, noise, misfit."""
        if self.level is not None:
            furthest = float(max(curve.lr.sum() for curve in self.curves))
            return ErrorBudget(list(self.left_out), self.level.noise, self.level.posterior.misfit, furthest)
        return measure_errors(self)

    def predict(
        self,
        lr: np.ndarray | Sequence[float] | str | Callable[..., float],
        steps: int | None = None,
        **parameters: Any,
    ) -> Prediction:
        """Predict the losses of a schedule; see ``FittedModel.predict``."""
        return self.model.predict(lr, steps, **parameters)

    def __str__(self) -> str:
        """The fit in at most ten lines."""
        return summary.text(self.law, self.runs, self.params, self.error_budget, self.fit_start)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The fit as a table, for Jupyter."""
        return summary.html(self.law, self.runs, self.params, self.error_budget)

    def to_json(self) -> str:
        """Return the model as JSON text."""
        return self.model.to_json()

    def _uncertainty(self) -> tuple[dict[str, float], Correlations]:
        if self.level is not None:
            return self.level.posterior.uncertainty()
        return covariance(self.members[0], self.curves)

    def _prefix_lrs(self) -> tuple[float, ...]:
        counts_from_start = self.law != "auto" and registry.get(self.law).from_start
        return tuple(self.curves[0].lr[: self.fit_start].tolist()) if counts_from_start else ()


def misfit(result: Fit, curve: LossCurve) -> float:
    """Return the mean square of a run's residuals over its later half, averaged over twentieths, in nats squared."""
    kept = curve.step >= result.fit_start
    at, loss, _ = bin_curve(curve.step[kept], curve.loss[kept], MISFIT_BINS)
    later = at >= min(len(curve.lr) / 2, at[-1])
    return float(np.mean((result.members[0].loss(curve.lr, at)[later] - loss[later]) ** 2))


def measure_errors(result: Fit) -> ErrorBudget:
    """Measure the errors of a fit; fits to all runs but one predict the loss at the end of the run left out."""
    left_out = []
    for i, curve in enumerate(result.curves):
        others = fit_start.without(result.curves, i)
        if not others or not fit_start.varies(others, result.fit_start):
            continue
        member = fit_one(result.law, others, result.fit_start, final=False)
        at, measured = end_of(curve)
        left_out.append(LeftOut(curve.name, float(member.loss(curve.lr, at).mean()), measured))
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
        peak=float(curve.lr.max()),
        end=float(curve.lr[-1]),
        about=dict(curve.meta.get("about", {})),
        overrides=list(curve.meta.get("overrides", [])),
    )


def fit(curves: LossCurve | Sequence[LossCurve], law: str = "auto", window: int | str = "auto") -> Fit:
    """Fit ``law`` jointly to ``curves``, losses in nats per token.

    ``law``: auto, the level law with a prior over families, or one of ``laws.registry.fittable()``. ``window``: the
    first step fitted, or auto. Outliers, what comes before a break, and runs given twice are left out, with a note.
    UserError if the curves cannot be fitted: too few points, a constant rate, mixed batch sizes, a rising loss.
    """
    curves = (curves,) if isinstance(curves, LossCurve) else tuple(curves)
    if not curves:
        raise UserError("fit needs at least one curve")
    registry.check_fittable(law)
    fit_start.check_window(window)
    fit_start.check_alike(curves)
    curves, jump = prepare(by_schedule(curves))
    earliest = int(window) if window != "auto" else fit_start.beginning(curves)
    fit_start.check_curves(curves, law, earliest)
    if law == "auto":
        return _fit_level(curves, None if window == "auto" else int(window), jump)
    first, windows = fit_start.choose(law, curves, window)
    return Fit(law, (fit_one(law, curves, first),), tuple(windows), curves)


def prepare(curves: Sequence[LossCurve]) -> tuple[tuple[LossCurve, ...], float]:
    """Return the curves without what no law describes and without runs given twice, and the largest break in nats."""
    kept: list[LossCurve] = []
    for curve in curves:
        same = [i for i, other in enumerate(kept) if _equal(curve, other)]
        if same:
            other = kept[same[0]]
            note = f"given twice (also as {curve.name}): it counts once"
            kept[same[0]] = replace(other, meta={**other.meta, "notes": [*other.notes, note]})
        else:
            kept.append(curve)
    repaired = [repair(curve) for curve in kept]
    return tuple(one.curve for one in repaired), max(one.jump for one in repaired)


def _equal(a: LossCurve, b: LossCurve) -> bool:
    return np.array_equal(a.step, b.step) and np.array_equal(a.loss, b.loss) and np.array_equal(a.lr, b.lr)


def _fit_level(curves: tuple[LossCurve, ...], first: int | None, jump: float) -> Fit:
    """Fit the default: the level law with its prior."""
    left_out, z = level_model.leave_out(curves, first)
    model = level_model.build(curves, first, jump, z, "finished" if len(curves) > 1 else "one")
    linear, nonlinear = model.posterior.parameters(model.posterior.heaviest)
    start = first if first is not None else min(level_posterior.start_of(curve) for curve in curves)
    relative = model.posterior.misfit / min(float(curve.loss[-1]) for curve in curves)
    member = FittedLaw("level", linear, nonlinear, start, model.posterior.reference, relative**2)
    return Fit("auto", (member,), (), curves, model, tuple(left_out))
