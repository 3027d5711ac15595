"""A schedule in about a hundred blocks of updates, dense where a run is young and where its rate changes."""

import numpy as np

BLOCKS = 90  # a schedule is cut into about as many
JUMP = 0.03  # a change of the rate by this share of the peak in one update ends a block
LEAST = 1e-9  # the lowest rate, as a share of the peak, so that powers stay finite


class LevelBlocks:
    """A schedule ``eta [T]`` as blocks of updates whose edges include the states ``at [n]`` (rising).

    ``each`` is how many updates one rate stands for. Edges are dense where a run is young and where its rate changes.
    """

    def __init__(self, eta: np.ndarray, at: np.ndarray, warmup: int, each: float = 1.0):
        at = np.asarray(at, dtype=int)
        steps = int(at[-1])
        warmup = min(warmup, len(eta) - 1)
        self.peak = float(eta.max())
        moved = np.zeros(steps + 1)
        moved[warmup + 1 : steps] = np.abs(np.diff(eta[warmup:steps])) / self.peak
        t = np.arange(steps + 1)
        share = t / max(steps, 1)
        density = share + 0.4 * np.log1p(100 * share) / np.log1p(100) + 1.2 * np.cumsum(moved)
        regular = np.searchsorted(density, np.linspace(0, density[-1], BLOCKS + 1))
        jumps = np.flatnonzero(moved > JUMP)
        edges = np.unique(np.concatenate([[0, min(warmup, steps)], regular, at, jumps, jumps + 1]).clip(0, steps))
        sums = np.concatenate([[0.0], np.cumsum(eta[:steps])])
        length = np.diff(edges)
        self.length = length * each  # [M] updates
        self.rate = np.maximum(np.diff(sums[edges]) / length / self.peak, LEAST)  # [M] mean, as share of the peak
        level = eta[np.clip(edges - 1, warmup, len(eta) - 1)] / self.peak
        self.level_rate = np.maximum(level, LEAST)  # [M+1] rate whose level a state feels, as share of the peak
        self.index = np.searchsorted(edges, at)  # [n]
        self.falls = np.flatnonzero(np.diff(self.level_rate))  # [F] blocks in which the rate changes
        self.seen = self.index[:, None] > self.falls  # [n,F]
