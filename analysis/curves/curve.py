"""A loss curve: losses at some states of a run, and the rate of every update.

State i is the model before update i. A loss logged at step i therefore belongs to the update with the rate ``lr[i]``,
and a loss measured after the last update has step ``len(lr)``.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rwkv_lab.config.errors import UserError


@dataclass(frozen=True, eq=False)
class LossCurve:
    """One run: ``loss [n]`` in nats per token at the states ``step [n]``, and the rate ``lr [T]`` of every update.

    ``meta`` may contain name, path, column, batch_size and notes (sentences on what was repaired or assumed).
    """

    step: np.ndarray
    loss: np.ndarray
    lr: np.ndarray
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        step, loss, lr = np.asarray(self.step), np.asarray(self.loss, float), np.asarray(self.lr, float)
        if step.ndim != 1 or loss.shape != step.shape or lr.ndim != 1:
            raise UserError(f"{self.name}: step and loss must be one-dimensional and equally long, lr one-dimensional")
        if len(step) == 0:
            raise UserError(f"{self.name}: no point with a finite loss")
        if not np.isfinite(loss).all() or not np.isfinite(step).all():
            raise UserError(f"{self.name}: step and loss must be finite")
        if not np.isfinite(lr).all() or (lr < 0).any() or not (lr > 0).any():
            raise UserError(f"{self.name}: every rate must be finite and at least 0, and one above 0")
        if (loss <= 0).any():
            raise UserError(f"{self.name}: every loss must be above 0 nats per token")
        step = np.rint(step).astype(int)
        if (np.diff(step) <= 0).any():
            raise UserError(f"{self.name}: steps must rise strictly")
        if step[0] < 0 or step[-1] > len(lr):
            raise UserError(f"{self.name}: steps must lie between 0 and {len(lr)}, the number of rates in lr")
        for key, value in (("step", step), ("loss", loss), ("lr", lr)):
            object.__setattr__(self, key, value)

    @property
    def name(self) -> str:
        """Name of the run."""
        return str(self.meta.get("name", "curve"))

    @property
    def eta(self) -> np.ndarray:
        """The rates ``lr``, by the letter of the formulas."""
        return self.lr

    @property
    def notes(self) -> list[str]:
        """Sentences on what was repaired or assumed."""
        return list(self.meta.get("notes", []))


def bin_means(values: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the means ``[m, ...]`` and counts ``[m]`` of at most ``bins`` groups of neighbours."""
    if len(values) <= bins:
        return values, np.ones(len(values))
    first = np.linspace(0, len(values), bins, endpoint=False).astype(int)
    count = np.diff(np.append(first, len(values))).astype(float)
    return np.add.reduceat(values, first, axis=0) / count.reshape(-1, *[1] * (values.ndim - 1)), count


def bin_curve(step: np.ndarray, value: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean step (rounded), mean value and count ``[m]`` of at most ``bins`` groups of neighbouring points."""
    mean_step, _ = bin_means(step, bins)
    mean_value, count = bin_means(value, bins)
    return np.rint(mean_step).astype(int), mean_value, count
