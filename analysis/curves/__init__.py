"""Loss curves: what was logged, and the rate of every update."""

from analysis.curves.curve import LossCurve
from analysis.curves.loading import load

__all__ = ["LossCurve", "load"]
