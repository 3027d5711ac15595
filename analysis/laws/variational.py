"""The variational law: at a fixed rate the loss tends to a level linear in the rate, and it gets there exponentially.

    P1  at a fixed rate eta the loss tends to Lt(eta)
    P2  Lt(eta) = L0 + alpha eta
    P3  L[t+1] = L[t] - beta eta_t (L[t] - Lt(eta_t))

Bo Peng, "Better Learning Rate Schedule via Variational Method of Loss Curve", 2022. For a fixed beta it is linear:
L_t = L0 (1 - P_t) + alpha y_t + L_start P_t with P_t = prod(1 - beta eta) and y' = y + beta eta (eta - y) from 0, all
counted from the first step of the fit's window, where the loss is L_start.
"""

from collections.abc import Mapping

import numpy as np

from analysis.laws.law import Law, Nonlinear
from analysis.schedules.features import Path, recurrence


def columns(path: Path, nonlinear: Mapping[str, float]) -> np.ndarray:
    step = np.minimum(nonlinear["beta"] * path.eta, 1 - 1e-12)
    lagged = recurrence(1 - step, step * path.eta)[path.at]
    left = np.concatenate([[1.0], np.exp(np.cumsum(np.log1p(-step)))])[path.at]
    return np.stack([1 - left, lagged, left], axis=1)


def pieces(length: np.ndarray, rate: np.ndarray, beta: float) -> np.ndarray:
    """The columns ``[n,3]`` at the ends of ``n`` stretches of ``length`` updates, each taken at its mean ``rate``."""
    log_left = length * np.log1p(-np.minimum(beta * rate, 1 - 1e-12))
    left = np.exp(np.cumsum(log_left))
    decay = np.exp(log_left)
    lagged = recurrence(decay, rate * -np.expm1(log_left))[1:]
    return np.stack([1 - left, lagged, left], axis=1)


def nonlinear(eta_max: float) -> tuple[Nonlinear, ...]:
    return (Nonlinear("beta", 1e-7 / eta_max, 0.5 / eta_max, usual=1 / (2000 * eta_max), spread=3.0),)


LAW = Law(
    name="variational",
    formula="L[t+1] = L[t] - beta eta_t (L[t] - L0 - alpha eta_t)",
    source="Bo Peng 2022, Better Learning Rate Schedule via Variational Method of Loss Curve",
    linear=("L0", "alpha", "L_start"),
    nonlinear=nonlinear,
    columns=columns,
    from_window=True,
)
