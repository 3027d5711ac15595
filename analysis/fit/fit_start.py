"""Start of a fit: the first step from which a law is expected to describe the loss.

Several runs: the start whose fits to all but one run best predict the run left out. One run: the first start after
which the residuals are about as white as they get.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from analysis.curves.curve import LossCurve, bin_curve
from analysis.fit.fitted_law import FittedLaw, fit_one
from analysis.laws import registry
from analysis.schedules.features import warmup_steps
from rwkv_lab.config.errors import UserError
from rwkv_lab.runs.provenance import differences

TIERS = 5  # parts a run is cut into to see whether its loss rises
MOST_UNKNOWNS = 6  # parameters that the runs must determine in the default law; the rest have priors
POINTS_BEYOND = 4  # points needed beyond the number of parameters
FRACTIONS = (0.0, 0.02, 0.05, 0.1, 0.2)  # of the shortest run, not before its warm-up ends
LEAST_POINTS = 12  # a run must have in a window
BINS = 60  # residuals are averaged into before their correlation is measured
SLACK = 0.1  # a later window must beat an earlier one's error by this share
WHITE = 0.2  # and the correlation of its residuals by this much


@dataclass(frozen=True)
class Window:
    """One candidate: its error in nats (several runs) or the lag-1 correlation of its residuals (one run)."""

    fit_start: int
    score: float
    kind: str  # "left out" | "correlation" | "given"
    final_loss: float  # what the fit gives for the longest run's own schedule
    rms: float  # of the relative residuals

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        stored = asdict(self)
        return {"first": stored.pop("fit_start"), **stored}

    @staticmethod
    def from_dict(stored: Mapping[str, Any]) -> "Window":
        """Read ``to_dict``'s form."""
        rest = dict(stored)
        return Window(fit_start=rest.pop("first"), **rest)


def beginning(curves: Sequence[LossCurve]) -> int:
    """Return the first step at which every run's warm-up is over and a loss is logged."""
    warmups = [warmup_steps(curve.lr) for curve in curves]
    after = max(warmup + 1 if warmup else 0 for warmup in warmups)
    return max(after, min(int(curve.step[0]) for curve in curves))


def candidates(curves: Sequence[LossCurve], fractions: Sequence[float] = FRACTIONS) -> list[int]:
    """Return first steps to compare, rising, that leave every run enough points; at least one."""
    start = beginning(curves)
    shortest = min(int(curve.step[-1]) for curve in curves)
    firsts = sorted({max(start, int(fraction * shortest)) for fraction in fractions})
    usable = [first for first in firsts if all((c.step >= first).sum() >= LEAST_POINTS for c in curves)]
    return usable or firsts[:1]


def varies(curves: Sequence[LossCurve], first: int) -> bool:
    """Return whether the rate differs between updates or runs from step ``first`` on, as a fit needs."""
    rates = [curve.lr[max(first, warmup_steps(curve.lr)) :] for curve in curves]
    low, high = min(r.min() for r in rates if len(r)), max(r.max() for r in rates if len(r))
    return bool(low < 0.99 * high)


def without(curves: Sequence[LossCurve], index: int) -> list[LossCurve]:
    """Return ``curves`` but the one at ``index``."""
    return [curve for i, curve in enumerate(curves) if i != index]


