"""``stop=forecast``: stop a job of a sweep whose forecast final loss is worse than the best one known.

The rule lives beside the forecast, because the laboratory itself imports nothing of analysis/.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import setting
from rwkv_lab.config.kinds import StopConfig
from rwkv_lab.config.registry import register
from rwkv_lab.runs import Run
from rwkv_lab.sweeps.stopping.curves import GO_ON, JobCurve, Verdict, best_final

if TYPE_CHECKING:
    from analysis.curves.curve import LossCurve
    from analysis.forecast import Siblings

JUDGED = 20  # times a run: a job asked at every evaluation would sooner or later be given up by chance
ENOUGH = 3  # finished runs of the job's own model that make those of others unnecessary
MOST_SIBLINGS, MOST_STOPPED = 12, 6  # finished and stopped runs the law is fitted to
Key = tuple[Path, int]  # a run that is over, and its last update


@register("stop", "forecast")
@dataclass
class ForecastStop(StopConfig):
    """Stops a job if the interval of its forecast final loss lies wholly above the best final loss known.

    That is the best measured one of the finished jobs or the upper end of the best forecast of the running ones.
    """

    confidence: float = setting(0.9, above=0, below=1)  # probability the interval claims

    def verdict(self, job: JobCurve, others: Sequence[JobCurve]) -> Verdict:
        before = float(job.step[-2]) / job.total if len(job.step) > 1 else 0.0
        if job.done < self.after or int(JUDGED * job.done) == int(JUDGED * before):
            return GO_ON
        loss, low, high = predict(job, others, self.confidence)
        best = best_final(others)
        predicted = {"loss": loss, "low": low, "high": high, "step": float(job.step[-1])}
        if low <= best:
            return Verdict(forecast=predicted)
        return Verdict(f"forecast {low:.2f}–{high:.2f} at {100 * job.done:.0f} %; best {best:.2f}", predicted)


def predict(job: JobCurve, others: Sequence[JobCurve], confidence: float) -> tuple[float, float, float]:
    """Return the forecast final loss of ``job`` and its interval.

    It rests on the finished ``others`` of its model, or on all finished ones if those are few; before the first has
    ended, on its own curve alone. Raises UserError if the curve is too short.
    """
    # scipy is imported here, so that listing the rules stays fast.
    from analysis.curves.curve import LossCurve
    from analysis.forecast import forecast

    if job.lr is None:
        raise UserError(f"{job.name} has no schedule to forecast with")
    running = LossCurve(job.step, job.loss, job.lr[: int(job.step[-1])], {"name": job.name, "column": "val_loss"})
    over = [(other, _key(other)) for other in others if other.path and (other.complete or other.stopped)]
    done = [key for other, key in over if other.complete]
    if not done:
        prediction = forecast(running, job.lr)
        low, high = prediction.interval(confidence)
        return float(prediction.final_loss), float(low), float(high)
    model = _model(job.path) if job.path else None
    alike = [key for key in done if _model(key[0]) == model]
    chosen = alike if len(alike) >= ENOUGH else done
    # Those that came furthest tell most.
    stopped = sorted((key for other, key in over if other.stopped), key=lambda key: (-key[1], key[0]))[:MOST_STOPPED]
    siblings = _siblings(tuple(sorted(chosen)[:MOST_SIBLINGS]), tuple(sorted(stopped)))
    return siblings.final(running, job.lr, confidence, stranger=not alike)


def _key(other: JobCurve) -> Key:
    assert other.path is not None
    return other.path, int(other.step[-1])


@lru_cache(maxsize=256)
def _model(path: Path) -> Any:
    """Return the settings of a run's model."""
    return Run(path).config.get("model")


@lru_cache(maxsize=512)
def _curve(path: Path, last: int) -> "LossCurve":
    """Return the curve of a run that is over, up to update ``last``."""
    from analysis.curves.loading import load

    curve = load(path, column="val_loss")
    kept = curve.step <= last
    return replace(curve, step=curve.step[kept], loss=curve.loss[kept])


@lru_cache(maxsize=64)
def _siblings(finished: tuple[Key, ...], stopped: tuple[Key, ...]) -> "Siblings":
    """Return the law of runs that are over: it is fitted again only when one more is."""
    from analysis.forecast import Siblings

    return Siblings.of([_curve(*key) for key in finished], [_curve(*key) for key in stopped])
