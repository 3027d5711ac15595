"""``stop=forecast``: stop a job of a sweep whose forecast final loss is worse than the best one known.

The rule lives beside the forecast, because the laboratory itself imports nothing of analysis/.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import setting
from rwkv_lab.config.kinds import StopConfig
from rwkv_lab.config.registry import register
from rwkv_lab.runs import Run
from rwkv_lab.sweeps.stopping.curves import GO_ON, JobCurve, Verdict, best_final

if TYPE_CHECKING:
    from analysis.forecast import Siblings

JUDGED = 20  # times a run: a job asked at every evaluation would sooner or later be given up by chance
ENOUGH = 3  # finished runs of the job's own model that make those of others unnecessary
MOST_SIBLINGS = 12  # finished runs the law is fitted to


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
    done = sorted(other.path for other in others if other.complete and other.path)
    if not done:
        prediction = forecast(running, job.lr)
        low, high = prediction.interval(confidence)
        return float(prediction.final_loss), float(low), float(high)
    model = _model(job.path) if job.path else ""
    alike = [path for path in done if _model(path) == model]
    chosen = alike if len(alike) >= ENOUGH else done
    return _siblings(tuple(chosen[:MOST_SIBLINGS])).final(running, job.lr, confidence, stranger=not alike)


@lru_cache(maxsize=256)
def _model(path: Path) -> str:
    """Return the settings of a run's model as text."""
    return str(Run(path).config.get("model"))


@lru_cache(maxsize=64)
def _siblings(finished: tuple[Path, ...]) -> "Siblings":
    """Return the law of complete runs: it is fitted again only when one more has ended."""
    from analysis.curves.loading import load
    from analysis.forecast import Siblings

    return Siblings.of([load(path, column="val_loss") for path in finished], [_model(path) for path in finished])
