"""Synthetic runs that follow a law exactly, and published ones where the material is at hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from analysis.curves import LossCurve, load
from analysis.fit.fitted_law import FittedLaw
from rwkv_lab.training.schedules import rates

STEPS = 1500
WARMUP = 50
PEAK = 3e-3

TRUTH = {
    "vplus": FittedLaw("vplus", {"L0": 2.1, "A": 1.3, "alpha": 60.0}, {"a": 0.6, "beta": 0.9}, 0, PEAK, 0.0),
    "annealing": FittedLaw("annealing", {"L0": 2.1, "A": 1.3, "C": 0.05}, {"a": 0.6}, 0, PEAK, 0.0),
    "multi_power": FittedLaw(
        "multi_power", {"L0": 2.1, "A": 1.3, "B": 70.0}, {"a": 0.6, "C": 0.15, "g": 0.5, "b": 0.4}, 0, PEAK, 0.0
    ),
    "functional": FittedLaw(
        "functional", {"L0": 2.1, "A": 1.3, "c": 200.0}, {"a": 0.6, "tau": 0.3, "kappa": 1.6, "d": 0.1}, 0, PEAK, 0.0
    ),
}


def usual_rates(name: str, steps: int = STEPS) -> np.ndarray:
    final = {} if name == "constant" else {"lr_final": PEAK / 10}
    return rates(name, steps, lr_init=PEAK, warmup_steps=WARMUP, **final)


def follow(
    member: FittedLaw, eta: np.ndarray, name: str, every: int = 5, noise: float = 0.0, seed: int = 0
) -> LossCurve:
    step = np.arange(0, len(eta), every)
    loss = member.loss(eta, step) + noise * np.random.default_rng(seed).normal(size=len(step))
    return LossCurve(step, loss, eta, {"name": name})


@pytest.fixture(scope="session")
def run_of() -> Callable[..., LossCurve]:
    """``run_of(law, schedule, every=5, noise=0.0, seed=0)``: a run that follows a law."""

    def make(law: str, schedule: str, **how) -> LossCurve:
        return follow(TRUTH[law], usual_rates(schedule), schedule, **how)

    return make


@pytest.fixture(scope="session")
def truth() -> dict[str, FittedLaw]:
    return TRUTH


@pytest.fixture(scope="session")
def schedule_of() -> Callable[..., np.ndarray]:
    return usual_rates


@pytest.fixture(scope="session")
def recursion() -> Callable[..., np.ndarray]:
    """The variational law as a loop: losses ``[T+1]`` before every update and after the last."""

    def run(eta, L0, alpha, beta, L_start) -> np.ndarray:
        loss = [L_start]
        for rate in eta:
            loss.append(loss[-1] - beta * rate * (loss[-1] - L0 - alpha * rate))
        return np.array(loss)

    return run


@pytest.fixture(scope="session")
def published(material: Path) -> Callable[..., list[LossCurve]]:
    """``published(family, *names)``: curves of the material."""
    return lambda family, *names: [load(material / "curves" / family / f"{name}.csv") for name in names]
