"""Features of a schedule that the laws use: rates, their running sums, and blocks that stand for many updates.

State t is the model before update t, so it has seen updates 0..t-1; a schedule of T updates has states 0..T. A loss
logged at step i belongs to state i, and a loss measured after the last update to state T.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from analysis.schedules.blocks import LevelBlocks

LONG = 5000  # updates beyond which a schedule is taken in stretches
BLOCKS = 192  # a schedule is cut into at least this many blocks, of one update where it has no more


def warmup_steps(lr: np.ndarray) -> int:
    """Return the length of the rising prefix of ``lr``: the index of the first update that is not below the next."""
    rising = np.diff(lr) > 0
    return int(len(rising) if rising.all() else np.argmin(rising))


def recurrence(decay: np.ndarray, drive: np.ndarray) -> np.ndarray:
    """Return the states ``[T+1]`` of ``x[t+1] = decay[t] x[t] + drive[t]`` from ``x[0] = 0``, by a triangular solve."""
    from scipy.linalg.lapack import dtbtrs

    n = len(drive)
    if n == 0:
        return np.zeros(1)
    band = np.ones((2, n), order="F")
    band[1, :-1] = -decay[1:]
    solution, _ = dtbtrs(band, np.asarray(drive, dtype=float)[:, None], uplo="L", diag="U")
    return np.concatenate([[0.0], solution[:, 0]])


@dataclass(frozen=True)
class Blocks:
    """Stretches of updates taken as one: M blocks between M+1 states."""

    S: np.ndarray  # [M+1] sum of rates at the edges
    rate: np.ndarray  # [M] mean rate
    change: np.ndarray  # [M] sum of eta[k] - eta[k-1], zero during warm-up
    change_S: np.ndarray  # [M] sum of rates where that change happens, weighted by its size
    change_rate: np.ndarray  # [M] rate after the change, weighted by its size


@dataclass(frozen=True)
class ScheduleFeatures:
    """Rates ``lr [T]`` of a schedule, seen at the states ``at [n]`` (rising, from 0 to T).

    ``reference`` is the rate from which annealing is credited, the highest of the runs compared; 0 stands for the
    schedule's own peak. A schedule that peaks lower counts as one that fell from the reference when its warm-up ended.
    """

    lr: np.ndarray
    at: np.ndarray
    reference: float = 0.0

    @cached_property
    def sums(self) -> np.ndarray:
        """Sum ``[T+1]`` of the rates before every state."""
        return np.concatenate([[0.0], np.cumsum(self.lr)])

    @cached_property
    def S(self) -> np.ndarray:
        """Sum ``[n]`` of the rates before the states ``at``; at least the first rate, so that powers are finite."""
        smallest = self.lr[np.argmax(self.lr > 0)]
        return np.maximum(self.sums[self.at], smallest)

    @cached_property
    def warmup(self) -> int:
        """Updates of the rising prefix."""
        return warmup_steps(self.lr)

    @cached_property
    def stretches(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lengths ``[M]`` and mean rates ``[M]`` of stretches of updates, and the indices ``[n]`` of the states ``at``
        among their ends; single updates in a schedule that is not long."""
        steps = len(self.lr)
        ends = np.arange(steps + 1)
        if steps > LONG:
            ends = np.unique(np.concatenate([np.linspace(0, steps, LONG // 2).astype(int), self.at]))
        length = np.diff(ends)
        return length, np.diff(self.sums[ends]) / length, np.searchsorted(ends, self.at)

    @cached_property
    def level_blocks(self) -> LevelBlocks:
        """The schedule as the level law sums over it."""
        return LevelBlocks(self.lr, self.at, self.warmup)

    @cached_property
    def changes(self) -> np.ndarray:
        """Changes ``[T]`` eta[k] - eta[k-1]; zero during warm-up, which gives no annealing credit."""
        change = np.diff(self.lr, prepend=self.lr[0])
        change[: self.warmup + 1] = 0.0
        if self.reference:
            change[self.warmup] = self.lr[self.warmup] - self.reference
        return change

    @cached_property
    def blocks(self) -> Blocks:
        """The schedule in at least ``BLOCKS`` blocks."""
        size = max(1, len(self.lr) // BLOCKS)
        edges = np.unique(np.append(np.arange(0, len(self.lr), size), len(self.lr)))
        first = edges[:-1]
        length = np.diff(edges)
        fall = np.abs(self.changes)
        weight = np.add.reduceat(fall, first)
        centre = np.where(weight > 0, weight, 1.0)
        floor = 1e-9 * self.lr.max()
        return Blocks(
            S=self.sums[edges],
            rate=np.add.reduceat(self.lr, first) / length,
            change=np.add.reduceat(self.changes, first),
            change_S=np.where(weight > 0, np.add.reduceat(fall * self.sums[:-1], first) / centre, self.sums[first]),
            change_rate=np.maximum(
                np.where(weight > 0, np.add.reduceat(fall * self.lr, first) / centre, self.lr[first]), floor
            ),
        )
