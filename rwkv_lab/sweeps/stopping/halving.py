"""Let only the best part of the jobs pass each of a few points of the run."""

from collections.abc import Sequence
from dataclasses import dataclass

from rwkv_lab.config.fields import setting
from rwkv_lab.config.kinds import StopConfig
from rwkv_lab.config.registry import register
from rwkv_lab.sweeps.stopping.curves import GO_ON, JobCurve, Verdict


@register("stop", "halving")
@dataclass
class HalvingStop(StopConfig):
    """Asynchronous successive halving (Li et al., MLSys 2020, arXiv 1810.05934), in the form that stops jobs.

    Rungs lie at ``after``, ``after * factor``, ``after * factor**2``, ... of a run. A job that comes to one goes on if
    it is among the best ``1 / factor`` of the jobs that have come there so far, itself included.
    """

    factor: int = setting(3, low=2)  # one job in so many passes a rung

    def verdict(self, job: JobCurve, others: Sequence[JobCurve]) -> Verdict:
        before = float(job.step[-2]) / job.total if len(job.step) > 1 else 0.0
        passed = [rung for rung in self.rungs() if before < rung <= job.done]
        if not passed:
            return GO_ON
        rung = passed[-1]
        rivals = [float(other.loss[index]) for other in others if (index := other.first_at(rung)) is not None]
        own = float(job.loss[-1])
        rank = sum(rival < own for rival in rivals)
        passes = max(1, (len(rivals) + 1) // self.factor)
        if rank < passes:
            return GO_ON
        return Verdict(
            f"loss {own:.2f} at {100 * job.done:.0f} % is number {rank + 1} of {len(rivals) + 1}; {passes} pass"
        )

    def rungs(self) -> list[float]:
        """Return the fractions of a run at which jobs are compared."""
        rungs = [max(self.after, 1e-9)]
        while rungs[-1] * self.factor < 1:
            rungs.append(rungs[-1] * self.factor)
        return rungs
