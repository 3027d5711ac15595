"""Where a fit begins: the first step from which a law is asked to hold.

With several runs the window is the one whose fits to all but one run best predict the run left out; with one
run, the first after which the residuals are about as white as they get.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from analysis.curves import LossCurve, bin_means
from analysis.fitting.member import Member, fit_member
from analysis.path import warmup_steps
from rwkv_lab.config.errors import UserError

FRACTIONS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)  # of the shortest run, not before its warm-up ends
LEAST_POINTS = 12  # a run must have in a window
BINS = 60  # residuals are averaged into before their correlation is measured
SLACK = 0.1  # a later window must beat an earlier one's error by this share
WHITE = 0.2  # and the correlation of its residuals by this much


@dataclass(frozen=True)
class Window:
    """One candidate: its error in nats (several runs) or the lag-1 correlation of its residuals (one run)."""

    first: int
    score: float
    kind: str  # "left out" | "correlation" | "given"
    final_loss: float  # what the fit gives for the longest run's own schedule
    rms: float  # of the relative residuals

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def beginning(curves: Sequence[LossCurve]) -> int:
    """The first step at which every run's warm-up is over and something is logged."""
    warmups = [warmup_steps(curve.eta) for curve in curves]
    after = max(warmup + 1 if warmup else 0 for warmup in warmups)
    return max(after, min(int(curve.step[0]) for curve in curves))


def candidates(curves: Sequence[LossCurve], fractions: Sequence[float] = FRACTIONS) -> list[int]:
    """First steps, rising, that leave every run enough points; at least one."""
    start = beginning(curves)
    shortest = min(int(curve.step[-1]) for curve in curves)
    firsts = sorted({max(start, int(fraction * shortest)) for fraction in fractions})
    usable = [first for first in firsts if all((c.step >= first).sum() >= LEAST_POINTS for c in curves)]
    return usable or firsts[:1]


def varies(curves: Sequence[LossCurve], first: int) -> bool:
    """Whether some rate from step ``first`` on differs from another, so that its effect can be told."""
    rates = [curve.eta[max(first, warmup_steps(curve.eta)) :] for curve in curves]
    low, high = min(r.min() for r in rates if len(r)), max(r.max() for r in rates if len(r))
    return bool(low < 0.99 * high)


def without(curves: Sequence[LossCurve], index: int) -> list[LossCurve]:
    return [curve for i, curve in enumerate(curves) if i != index]


def own_final(member: Member, curve: LossCurve) -> float:
    return float(member.loss(curve.eta, np.array([len(curve.eta)]))[0])


def left_out_error(law: str, curves: Sequence[LossCurve], first: int, start: Member, compare_from: int) -> float:
    """Mean over the runs of the error at its end and along it, both in nats, of a fit to the other runs."""
    errors = []
    for i, curve in enumerate(curves):
        others = without(curves, i)
        if not varies(others, first):
            continue
        member = fit_member(law, others, first, start=start.nonlinear, final=False)
        kept = curve.step >= max(compare_from, first)
        at, loss, _ = bin_means(curve.step[kept], curve.loss[kept], BINS)
        error = np.abs(member.loss(curve.eta, at) - loss)
        errors.append((error[-max(len(error) // 20, 1) :].mean() + error.mean()) / 2)
    return float(np.mean(errors)) if errors else np.nan


def correlation(member: Member, curve: LossCurve) -> tuple[float, float]:
    """The lag-1 correlation of the binned residuals of one run, and the loss after its last update."""
    kept = curve.step >= member.first
    at, loss, _ = bin_means(curve.step[kept], curve.loss[kept], BINS)
    states = member.loss(curve.eta, np.append(at, len(curve.eta)))
    residual = states[:-1] - loss
    residual = residual - residual.mean()
    square = float(residual @ residual)
    return (float(residual[1:] @ residual[:-1]) / square if square > 0 else 0.0), float(states[-1])


def choose(law: str, curves: Sequence[LossCurve], window: int | str) -> tuple[int, list[Window]]:
    """The window's first step and what was compared to choose it."""
    if window != "auto":
        first = int(window)
        few = [c.name for c in curves if (c.step >= first).sum() < 3]
        if first < 0 or few:
            raise UserError(
                f"window: first step {first} leaves fewer than 3 points of {few[0] if few else 'every run'}"
            )
        return first, []
    longest = max(curves, key=lambda curve: len(curve.eta))
    firsts = candidates(curves)
    start: Member | None = None
    table = []
    for first in firsts:
        member = fit_member(law, curves, first, start=start.nonlinear if start else None, final=False)
        start = member
        if len(curves) > 1:
            score, kind = left_out_error(law, curves, first, member, firsts[-1]), "left out"
            final = own_final(member, longest)
        else:
            (score, final), kind = correlation(member, curves[0]), "correlation"
        table.append(Window(first, score, kind, final, float(np.sqrt(member.cost))))
    scores = np.array([row.score for row in table])
    if np.isnan(scores).all():
        return firsts[0], table
    best = np.nanmin(scores)
    enough = best * (1 + SLACK) if len(curves) > 1 else max(best, 0.0) + WHITE
    return next(row.first for row in table if row.score <= enough), table
