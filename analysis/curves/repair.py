"""Points and stretches of a logged curve that no law describes: single outliers, spikes, and breaks.

A break is a step of the loss that stays although the rate hardly moves: a restart from other weights, another batch
size, or two runs in one log.
"""

from dataclasses import dataclass

import numpy as np

from analysis.curves.curve import LossCurve
from analysis.schedules.features import warmup_steps

NEIGHBOURS = 10  # points on either side that a point is compared with
FAR = 8.0  # robust standard deviations from its neighbours beyond which a point is an outlier
LEAST = 0.01  # nats, below which nothing is an outlier or a break
MOST = 0.05  # share of a curve that may be outliers; more is how the curve is
LONG = 2000  # points up to which every point is compared with its own neighbours
SIDE = 5  # points on either side of a break
STEADY = 0.05  # share of the peak by which the rate may move over a break
LAST = 3  # points at the end that have no neighbours on one side
FAR_AT_END = 0.1  # nats: least distance of an outlier there, for a decay may steepen
SHOWN = 3  # outliers named one by one


@dataclass(frozen=True)
class Repaired:
    """A curve without what no law describes; ``jump`` is the size in nats of the largest break."""

    curve: LossCurve
    jump: float = 0.0


def _spread(values: np.ndarray) -> float:
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def _around(values: np.ndarray) -> np.ndarray:
    """Return every point's neighbours ``[n, 2 NEIGHBOURS + 1]``, the curve going on straight beyond its ends."""
    padded = np.pad(values, NEIGHBOURS, mode="reflect", reflect_type="odd")
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * NEIGHBOURS + 1)


def _from_neighbours(loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how far ``[n]`` every point is from its neighbours, and their robust standard deviation ``[n]``.

    The points of a long curve are compared with the medians of stretches of it.
    """
    if len(loss) <= LONG:
        off = loss - np.median(_around(loss), axis=1)
        around = _around(off)
        usual = np.median(around, axis=1)  # not 0 where the curve is bent
        return off - usual, 1.4826 * np.median(np.abs(around - usual[:, None]), axis=1)
    size = len(loss) // (LONG // 4)
    whole = loss[: len(loss) // size * size].reshape(-1, size)
    middle = np.median(whole, axis=1)
    at = np.arange(len(loss))
    off = loss - np.interp(at, (np.arange(len(middle)) + 0.5) * size - 0.5, middle)
    spread = 1.4826 * np.median(np.abs(off[: whole.size].reshape(whole.shape)), axis=1)
    return off, spread[np.minimum(at // size, len(spread) - 1)]


def _far_at_the_end(curve: LossCurve) -> np.ndarray:
    """Return which points ``[n]`` among the last few are far from where the points before them were heading."""
    n = len(curve.loss)
    before = slice(n - 2 * NEIGHBOURS, n - LAST)
    x, y = curve.step[before].astype(float), curve.loss[before]
    slope = float(np.median(np.diff(y) / np.diff(x)))
    level = float(np.median(y - slope * x))
    spread = _spread(y - slope * x)
    off = curve.loss - level - slope * curve.step
    return (np.arange(n) >= n - LAST) & (np.abs(off) > FAR * spread + FAR_AT_END)


def outliers(curve: LossCurve) -> np.ndarray:
    """Return the indices of points far from their neighbours, after warm-up and the first tenth."""
    n = len(curve.loss)
    if n < 2 * NEIGHBOURS + 1:
        return np.zeros(0, dtype=int)
    off, spread = _from_neighbours(curve.loss)
    far = np.abs(off) > FAR * spread + LEAST
    far &= (curve.step > warmup_steps(curve.lr)) & (np.arange(n) >= max(NEIGHBOURS, n // 10))
    far |= _far_at_the_end(curve)
    found = np.flatnonzero(far)
    return found if len(found) <= max(1, MOST * n) else np.zeros(0, dtype=int)


def breaks(curve: LossCurve) -> list[tuple[int, float]]:
    """Return (index of the first point after it, size in nats) of every break; none is sought in a curve so dense that
    one interval is lost in the noise."""
    loss, lr = curve.loss, curve.lr
    rate = lr[np.minimum(curve.step, len(lr) - 1)]
    move = np.diff(loss)
    found = []
    for after in np.flatnonzero(np.abs(move) > max(2 * LEAST, FAR * _spread(move))) + 1:
        i = int(after)
        if not 2 * SIDE <= i < len(loss) - SIDE or np.ptp(rate[i - 3 : i + 2]) > STEADY * lr.max():
            continue
        jump = move[i - 1]
        near = np.concatenate([move[max(0, i - 1 - 4 * SIDE) : i - 1], move[i : i + 4 * SIDE]])
        stays = float(np.median(loss[i : i + SIDE]) - np.median(loss[i - SIDE : i]))
        if abs(jump) > FAR * (_spread(near) + abs(float(np.median(near)))) and stays / jump > 0.7:
            found.append((i, float(jump)))
    return found


def repair(curve: LossCurve) -> Repaired:
    """Return the curve from its last break on and without outliers, with a note on either."""
    far = outliers(curve)
    mask = np.ones(len(curve.step), dtype=bool)
    mask[far] = False
    notes = []
    if len(far):
        named = ", ".join(f"{curve.loss[i]:.4g} at step {curve.step[i]}" for i in far[:SHOWN])
        more = f" and {len(far) - SHOWN} more" if len(far) > SHOWN else ""
        notes.append(f"left out as outliers: {named}{more}")
    kept = LossCurve(curve.step[mask], curve.loss[mask], curve.lr, curve.meta)
    broken = breaks(kept)
    for i, size in broken:
        notes.append(
            f"the loss jumps by {size:+.3f} from step {kept.step[i - 1]} to {kept.step[i]} while the rate hardly "
            "moves (a restart, another batch size, or two runs in one log): only what follows is fitted"
        )
    if not notes:
        return Repaired(curve)
    start = broken[-1][0] if broken else 0
    meta = {**curve.meta, "notes": [*curve.notes, *notes]}
    jump = max((abs(size) for _, size in broken), default=0.0)
    return Repaired(LossCurve(kept.step[start:], kept.loss[start:], kept.lr, meta), jump)
