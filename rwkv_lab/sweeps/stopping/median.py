"""Stop a job that is behind the median of the others."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rwkv_lab.config.fields import setting
from rwkv_lab.config.kinds import StopConfig
from rwkv_lab.config.registry import register
from rwkv_lab.sweeps.stopping.curves import GO_ON, JobCurve, Verdict


@register("stop", "median")
@dataclass
class MedianStop(StopConfig):
    """Stops a job if its best loss so far is above the median of the others' losses at that point.

    The rule of Golovin et al., Google Vizier, KDD 2017, section 3.2.2, over all jobs that have come as far, with the
    others' losses at the point in place of their means up to it: a loss falls all the time, so that a job is never
    behind such a mean.
    """

    least: int = setting(3, low=1)  # other jobs that must have come as far

    def verdict(self, job: JobCurve, others: Sequence[JobCurve]) -> Verdict:
        if job.done < self.after:
            return GO_ON
        rivals = [float(other.loss[index]) for other in others if (index := other.first_at(job.done)) is not None]
        if len(rivals) < self.least:
            return GO_ON
        median, best = float(np.median(rivals)), float(job.loss.min())
        if best <= median:
            return GO_ON
        return Verdict(f"best loss {best:.2f} at {100 * job.done:.0f} %; median of {len(rivals)} others {median:.2f}")
