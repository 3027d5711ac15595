"""``forecast(running, lr)``: the final loss of a run in progress, from its log so far and runs that have finished.

What the log cannot tell, such as what a decay will gain while the run is on its plateau, comes from the finished runs
and from the prior over families. A forecast of a log of a few hundred points takes about 10 ms.
"""

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from analysis import constants
from analysis.curves.curve import LossCurve, bin_curve
from analysis.curves.loading import load_run
from analysis.curves.repair import repair
from analysis.fit import level_model, level_posterior
from analysis.fit.fitted_law import quantile
from analysis.fit.joint import prepare
from analysis.fit.level_model import SURE, LevelModel, end_noise
from analysis.fit.level_posterior import LevelPosterior
from analysis.fit.model import Prediction, as_rates
from analysis.schedules.features import LevelBlocks, warmup_steps
from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import Run, last_row
from rwkv_lab.runs.provenance import differences, setup
from rwkv_lab.runs.run import FORECAST
from rwkv_lab.tracking import affordable
from rwkv_lab.util.io import write_json

LEAST = 4  # losses after the warm-up from which a run is forecast
DIFFERENT = 0.01  # of the peak: by which the rates logged may differ from those given
LONG = 2000  # points to which a log is binned first
BESIDE = 3  # finished runs that support the forecast of a running one
LOOK_SECONDS = 3.0  # between two looks at a run that is followed
RECENT = 0.1  # share of a run over whose losses its present level is averaged
PRIOR_RUNS = 4  # finished runs that what is known of other families counts for
MISSED = 0.1  # of the fall that is left: most that the law misses of it in general
STRANGE = 0.05  # of the fall that is left: by how much it differs between models


def forecast(
    running: LossCurve, eta: Any, finished: Sequence[LossCurve] = (), steps: int | None = None, **parameters: Any
) -> Prediction:
    """Return the losses of the whole run, ``loss[i]`` before update i, with intervals.

    ``running``: the log so far. ``eta``: the rates of the whole run, an array, or a schedule by name with its length
    ``steps`` and ``parameters``. ``finished``: runs of the same model and data, of any schedule. UserError for too few
    losses after the warm-up, or rates other than those of the log.
    """
    lr = as_rates(eta, steps, parameters)
    model, curves = fit_running(running, lr, finished)
    mean, sd, half = model.states(lr)
    remarks = tuple(f"{curve.name}: {note}" for curve in curves for note in curve.notes)
    return Prediction(lr, mean, sd, half / quantile(SURE), remarks)


def final(running: LossCurve, lr: np.ndarray, finished: Sequence[LossCurve] = ()) -> tuple[float, float, float]:
    """Return the final loss and its 90 % interval; for a display that is refreshed, cheaper than ``forecast``."""
    mean, half = fit_running(running, lr, finished)[0].final(lr)
    return mean, max(mean - half, 0.0), mean + half


def fit_running(
    running: LossCurve, lr: np.ndarray, finished: Sequence[LossCurve] = ()
) -> tuple[LevelModel, tuple[LossCurve, ...]]:
    """Fit the log so far of a run with the rates ``lr``, jointly with finished runs; return also what was fitted."""
    whole = continued(running, lr)
    curves, jump = prepare([whole, *finished])
    after = curves[0].step >= level_posterior.start_of(curves[0])
    if after.sum() < LEAST:
        raise UserError(
            f"{running.name}: a forecast needs at least {LEAST} losses after the warm-up (got {int(after.sum())}); "
            "wait, or log more often"
        )
    return level_model.build(curves, jump=jump, mode="beside" if finished else "running"), curves


