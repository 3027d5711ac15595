"""The Multi-Power Law: every change of the rate pays off as a power of the learning still to come.

    L = L0 + A S^-a + B sum_k (eta_k - eta_{k-1}) (1 - (1 + C eta_k^-g (S_t - S_{k-1}))^-b)

Luo et al. 2025, arXiv 2503.12811. Summed over blocks of updates, each block's change placed at its centre.
"""

import numpy as np

from analysis.laws.law import Law, Nonlinear, Parameters
from analysis.schedules.features import ScheduleFeatures
from rwkv_lab.config.registry import register


def change_gain(schedule: ScheduleFeatures, C: float, g: float, b: float) -> np.ndarray:
    """Return the sum ``[n]`` over the changes of the rate, negative where the rate fell."""
    blocks = schedule.blocks
    changed = np.flatnonzero(blocks.change)
    since = np.maximum(schedule.S[:, None] - blocks.change_S[changed], 0.0)  # [n, M]
    speed = C * blocks.change_rate[changed] ** -g
    return -np.expm1(-b * np.log1p(speed * since)) @ blocks.change[changed]


def columns(schedule: ScheduleFeatures, nonlinear: Parameters) -> np.ndarray:
    """Return the columns ``[n, 3]`` of L0, A and B."""
    gain = change_gain(schedule, nonlinear["C"], nonlinear["g"], nonlinear["b"])
    return np.stack([np.ones(len(schedule.at)), schedule.S ** -nonlinear["a"], gain], axis=1)


def nonlinear(eta_max: float) -> tuple[Nonlinear, ...]:
    """Return bounds and priors of a, C, g and b."""
    usual_speed = 1 / (200 * eta_max) * eta_max**0.5
    return (
        Nonlinear("a", 0.02, 4.0, usual=0.5, spread=0.7, starts=(0.2,)),
        Nonlinear("C", usual_speed * 1e-3, usual_speed * 1e3, usual=usual_speed, spread=1.0),
        Nonlinear("g", 0.01, 2.0, usual=0.5, spread=0.3),
        Nonlinear("b", 0.02, 5.0, usual=0.5, spread=0.4),
    )


def coarsen(nonlinear: Parameters, factor: float) -> dict[str, float]:
    """Return the parameters for rates that are ``factor`` times as high: C eta^-g stays."""
    return {**nonlinear, "C": nonlinear["C"] * factor ** nonlinear["g"]}


LAW = register("law", "multi_power")(
    Law(
        name="multi_power",
        formula="L = L0 + A S^-a + B sum_k (eta_k - eta_{k-1}) (1 - (1 + C eta_k^-g (S_t - S_{k-1}))^-b)",
        source="Luo et al. 2025, arXiv 2503.12811",
        linear=("L0", "A", "B"),
        nonlinear=nonlinear,
        columns=columns,
        rival=True,
        blocked=True,
        per_rate=("B",),
        coarsen=coarsen,
    )
)
