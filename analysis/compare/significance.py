"""Significance: which differences between groups exceed the seed noise.

Welch's t-test for every pair of groups, the p-values adjusted by Holm's method over all pairs tested. Welch's test
estimates the spread of each group from its own seeds. It is not paired: one seed draws different weights in two
architectures, which does not make their results alike. Holm's adjustment remains valid for a pair chosen afterwards,
such as the best against the second best. A group of one seed has no known spread and is not tested. A pair is undecided
if either group has two seeds: the spread of two values is below a third of the true one in a quarter of all cases, so
that a small difference could be called real and a larger one in the next row not.

Optionally all groups share one noise, estimated from all of them: with three seeds a group, differences less than half
as large are then significant, and single seeds are tested too, if that assumption is right.

Sources: Welch 1947 (Biometrika 34, 28-35); Satterthwaite 1946; Holm 1979 (Scand. J. Statist. 6, 65-70); Bartlett 1937.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import chdtrc, stdtr, stdtrit

BEYOND, WITHIN, UNDECIDED, UNJUDGED = "beyond noise", "within noise", "undecided", "not tested"
LEAST_SEEDS = 3  # of either group for a verdict from its own noise


@dataclass(frozen=True)
class Verdict:
    """Group ``a`` against ``b``: ``difference`` of means a - b, its unadjusted interval, p adjusted by Holm."""

    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float
    verdict: str


Test = tuple[float, float, float]
UNKNOWN: Test = (float("nan"), float("nan"), float("nan"))


def welch(x: Sequence[float], y: Sequence[float], level: float = 0.95) -> Test:
    """Return ``(p, low, high)``: two-sided p of equal means and the ``level`` interval of mean(x) - mean(y).

    NaN if either has fewer than two values or neither has any spread.
    """
    nx, ny = len(x), len(y)
    if nx < 2 or ny < 2:
        return UNKNOWN
    vx, vy = np.var(x, ddof=1) / nx, np.var(y, ddof=1) / ny
    if np.sqrt(vx + vy) <= 1e-12 * max(abs(np.mean(x)), abs(np.mean(y))):
        return UNKNOWN
    freedom = (vx + vy) ** 2 / (vx**2 / (nx - 1) + vy**2 / (ny - 1))
    error, difference = np.sqrt(vx + vy), float(np.mean(x) - np.mean(y))
    reach = float(stdtrit(freedom, 0.5 + level / 2) * error)
    return float(2 * stdtr(freedom, -abs(difference) / error)), difference - reach, difference + reach


def pooled_test(x: Sequence[float], y: Sequence[float], noise: tuple[float, int], level: float = 0.95) -> Test:
    """Return the result of ``welch`` with standard deviation and degrees of freedom from ``noise`` for both."""
    std, freedom = noise
    if not freedom or std <= 1e-12 * max(abs(np.mean(x)), abs(np.mean(y))):
        return UNKNOWN
    error, difference = std * np.sqrt(1 / len(x) + 1 / len(y)), float(np.mean(x) - np.mean(y))
    reach = float(stdtrit(freedom, 0.5 + level / 2) * error)
    return float(2 * stdtr(freedom, -abs(difference) / error)), difference - reach, difference + reach


def holm(p: Sequence[float]) -> np.ndarray:
    """Return Holm's adjusted p-values in the order given; NaN stay NaN and do not count."""
    values = np.asarray(p, dtype=float)
    adjusted = np.full(values.shape, np.nan)
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(values[known], kind="stable")]
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors)) if len(order) else []
    return adjusted


def pairwise_verdicts(
    samples: Mapping[str, Sequence[float]], baseline: str | None = None, level: float = 0.05, shared: bool = False
) -> list[Verdict]:
    """Return the verdict on every pair of groups with a value, or on every group against ``baseline``.

    ``samples`` maps a group to its values, one a seed. Beyond noise: an adjusted p below ``level``. Undecided: a group
    of fewer than ``LEAST_SEEDS``. With ``shared`` all groups have the same noise, which decides those as well.
    """
    noise = pooled_std(samples)
    known = {name: values for name, values in samples.items() if len(values)}
    if baseline is None:
        pairs = list(combinations(known, 2))
    else:
        pairs = [(name, baseline) for name in known if name != baseline and baseline in known]
    tests = [
        pooled_test(known[a], known[b], noise, 1 - level) if shared else welch(known[a], known[b], 1 - level)
        for a, b in pairs
    ]
    adjusted = holm([p for p, _, _ in tests])
    return [
        Verdict(
            a,
            b,
            float(np.mean(known[a]) - np.mean(known[b])),
            low,
            high,
            float(p),
            _verdict(p, level, LEAST_SEEDS if shared else min(len(known[a]), len(known[b]))),
        )
        for (a, b), (_, low, high), p in zip(pairs, tests, adjusted, strict=True)
    ]


def _verdict(p: float, level: float, seeds: int) -> str:
    """Return the verdict for an adjusted p and the ``seeds`` of the smaller group."""
    if np.isnan(p):
        return UNJUDGED
    if seeds < LEAST_SEEDS:
        return UNDECIDED
    return BEYOND if p < level else WITHIN


def against(verdicts: Sequence[Verdict], reference: str) -> dict[str, Verdict]:
    """Return the verdicts on each other group against ``reference``, with the difference as group - reference."""
    turned = {}
    for v in verdicts:
        if v.b == reference:
            turned[v.a] = v
        elif v.a == reference:
            turned[v.b] = Verdict(v.b, v.a, -v.difference, -v.high, -v.low, v.p, v.verdict)
    return turned


def pooled_std(samples: Mapping[str, Sequence[float]]) -> tuple[float, int]:
    """Return the seed standard deviation over all groups of two seeds or more, and its degrees of freedom."""
    spread = [(np.var(values, ddof=1), len(values) - 1) for values in samples.values() if len(values) > 1]
    freedom = sum(n for _, n in spread)
    return (float(np.sqrt(sum(v * n for v, n in spread) / freedom)), freedom) if freedom else (float("nan"), 0)


def bartlett(samples: Mapping[str, Sequence[float]]) -> float:
    """Return p of equal noise in all groups, by Bartlett's test; NaN if fewer than two groups have a spread."""
    spread = [(np.var(values, ddof=1), len(values) - 1) for values in samples.values() if len(values) > 1]
    variance, freedom = np.array([(v, n) for v, n in spread if v > 0]).reshape(-1, 2).T
    if len(variance) < 2:
        return float("nan")
    whole, others = freedom.sum(), len(variance) - 1
    excess = whole * np.log((variance * freedom).sum() / whole) - (freedom * np.log(variance)).sum()
    # Of equal spreads rounding makes an excess below 0.
    return float(chdtrc(others, max(0.0, excess) / (1 + ((1 / freedom).sum() - 1 / whole) / (3 * others))))
