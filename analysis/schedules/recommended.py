"""Recommended schedule: ``best(model, steps)``, and the file that ``schedule=fitted schedule.fit=PATH`` reads.

A schedule is best only under a law, and the search finds where the law errs in its favour: predicted gains come out
smaller when trained (the winner's curse). The gain is therefore shown beside the error of the fit.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.fit.joint import Fit
from analysis.fit.model import FittedModel, Prediction, best_run
from analysis.schedules import search
from rwkv_lab.config.errors import UserError, nearest
from rwkv_lab.util.io import write_atomic

LEVEL = 0.9


def kinds() -> tuple[str, ...]:
    """Names of the kinds of schedule that can be optimised: free, and the usual shapes."""
    return ("free", *search.shapes())


@dataclass(frozen=True)
class Row:
    """The best schedule of one kind; ``gain`` is how far the optimum lies below it, in nats."""

    kind: str
    final_loss: float
    interval: tuple[float, float]
    gain: float
    beyond_error: bool
    schedule: dict[str, Any]  # the `schedule` group that gives it
    lr: np.ndarray


@dataclass(frozen=True, eq=False)
class Optimum:
    """Best schedule found: rates ``lr [steps]``, which follow ``prefix_lrs`` in a run."""

    lr: np.ndarray
    final_loss: float
    kind: str
    law: str
    schedule: dict[str, Any] | None  # the `schedule` group that gives it; None for a free schedule
    table: list[Row]  # the model's best schedule of every usual shape
    error: float  # nats: error of the model's predictions, which a gain must exceed to be believed
    prediction: Prediction
    prefix_lrs: np.ndarray
    method: str

    @property
    def steps(self) -> int:
        """Updates of the whole run, ``prefix_lrs`` included."""
        return len(self.prefix_lrs) + len(self.lr)

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Return the interval of the final loss."""
        return self.prediction.interval(level)

    @property
    def remarks(self) -> list[str]:
        """Cautions before training it, a sentence each."""
        doubtful = [row.kind for row in self.table if row.lr is not self.lr and not row.beyond_error]
        found = ["a recommended schedule tends to end above its prediction: the search favours the errors of the law"]
        if doubtful:
            found.append(f"its gain over {', '.join(doubtful)} is within the error of the comparison")
        return [*found, *self.prediction.remarks]


def _check(steps: int, eta_max: float, warmup: int, kind: str) -> None:
    if steps != int(steps) or steps < 2:
        raise UserError(f"steps must be an integer of at least 2 (got {steps})")
    if not np.isfinite(eta_max) or eta_max <= 0:
        raise UserError(f"eta_max must be a rate above 0, e.g. 6e-4 (got {eta_max})")
    if warmup != int(warmup) or not 0 <= warmup < steps - 1:
        raise UserError(f"warmup must be an integer from 0 to {int(steps) - 2} (got {warmup})")
    if kind not in kinds():
        raise UserError(f"kind '{kind}' is unknown{nearest(kind, kinds())}; choose one of {', '.join(kinds())}")


def best(
    fit: Fit | FittedModel, steps: int, eta_max: float | None = None, warmup: int = 0, kind: str = "free"
) -> Optimum:
    """Return the schedule of ``steps`` updates with the lowest predicted final loss.

    Its rates do not rise after ``warmup`` updates. The peak is searched too if the runs have several, up to 1.5 times
    the highest; otherwise it is theirs. ``eta_max``: the highest rate allowed, per update. For a law that counts
    from the fit's first step, the schedule follows the first run's rates up to there. ``kind``:
    free, or the best of one of the usual shapes. UserError for a law that is not optimised.
    """
    model = fit.model if isinstance(fit, Fit) else fit
    highest = model.reference if eta_max is None else float(eta_max)
    _check(steps, highest, warmup, kind)
    steps, warmup = int(steps), int(warmup)
    peaks = search.peaks_of(model, None if eta_max is None else highest)
    goal = search.goal_of(model, steps, warmup, peaks[1])
    found = {name: search.search_shape(goal, shape, peaks, warmup) for name, shape in search.shapes().items()}
    usual = {name: search.rates_of(group, steps) for name, (group, _) in found.items()}
    chosen = min(found, key=lambda name: found[name][1]) if kind == "free" else kind
    schedule: dict[str, Any] | None = found[chosen][0]
    lr, method = usual[chosen], f"the best of the shape {chosen}"
    if kind == "free" and model.level is None:
        own = _closed_form(model, steps, peaks[1], warmup)
        prefix = np.array(model.prefix_lrs)
        if own is not None and _final(model, prefix, own) < _final(model, prefix, lr):
            lr, method, schedule = own, "closed form of the law", None
    return _compare(model, kind, lr, method, schedule, {name: (found[name][0], usual[name]) for name in found})


