"""Loss curves: what was logged, and the rate of every update."""

from analysis.curves.loading import LossCurve, bin_means, from_history, load

__all__ = ["LossCurve", "bin_means", "from_history", "load"]
