"""The level law: the loss level of a rate grows as a power of it below 1, and lingers when the rate falls.

    L = L0 + A S^-a + c S^d N
    S(t) = s(peak) sum_k (eta_k / peak)^p / 1e4                 progress, in ten thousand updates at the reference rate
    N(t) = v_0 + sum_k (v_k - v_{k-1}) (1 - (1 + (S(t) - S(k)) / (tau S(k)^h))^-b),   v_k = (peak/ref)^Q (eta_k/peak)^q
    s(peak) = x ((1 + kappa) / (1 + kappa x^m))^(1/m),  x = peak / ref,  m = 1.5

ref is the highest rate of the runs fitted, peak that of the run at hand, and during warm-up v is the peak's. tau is
given in updates at the reference rate. Within a run progress is nearly proportional to the rate (p near 1) and the
level grows as eta^q with q near 0.6; between runs the peak counts for less: the progress of a run saturates in its
peak (s), and its level grows as peak^Q with Q near 0.3. The later a level is left, the longer it lingers (h): without
h a short decay of a long run is credited with too much. Ours; a kernel over the changes of the rate is the multi-power
law's (Luo et al. 2025, arXiv 2503.12811).

All functions take a batch of parameters: arrays ``[B]`` give columns ``[B,n]``.
"""

import math
from collections.abc import Mapping

import numpy as np

from analysis import constants
from analysis.laws.law import Law, Nonlinear
from analysis.schedules.features import LevelBlocks, ScheduleFeatures
from rwkv_lab.config.registry import register

UNIT = 1e4  # updates at the reference rate in which S counts
LINGER = 0.3  # h: how the time in which levels left behind fade grows with progress; 0 in earlier fits
BEND = 1.5  # m: how sharply the progress of a run saturates in its peak


def peak_progress(x: np.ndarray, kappa: np.ndarray) -> np.ndarray:
    """How far an update at the peak brings a run, relative to one at the reference rate; ``x`` is peak / reference."""
    return x * ((1 + kappa) / (1 + kappa * x**BEND)) ** (1 / BEND)


def progress_and_level(
    blocks: LevelBlocks, reference: float | np.ndarray, nonlinear: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """S in units of ``UNIT`` updates and N, both ``[B,n]``; ``reference`` is one rate, or ``[B,1]``."""
    p, q, tau, b, kappa, Q, h = (
        np.atleast_1d(np.asarray(nonlinear.get(name, 0.0) if name == "h" else nonlinear[name], float))[:, None]
        for name in ("p", "q", "tau", "b", "kappa", "Q", "h")
    )
    x = blocks.peak / reference
    steps = blocks.length * blocks.rate**p * (peak_progress(np.asarray(x), kappa) / UNIT)
    S = np.concatenate([np.zeros((len(steps), 1)), np.cumsum(steps, axis=1)], axis=1)  # [B,M+1]
    v = blocks.level_rate**q * x**Q
    here, falls = S[:, blocks.index], blocks.falls
    N = np.repeat(v[:, :1], len(blocks.index), axis=1)
    if len(falls):
        middle = (S[:, falls] + S[:, falls + 1]) / 2
        since = np.maximum(here[:, :, None] - middle[:, None, :], 0.0)  # [B,n,F]
        time = tau[:, :, None] / UNIT * np.maximum(middle, 1 / UNIT)[:, None, :] ** h[:, :, None]
        arrived = -np.expm1(-b[:, :, None] * np.log1p(since / time))
        change = v[:, falls + 1] - v[:, falls]
        N = N + np.einsum("bnf,bf->bn", np.where(blocks.seen, arrived, 0.0), change)
    return np.maximum(here, 1 / UNIT), N


def columns(schedule: ScheduleFeatures, nonlinear: Mapping[str, float]) -> np.ndarray:
    """Return the columns ``[n, 3]`` of L0, A and c."""
    reference = schedule.reference or float(schedule.lr.max())
    one = {name: np.array([value]) for name, value in nonlinear.items()}
    S, N = progress_and_level(schedule.level_blocks, reference, one)
    return np.stack([np.ones(S.shape[1]), S[0] ** -nonlinear["a"], S[0] ** nonlinear["d"] * N[0]], axis=1)


LIMITS = {  # of the parameters searched when the law is fitted alone
    "a": (0.02, 4.0),
    "tau": (1.0, 2e4),
    "b": (0.08, 12.0),
    "p": (0.2, 1.5),
    "q": (0.05, 1.5),
    "kappa": (0.02, 50.0),
    "Q": (-0.5, 1.5),
    "d": (-0.5, 0.5),
    "h": (0.0, 1.0),
}
LOGS = ("a", "tau", "b", "kappa")  # searched by their logarithms


def nonlinear(eta_max: float) -> tuple[Nonlinear, ...]:
    """Usual values and spreads are those of the prior over families, ``analysis/constants.json``."""
    mean, spread = (constants.load()["prior"][key] | {"h": x} for key, x in (("mean", LINGER), ("sd", 0.2)))
    return tuple(
        Nonlinear(
            name,
            *limits,
            usual=math.exp(mean[name]) if name in LOGS else mean[name],
            spread=spread[name],
            log=name in LOGS,
        )
        for name, limits in LIMITS.items()
    )


LAW = register("law", "level")(
    Law(
        name="level",
        formula="L = L0 + A S^-a + c S^d N,  N = v_0 + sum_k (v_k - v_{k-1}) (1 - (1 + (S-S_k)/(tau S_k^h))^-b), "
        "v = eta^q",
        source="ours: a level eta^q under a power kernel",
        linear=("L0", "A", "c"),
        nonlinear=nonlinear,
        columns=columns,
        blocked=True,
    )
)
