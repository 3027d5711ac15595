"""The functional scaling law: noise injected by every update and forgotten as a power of the learning since.

    L = L0 + A S^-a + c sum_k eta_k^2 S_k^-d (1 + (S_t - S_k) / tau)^-kappa

After the functional scaling laws of Li et al. 2025, arXiv 2509.19189, with the injected noise scaled by S_k^-d. The
kernel is integrated exactly over blocks of updates at one rate each.
"""

import numpy as np

from analysis.laws.law import Kernel, Law, Nonlinear, Parameters
from analysis.schedules.features import ScheduleFeatures
from rwkv_lab.config.registry import register


def injected_noise(schedule: ScheduleFeatures, tau: float, kappa: float, d: float) -> np.ndarray:
    """Return the noise ``[n]`` not yet forgotten at the schedule's states."""
    blocks = schedule.blocks
    left = np.log1p(np.maximum(schedule.S[:, None] - blocks.S, 0.0) / tau)  # [n, M+1]
    power = 1 - kappa
    integral = -np.diff(left if abs(power) < 1e-6 else np.expm1(power * left) / power, axis=1)
    middle = np.maximum((blocks.S[:-1] + blocks.S[1:]) / 2, 1e-300)
    return tau * integral @ (blocks.rate * middle**-d)


def columns(schedule: ScheduleFeatures, nonlinear: Parameters) -> np.ndarray:
    """Return the columns ``[n, 3]`` of L0, A and c."""
    noise = injected_noise(schedule, nonlinear["tau"], nonlinear["kappa"], nonlinear["d"])
    return np.stack([np.ones(len(schedule.at)), schedule.S ** -nonlinear["a"], noise], axis=1)


def nonlinear(eta_max: float) -> tuple[Nonlinear, ...]:
    """Return bounds and priors of a, tau, kappa and d."""
    return (
        Nonlinear("a", 0.02, 4.0, usual=0.5, spread=0.7, starts=(0.2,)),
        Nonlinear("tau", eta_max, 1e5 * eta_max, usual=200 * eta_max, spread=0.7),
        Nonlinear("kappa", 0.1, 20.0, usual=1.5, spread=0.3),
        Nonlinear("d", -1.0, 2.0, usual=0.0, spread=0.15, log=False),
    )


def kernel(nonlinear: Parameters) -> Kernel:
    """Return the power-law kernel, without the factor S_k^-d."""
    return Kernel(lambda u: (1 + u / nonlinear["tau"]) ** -nonlinear["kappa"])


LAW = register("law", "functional")(
    Law(
        name="functional",
        formula="L = L0 + A S^-a + c sum_k eta_k^2 S_k^-d (1 + (S_t - S_k) / tau)^-kappa",
        source="after Li et al. 2025, arXiv 2509.19189, with noise scaled by S^-d",
        linear=("L0", "A", "c"),
        nonlinear=nonlinear,
        columns=columns,
        blocked=True,
        per_rate=("c",),
        kernel=kernel,
    )
)
