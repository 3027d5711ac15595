"""Points and stretches of a logged curve that no law describes: single outliers, spikes, and breaks.

A break is a step of the loss that stays although the rate hardly moves: a restart from other weights, another batch
size, or two runs in one log.
"""

from dataclasses import dataclass, replace

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


def outliers(curve: LossCurve) -> np.ndarray:
    """Return the indices of points far from their neighbours, after warm-up and the first tenth."""
    n = len(curve.loss)
    if n < 2 * NEIGHBOURS + 1:
        return np.zeros(0, dtype=int)
    off, spread = _from_neighbours(curve.loss)
    far = np.abs(off) > FAR * spread + LEAST
    far &= (curve.step > warmup_steps(curve.lr)) & (np.arange(n) >= max(NEIGHBOURS, n // 10))
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
    notes = []
    jump = 0.0
    broken = breaks(curve)
    for i, size in broken:
        jump = max(jump, abs(size))
        notes.append(
            f"the loss jumps by {size:+.3f} from step {curve.step[i - 1]} to {curve.step[i]} while the rate hardly "
            "moves (a restart, another batch size, or two runs in one log): only what follows is fitted"
        )
    start = max((i for i, _ in broken), default=0)
    step, loss = curve.step[start:], curve.loss[start:]
    far = outliers(replace(curve, step=step, loss=loss))
    if len(far):
        named = ", ".join(f"{loss[i]:.4g} at step {step[i]}" for i in far[:SHOWN])
        more = f" and {len(far) - SHOWN} more" if len(far) > SHOWN else ""
        notes.append(f"left out as outliers: {named}{more}")
    if not notes:
        return Repaired(curve)
    mask = np.ones(len(step), dtype=bool)
    mask[far] = False
    meta = {**curve.meta, "notes": [*curve.notes, *notes]}
    return Repaired(LossCurve(step[mask], loss[mask], curve.lr, meta), jump)
