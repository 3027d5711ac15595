"""Schedules by a few numbers, as the optimiser moves them: warm-up, then a decay from a peak to an end.

Every shape is one of ``rwkv_lab.training.schedules``, so what is found can be typed: ``describe`` gives the
configuration.
"""

from typing import Any

import numpy as np

KINDS = ("linear", "exponential", "cosine", "wsd")
LEAST = 1e-3  # the lowest end of a decay that must stay above 0, as a share of the highest rate


def warmup_ramp(peak: float, warmup: int) -> np.ndarray:
    """Rates ``[warmup]`` rising linearly, the next being ``peak``."""
    return peak * (np.arange(warmup) + 1) / max(warmup, 1)


def decay(kind: str, steps: int, peak: float, end: float, fraction: float = 1.0) -> np.ndarray:
    """Rates ``[steps]`` from ``peak`` to ``end``; of a ``wsd`` the last ``fraction`` decays linearly."""
    progress = np.linspace(0, 1, steps) if steps > 1 else np.zeros(steps)
    if kind == "linear":
        return peak + (end - peak) * progress
    if kind == "exponential":
        return peak * (end / peak) ** progress
    if kind == "cosine":
        return end + (peak - end) * (1 + np.cos(np.pi * progress)) / 2
    return peak + (end - peak) * np.clip((progress - (1 - fraction)) / max(fraction, 1e-9), 0, 1)


def build(kind: str, steps: int, warmup: int, peak: float, end: float, fraction: float = 1.0) -> np.ndarray:
    """Rates ``[steps]`` with the warm-up."""
    return np.concatenate([warmup_ramp(peak, warmup), decay(kind, steps - warmup, peak, end, fraction)])


def describe(kind: str, warmup: int, peak: float, end: float, fraction: float = 1.0) -> dict[str, Any]:
    """The ``schedule`` group that gives these rates."""
    said: dict[str, Any] = {"name": kind, "lr_init": peak, "lr_final": end, "warmup_steps": warmup}
    return said | {"decay_fraction": fraction, "decay_shape": "linear"} if kind == "wsd" else said


def from_numbers(kind: str, numbers: np.ndarray, eta_max: float) -> tuple[float, float, float]:
    """Peak, end and decaying fraction from numbers in [0, 1], any of which give rates up to ``eta_max``."""
    peak = eta_max * 10.0 ** (-2 * numbers[0])
    low = LEAST if kind == "exponential" else 0.0
    end = peak * (low + (1 - low) * numbers[1] ** 2)
    fraction = 0.02 + 0.98 * numbers[2] if kind == "wsd" else 1.0
    return float(peak), float(end), float(fraction)
