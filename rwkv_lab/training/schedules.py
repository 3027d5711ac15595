"""Learning-rate schedules: pure functions ``name(step, total, ...) -> lr``.

``step`` counts optimiser updates from 0 to ``total - 1``. Every schedule rises linearly over the first ``warmup_steps``
updates (update i uses ``lr_init * (i + 1) / warmup_steps``), so no update is wasted on a rate of zero, then goes from
``lr_init`` to ``lr_final`` so that the last update, ``total - 1``, uses ``lr_final`` exactly. Rates are per update, in
the optimiser's own units. This module imports no torch: the trainer and ``analysis`` share it.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

SHAPES = ("constant", "linear", "cosine", "exponential", "sqrt")


def _blend(shape: str, progress: float, start: float, end: float) -> float:
    """The rate at ``progress`` in [0, 1] on the way from ``start`` to ``end``."""
    if shape == "constant":
        return end
    if shape == "linear":
        return start + (end - start) * progress
    if shape == "cosine":
        return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
    if shape == "sqrt":
        return start + (end - start) * math.sqrt(progress)
    if shape == "exponential":
        if start <= 0 or end <= 0:
            raise ValueError("an exponential decay needs rates above 0 at both ends (lr_init and lr_final)")
        return start * (end / start) ** progress
    raise ValueError(f"unknown decay shape '{shape}'; choose one of {', '.join(SHAPES)}")


def _progress(step: int, first: int, last: int) -> float:
    """0 at update ``first``, 1 at update ``last``; 1 where the interval is empty."""
    return min(1.0, (step - first) / (last - first)) if last > first else 1.0


def _warmup(step: int, lr_init: float, warmup_steps: int) -> float | None:
    return lr_init * (step + 1) / warmup_steps if step < warmup_steps else None


def _decay(shape: str, step: int, total: int, lr_init: float, lr_final: float, warmup_steps: int) -> float:
    rising = _warmup(step, lr_init, warmup_steps)
    if rising is not None:
        return rising
    return _blend(shape, _progress(step, warmup_steps, total - 1), lr_init, lr_final)


def constant(step: int, total: int, *, lr_init: float, warmup_steps: int = 0) -> float:
    """``lr_init`` throughout."""
    rising = _warmup(step, lr_init, warmup_steps)
    return lr_init if rising is None else rising


def linear(step: int, total: int, *, lr_init: float, lr_final: float, warmup_steps: int = 0) -> float:
    """A straight line."""
    return _decay("linear", step, total, lr_init, lr_final, warmup_steps)


def cosine(step: int, total: int, *, lr_init: float, lr_final: float, warmup_steps: int = 0) -> float:
    """Half a cosine wave (Loshchilov and Hutter 2017, arXiv 1608.03983)."""
    return _decay("cosine", step, total, lr_init, lr_final, warmup_steps)


def exponential(step: int, total: int, *, lr_init: float, lr_final: float, warmup_steps: int = 0) -> float:
    """Geometric decay, the RWKV recipes' choice; both rates must be above 0."""
    return _decay("exponential", step, total, lr_init, lr_final, warmup_steps)


def wsd(
    step: int,
    total: int,
    *,
    lr_init: float,
    lr_final: float,
    warmup_steps: int = 0,
    decay_fraction: float = 0.2,
    decay_shape: str = "linear",
) -> float:
    """Warm-up, stable, decay (Hu et al. 2024, arXiv 2404.06395): a plateau, then the last ``decay_fraction`` decays."""
    rising = _warmup(step, lr_init, warmup_steps)
    if rising is not None:
        return rising
    first = max(warmup_steps, total - 1 - round(decay_fraction * total))
    if step < first:
        return lr_init
    return _blend(decay_shape, _progress(step, first, total - 1), lr_init, lr_final)


def piecewise(
    step: int,
    total: int,
    *,
    lr_init: float,
    stages: Sequence[tuple[float, float, str]],
    warmup_steps: int = 0,
) -> float:
    """Stages ``(until, lr, shape)``: up to the fraction ``until`` of the run the rate goes to ``lr`` by ``shape``.

    The first stage starts from ``lr_init``, each later one from the rate its predecessor ended with. ``until`` must
    rise to 1; a ``constant`` stage holds ``lr`` throughout.
    """
    rising = _warmup(step, lr_init, warmup_steps)
    if rising is not None:
        return rising
    first, start = warmup_steps, lr_init
    for until, lr, shape in stages:
        last = round(until * total) - 1
        if step <= last:
            return _blend(shape, _progress(step, first, last), start, lr)
        first, start = max(last, warmup_steps), lr
    return start


def fitted(step: int, total: int, *, rates: Sequence[float]) -> float:
    """The rates of a schedule file, one an update."""
    if len(rates) != total:
        raise ValueError(f"the fitted schedule has {len(rates)} steps and the run has {total}")
    return float(rates[step])


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "exponential": exponential,
    "wsd": wsd,
    "piecewise": piecewise,
    "fitted": fitted,
}


def rates(name: str, total: int, **parameters) -> np.ndarray:
    """Every update's rate, float64 ``[total]``, by the schedule called ``name``."""
    schedule = SCHEDULES[name]
    return np.array([schedule(step, total, **parameters) for step in range(total)])