def _closed_form(model: FittedModel, steps: int, eta_max: float, warmup: int) -> np.ndarray | None:
    """Return the rates that are best exactly, or by the law's kernel; None for a law without either."""
    member = model.members[0]
    exact = member.definition.best_schedule
    if exact is not None:
        return exact(member.linear, member.nonlinear, steps, eta_max, warmup)
    return member.kernel_schedule(steps, eta_max, warmup)


def _final(model: FittedModel, prefix: np.ndarray, lr: np.ndarray) -> float:
    return model.predict(np.concatenate([prefix, lr])).final_loss


def _compare(
    model: FittedModel,
    kind: str,
    lr: np.ndarray,
    method: str,
    schedule: dict[str, Any] | None,
    others: dict[str, tuple[dict[str, Any], np.ndarray]],
) -> Optimum:
    """Set the schedule found beside the best of every shape."""
    prefix = np.array(model.prefix_lrs)
    prediction = model.predict(np.concatenate([prefix, lr]))
    error = float(prediction.error[-1])
    doubts = model.level.differences(lr, [rates for _, rates in others.values()]) if model.level else None
    table = []
    for i, (name, (group, rates)) in enumerate(others.items()):
        other = model.predict(np.concatenate([prefix, rates]))
        gain = other.final_loss - prediction.final_loss
        needed = error if doubts is None else float(doubts[i])
        table.append(Row(name, other.final_loss, other.interval(), gain, gain > needed, group, rates))
    return Optimum(lr, prediction.final_loss, kind, model.law, schedule, table, error, prediction, prefix, method)


def propose(
    model: FittedModel, steps: int, eta_max: float | None = None, warmup: int | None = None, kind: str = "free"
) -> tuple[Optimum, np.ndarray]:
    """Return the optimum for a whole run of ``steps`` updates and its rates ``[steps]``.

    A law that counts from the fit's first step keeps the first run's rates before it. ``warmup``: that of the first run
    by default. UserError if ``steps`` end before the fit's first step.
    """
    prefix = len(model.prefix_lrs)
    if steps <= prefix + 1:
        raise UserError(f"steps must be above {prefix + 1}, since the fit starts at step {prefix} (got {steps})")
    own = model.runs[0].warmup if prefix == 0 else 0
    warmup = min(own, (steps - prefix) // 2) if warmup is None else warmup
    optimum = best(model, steps - prefix, eta_max, warmup, kind)
    return optimum, np.concatenate([optimum.prefix_lrs, optimum.lr])


def as_dict(model: FittedModel, optimum: Optimum, rates: np.ndarray) -> dict[str, Any]:
    """Return the ``proposal`` of a schedule file."""
    return {
        "steps": len(rates),
        "rates": rates.tolist(),
        "predicted_final_loss": optimum.final_loss,
        "interval": list(optimum.interval(LEVEL)),
        "level": LEVEL,
        "column": model.runs[0].column,
        "law": model.law,
        "kind": optimum.kind,
        "schedule": optimum.schedule,
        "best_run": best_run(model.runs),
    }


def write_schedule(path: Path, rates: np.ndarray, loss: np.ndarray) -> None:
    """Replace ``path`` in one step by a CSV of the rate of every update and the loss predicted before it."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["step", "lr", "predicted_loss"])
    writer.writerows(
        (i, f"{rate:.9g}", f"{value:.6f}") for i, (rate, value) in enumerate(zip(rates, loss, strict=True))
    )
    write_atomic(path, text.getvalue().encode())
