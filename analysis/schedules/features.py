"""Features of a schedule that the laws use: rates, their running sums, and blocks that stand for many updates.

State t is the model before update t, so it has seen updates 0..t-1; a schedule of T updates has states 0..T. A loss
logged at step i belongs to state i, and a loss measured after the last update to state T.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rwkv_lab.training import schedules

PIECES = 90  # a schedule is cut into about as many
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
        regular = np.searchsorted(density, np.linspace(0, density[-1], PIECES + 1))
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


GRID = 400  # points in u
SMALLEST = 1e-4  # of S_T: the first point in u after 0
Kernel = Callable[[np.ndarray], np.ndarray]

FORGOTTEN = 1e-120  # least weight of a kernel: an exponential's own underflows


def warmup_ramp(peak: float, warmup: int) -> np.ndarray:
    """Return the rates ``[warmup]`` of a linear warm-up that ends at ``peak``."""
    return schedules.rates("constant", warmup, lr_init=peak, warmup_steps=warmup)


def profile(w: Kernel, p: float, total: float, steps: int, eta_max: float, reference: float) -> np.ndarray:
    """Return rates ``[steps]`` whose progress sums to about ``total``, which must not exceed what ``eta_max`` reaches.

    For a loss F(S_T) + c sum eta_k^2 w(S_T - S_k) with a given S_T, the best rate with u = S_T - S still to come is
    min(eta_max, mu / sqrt(w(u))). If progress s goes as eta^p, the exponent is 1 / (1 + p) instead of 1/2.

    ``w(u)`` is the kernel, ``p`` the exponent of progress, which counts in units of the rate ``reference``.
    """
    u = np.concatenate([[0.0], np.geomspace(SMALLEST * total, total, GRID)])
    shape = np.maximum(w(u), FORGOTTEN) ** (-1 / (1 + p))

    def speed(mu: float) -> np.ndarray:
        return reference * (np.minimum(eta_max, mu * shape) / reference) ** p  # progress of an update at every u

    def updates(mu: float) -> np.ndarray:
        pace = speed(mu)
        return np.concatenate([[0.0], np.cumsum(np.diff(u) * 2 / (pace[1:] + pace[:-1]))])

    low, high = np.log(eta_max / shape[-1]) - 40.0, np.log(eta_max / shape[0])
    for _ in range(80):
        mean = (low + high) / 2
        low, high = (mean, high) if updates(np.exp(mean))[-1] > steps else (low, mean)
    left = updates(np.exp(high))
    rates = np.minimum(eta_max, np.exp(high) * shape)
    remaining = (np.arange(steps, 0, -1) - 0.5) * left[-1] / steps
    return np.interp(np.interp(remaining, left, u), u, rates)


def best_profile(
    w: Kernel,
    p: float,
    final_loss: Callable[[np.ndarray], float],
    steps: int,
    eta_max: float,
    warmup: int,
    reference: float,
) -> np.ndarray:
    """Return the rates ``[steps]`` with the lowest ``final_loss`` among the profiles of a kernel, never rising.

    The search is over the progress reached. The other arguments are those of ``profile``; ``warmup`` updates come
    first.
    """
    from scipy.optimize import minimize_scalar

    furthest = (steps - warmup) * reference * (eta_max / reference) ** p

    def schedule(share: float) -> np.ndarray:
        after = profile(w, p, share * furthest, steps - warmup, eta_max, reference)
        return np.concatenate([warmup_ramp(after[0], warmup), np.minimum.accumulate(after)])

    shares = 1 - np.geomspace(1e-3, 0.9, 24)
    losses = [final_loss(schedule(share)) for share in shares]
    i = int(np.argmin(losses))
    bounds = (shares[min(i + 1, len(shares) - 1)], shares[max(i - 1, 0)])
    found = minimize_scalar(lambda s: final_loss(schedule(s)), bounds=bounds, method="bounded", options={"xatol": 1e-5})
    return schedule(float(found.x))