def continued(running: LossCurve, lr: np.ndarray) -> LossCurve:
    """Return the log so far as part of the run with the rates ``lr``; UserError if they are not those of the log."""
    last = int(running.step[-1])
    if len(lr) < last:
        raise UserError(f"{running.name}: eta has {len(lr)} rates and the log goes to step {last}")
    known = min(len(running.lr), last)
    off = np.abs(running.lr[:known] - lr[:known])
    if known and np.median(off) > DIFFERENT * lr.max():
        at = int(np.argmax(off > DIFFERENT * lr.max()))
        raise UserError(
            f"{running.name}: eta differs from the rates of the log, first at update {at}: {lr[at]:.4g} instead of "
            f"{running.lr[at]:.4g}; give the schedule of this run"
        )
    step, loss, _ = bin_curve(running.step, running.loss, LONG)
    return replace(running, step=step, loss=loss, lr=lr)


def of_run(folder: Path, finished: Sequence[Run]) -> dict[str, float | str]:
    """Return loss, low, high, step and column of the forecast of a run of this laboratory, beside ``finished`` ones.

    The held-out loss is forecast as soon as it was measured ``LEAST`` times after the warm-up, before that the training
    loss. UserError if neither was.
    """
    try:
        curve, column = load_run(folder, "val_loss"), "val_loss"
    except UserError:
        curve, column = load_run(folder, "train_loss"), "train_loss"
    if (curve.step >= level_posterior.start_of(curve)).sum() < LEAST:
        curve, column = load_run(folder, "train_loss"), "train_loss"
    loss, low, high = final(curve, curve.lr, [load_run(run.path, column) for run in finished])
    return {"loss": loss, "low": low, "high": high, "step": int(curve.step[-1]), "column": column}


def finished_beside(run: Run) -> list[Run]:
    """Return the newest complete runs of a run's study that share model, data, batch size and held-out part with it."""
    own = _compared(run)
    found = []
    for manifest in run.path.parent.glob("*/run.json"):
        other = Run(manifest.parent)
        try:
            if other.path != run.path and other.status == "complete" and not differences(own, _compared(other)):
                found.append(other)
        except UserError:
            continue  # being written, or damaged: other runs do without it
    return sorted(found, key=lambda other: str(other.manifest.get("ended")))[-BESIDE:]


def _compared(run: Run) -> dict[str, Any]:
    return setup(run.config) | {"eval_tokens": (run.config.get("trainer") or {}).get("eval_tokens")}


def follow(folder: Path, ended: threading.Event) -> None:
    """Keep forecast.json of a running run up to date until the run ends, or ``ended`` is set.

    Takes no more CPU time of this process than ``rwkv_lab.tracking.affordable`` allows.
    """
    cost, seen = 0.0, 0.0
    while not ended.wait(LOOK_SECONDS):
        run, row = Run(folder), last_row(folder / "metrics.csv")
        step, seconds, steps = row.get("step", 0.0), row.get("seconds", 0.0), int(run.manifest.get("steps") or 0)
        if run.status != "running":
            return
        before = time.process_time()
        if step <= seen or before + cost > affordable(step / steps, seconds / step * steps):
            continue
        # Too few losses yet, or a log that no law fits: the next rows may do.
        with contextlib.suppress(UserError, ValueError, ArithmeticError, np.linalg.LinAlgError):
            write_json(folder / FORECAST, of_run(folder, finished_beside(run)))
        cost, seen = time.process_time() - before, step