def left_out_error(law: str, curves: Sequence[LossCurve], first: int, start: FittedLaw, compare_from: int) -> float:
    """Return the mean over the runs of the error at its end and along it, in nats, of a fit to the other runs."""
    errors = []
    for i, curve in enumerate(curves):
        others = without(curves, i)
        if not varies(others, first):
            continue
        fitted = fit_one(law, others, first, start=start.nonlinear, final=False)
        kept = curve.step >= max(compare_from, first)
        at, loss, _ = bin_curve(curve.step[kept], curve.loss[kept], BINS)
        error = np.abs(fitted.loss(curve.lr, at) - loss)
        errors.append((error[-max(len(error) // 20, 1) :].mean() + error.mean()) / 2)
    return float(np.mean(errors)) if errors else np.nan


def correlation(fitted: FittedLaw, curve: LossCurve) -> tuple[float, float]:
    """Return the lag-1 correlation of the binned residuals of one run, and the loss after its last update."""
    kept = curve.step >= fitted.fit_start
    at, loss, _ = bin_curve(curve.step[kept], curve.loss[kept], BINS)
    states = fitted.loss(curve.lr, np.append(at, len(curve.lr)))
    residual = states[:-1] - loss
    residual = residual - residual.mean()
    square = float(residual @ residual)
    return (float(residual[1:] @ residual[:-1]) / square if square > 0 else 0.0), float(states[-1])


def choose(law: str, curves: Sequence[LossCurve], window: int | str) -> tuple[int, list[Window]]:
    """Return the first step to fit, and the candidates compared to choose it (none if ``window`` gives it)."""
    if window != "auto":
        first = int(window)
        few = [c.name for c in curves if (c.step >= first).sum() < 3]
        if first < 0 or few:
            raise UserError(f"window {first} leaves fewer than 3 points of {few[0] if few else 'every run'}")
        return first, []
    longest = max(curves, key=lambda curve: len(curve.lr))
    firsts = candidates(curves)
    start: FittedLaw | None = None
    table = []
    for first in firsts:
        fitted = fit_one(law, curves, first, start=start.nonlinear if start else None, final=False)
        start = fitted
        if len(curves) > 1:
            score, kind = left_out_error(law, curves, first, fitted, firsts[-1]), "left out"
            final = fitted.final_loss(longest.lr)
        else:
            (score, final), kind = correlation(fitted, curves[0]), "correlation"
        table.append(Window(first, score, kind, final, float(np.sqrt(fitted.cost))))
    scores = np.array([row.score for row in table])
    if np.isnan(scores).all():
        return firsts[0], table
    best = np.nanmin(scores)
    enough = best * (1 + SLACK) if len(curves) > 1 else max(best, 0.0) + WHITE
    return next(row.fit_start for row in table if row.score <= enough), table


def check_window(window: object) -> None:
    """Refuse a ``window`` other than auto or a step."""
    if window != "auto" and (isinstance(window, bool) or not isinstance(window, int | np.integer) or window < 0):
        raise UserError(f"window must be auto or the first step to fit, an integer of at least 0 (got {window!r})")


def _unknowns(name: str) -> int:
    law = registry.get(name)
    return len(law.linear) + len(law.nonlinear(1.0))


def check_alike(curves: Sequence[LossCurve]) -> None:
    """Refuse runs that differ in more than schedule, peak and seed: a law holds for one model, data and batch size."""
    for key, what in (("batch_size", "batch sizes"), ("column", "columns")):
        values = {str(curve.meta[key]) for curve in curves if curve.meta.get(key) is not None}
        if len(values) > 1:
            raise UserError(f"the runs have mixed {what} ({', '.join(sorted(values))}); fit runs that agree")
    known = [curve for curve in curves if curve.meta.get("about")]
    for curve in known[1:]:
        first, other = known[0].meta["about"], curve.meta["about"]
        off = differences(first, other)
        if off:
            named = ", ".join(f"{key} ({first.get(key)} and {other.get(key)})" for key in off[:4])
            more = f" and {len(off) - 4} more" if len(off) > 4 else ""
            raise UserError(
                f"{known[0].name} and {curve.name} differ in {named}{more}; the runs of a fit may differ in schedule, "
                "peak and seed only"
            )


def check_curves(curves: Sequence[LossCurve], law: str, first: int) -> None:
    """Refuse curves that cannot be fitted jointly from step ``first`` on."""
    needed = POINTS_BEYOND + (MOST_UNKNOWNS if law == "auto" else _unknowns(law))
    for curve in curves:
        kept = curve.loss[curve.step >= first]
        if len(kept) < needed:
            raise UserError(
                f"{curve.name}: law {law} needs at least {needed} points from step {first} on (got {len(kept)})"
            )
        tier = max(len(kept) // TIERS, 1)
        begin, end = np.median(kept[:tier]), np.median(kept[-tier:])
        noise = np.median(np.abs(np.diff(kept))) / np.sqrt(tier)
        if end > begin + noise:
            raise UserError(f"{curve.name}: the loss rises from {begin:.4f} to {end:.4f}; laws describe falling losses")
    if not varies(curves, first):
        raise UserError(
            "the learning rate is constant after warm-up in every run, so its effect is unknown; add a run that decays"
        )
