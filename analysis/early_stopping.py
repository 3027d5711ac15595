"""``stop=forecast``: stop a job of a sweep whose forecast final loss is worse than the best one known.

The rule lives beside the forecast, because the laboratory itself imports nothing of analysis/.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import setting
from rwkv_lab.config.kinds import StopConfig
from rwkv_lab.config.registry import register
from rwkv_lab.runs import Run
from rwkv_lab.sweeps.stopping.curves import GO_ON, JobCurve, Verdict, best_final


@register("stop", "forecast")
@dataclass
class ForecastStop(StopConfig):
    """Stops a job if the interval of its forecast final loss lies wholly above the best final loss known.

    That is the best measured one of the finished jobs or the upper end of the best forecast of the running ones.
    """

    confidence: float = setting(0.9, above=0, below=1)  # probability the interval claims

    def verdict(self, job: JobCurve, others: Sequence[JobCurve]) -> Verdict:
        if job.done < self.after:
            return GO_ON
        loss, low, high = predict(job, others, self.confidence)
        best = best_final(others)
        predicted = {"loss": loss, "low": low, "high": high, "step": float(job.step[-1])}
        if low <= best:
            return Verdict(forecast=predicted)
        return Verdict(f"forecast {low:.2f}–{high:.2f} at {100 * job.done:.0f} %; best {best:.2f}", predicted)


def predict(job: JobCurve, others: Sequence[JobCurve], confidence: float) -> tuple[float, float, float]:
    """Return the forecast final loss of ``job`` and its interval; finished ``others`` of its model support it.

    Raises UserError if the curve is too short for a forecast.
    """
    # scipy is imported here, so that listing the rules stays fast.
    from analysis.curves.curve import LossCurve
    from analysis.curves.loading import load
    from analysis.forecast import forecast

    if job.lr is None:
        raise UserError(f"{job.name} has no schedule to forecast with")
    running = LossCurve(job.step, job.loss, job.lr[: int(job.step[-1])], {"name": job.name, "column": "val_loss"})
    model = Run(job.path).config.get("model") if job.path else None
    done = [other.path for other in others if other.complete and other.path]
    finished = [load(path, column="val_loss") for path in done if Run(path).config.get("model") == model]
    prediction = forecast(running, job.lr, finished=finished)
    low, high = prediction.interval(confidence)
    return float(prediction.final_loss), float(low), float(high)