@dataclass(frozen=True)
class Siblings:
    """Runs of one study that have finished and the law they share: how a run of the study falls from here to its end.

    The level of the run that is asked for is its own, measured; the law gives the fall that is left, plus what the
    finished runs fell more than the law from the same share of their way on. So the runs may differ in model: a worse
    model is worse from early on, and falls much like the others. The variance of the final loss is

        (1 + 1/n) s^2 + (factor v)^2 + noise^2 + (STRANGE fall)^2

        s^2 = (K known^2 + sum (e_j - mean e)^2) / (K + n - 1)    known^2 = floor^2 + min(shape, MISSED fall)^2

    with v the standard deviation of the law's fall, e_j the finished runs' further falls, noise that of the measured
    level, the last term for a model none of them has, and factor, floor and shape as measured in general
    (``analysis/constants.json``).
    """

    curves: tuple[LossCurve, ...]
    posterior: LevelPosterior

    @staticmethod
    def of(finished: Sequence[LossCurve], models: Sequence[str]) -> "Siblings":
        """Fit the law to runs that have finished, at least one.

        ``models``: one name a run. Where they differ, each model gets a level of its own.
        """
        curves = tuple(repair(curve).curve for curve in finished)
        posterior = level_posterior.fit_posterior(curves)
        if len(set(models)) > 1 and len(posterior.residuals) == len(curves):
            off = {
                name: np.mean([r.mean() for r, own in zip(posterior.residuals, models, strict=True) if own == name])
                for name in set(models)
            }
            even = [replace(curve, loss=curve.loss + off[name]) for curve, name in zip(curves, models, strict=True)]
            posterior = level_posterior.fit_posterior(even)
        return Siblings(tuple(finished), posterior)

    def final(
        self, running: LossCurve, lr: np.ndarray, level: float = 0.9, stranger: bool = False
    ) -> tuple[float, float, float]:
        """Return the final loss of the log so far of a run with the rates ``lr``, and its interval.

        ``stranger``: none of the finished runs has its model. UserError if a curve has no loss in the last tenth of the
        way.
        """
        share = float(running.step[-1]) / len(lr)
        own = self._fall(running, lr, share)
        falls = [(curve, self._fall(curve, curve.lr, share)) for curve in self.curves]
        further = [curve.loss[-1] - fall.level - fall.change for curve, fall in falls]
        numbers, n = constants.load()["interval"], len(further)
        known = PRIOR_RUNS * (numbers["floor"] ** 2 + min(numbers["shape"], MISSED * abs(own.change)) ** 2)
        scatter = (known + n * float(np.var(further))) / (PRIOR_RUNS + n - 1)
        noise = end_noise(running) ** 2 / own.points
        strange = (STRANGE * own.change) ** 2 if stranger else 0.0
        estimated = (1 + 1 / n) * scatter
        variance = estimated + numbers["factor"]["beside"] ** 2 * own.variance + noise + strange
        # Satterthwaite's degrees of freedom: only the scatter is an estimate from few runs.
        freedom = (PRIOR_RUNS + n - 1) * (variance / estimated) ** 2
        half = float(stdtrit(freedom, 0.5 + level / 2) * np.sqrt(variance))
        loss = own.level + own.change + float(np.mean(further))
        return loss, max(loss - half, 0.0), loss + half

    def _fall(self, curve: LossCurve, lr: np.ndarray, share: float) -> "Fall":
        """Return what a curve has come to at ``share`` of its way, and the law's change from there to its end."""
        last = share * len(lr)
        recent = (curve.step <= last) & (curve.step > last - RECENT * len(lr))
        if not recent.any():
            raise UserError(f"{curve.name} has no loss between {share - RECENT:.0%} and {share:.0%} of its way")
        blocks = LevelBlocks(lr, np.append(curve.step[recent], len(lr)), warmup_steps(lr))
        parts = [
            (component.weight, m[-1] - m[:-1].mean(), (g := J[-1] - J[:-1].mean(axis=0)) @ component.cov @ g)
            for component, (m, J) in zip(self.posterior.components, self.posterior.gradients(blocks), strict=True)
        ]
        change = float(sum(weight * part for weight, part, _ in parts))
        variance = float(sum(weight * (spread + (part - change) ** 2) for weight, part, spread in parts))
        return Fall(float(curve.loss[recent].mean()), change, variance, int(recent.sum()))


class Fall(NamedTuple):
    """A curve at some share of its way."""

    level: float  # mean loss over the last ``RECENT`` of the way
    change: float  # by the law from there to the end
    variance: float  # of that change
    points: int  # losses the level is the mean of
