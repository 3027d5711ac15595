"""The functional scaling law: noise injected by every update and forgotten as a power of the learning since.

    L = L0 + A S^-a + c sum_k eta_k^2 S_k^-d (1 + (S_t - S_k) / tau)^-kappa

After the functional scaling laws of Li et al. 2025, arXiv 2509.19189, with the injected noise scaled by S_k^-d. Each
block of updates is one rate, over which the kernel is integrated exactly.
"""

from collections.abc import Mapping

import numpy as np

from analysis.laws.law import Law, Nonlinear
from analysis.schedules.features import Path


def injected_noise(path: Path, tau: float, kappa: float, d: float) -> np.ndarray:
    """``[n]`` the noise still felt at the path's states."""
    blocks = path.blocks
    left = np.log1p(np.maximum(path.S[:, None] - blocks.S, 0.0) / tau)  # [n, M+1]
    power = 1 - kappa
    integral = -np.diff(left if abs(power) < 1e-6 else np.expm1(power * left) / power, axis=1)
    middle = np.maximum((blocks.S[:-1] + blocks.S[1:]) / 2, 1e-300)
    return tau * integral @ (blocks.rate * middle**-d)


def columns(path: Path, nonlinear: Mapping[str, float]) -> np.ndarray:
    noise = injected_noise(path, nonlinear["tau"], nonlinear["kappa"], nonlinear["d"])
    return np.stack([np.ones(len(path.at)), path.S ** -nonlinear["a"], noise], axis=1)


def nonlinear(eta_max: float) -> tuple[Nonlinear, ...]:
    return (
        Nonlinear("a", 0.02, 4.0, usual=0.5, spread=0.7, starts=(0.2,)),
        Nonlinear("tau", eta_max, 1e5 * eta_max, usual=200 * eta_max, spread=0.7),
        Nonlinear("kappa", 0.1, 20.0, usual=1.5, spread=0.3),
        Nonlinear("d", -1.0, 2.0, usual=0.0, spread=0.15, log=False),
    )


LAW = Law(
    name="functional",
    formula="L = L0 + A S^-a + c sum_k eta_k^2 S_k^-d (1 + (S_t - S_k) / tau)^-kappa",
    source="after Li et al. 2025, arXiv 2509.19189, with noise scaled by S^-d",
    linear=("L0", "A", "c"),
    nonlinear=nonlinear,
    columns=columns,
    blocked=True,
)
