"""The level law against its formula, update by update."""

import numpy as np
import pytest

from analysis import constants
from analysis.fit.level_posterior import FINITE, NAMES, jacobian, losses
from analysis.laws.level import UNIT, progress_and_level
from analysis.schedules.features import LevelBlocks, warmup_steps
from rwkv_lab.training.schedules import rates

NONLINEAR = {"p": 0.9, "q": 0.6, "tau": 60.0, "b": 0.8, "kappa": 2.0, "Q": 0.3, "h": 0.3}


def by_the_formula(lr, reference, p, q, tau, b, kappa, Q, h):
    """S and N after the last update."""
    peak, warmup = lr.max(), warmup_steps(lr)
    x = peak / reference
    speed = x * ((1 + kappa) / (1 + kappa * x**1.5)) ** (1 / 1.5)
    S = speed * np.cumsum((lr / peak) ** p) / UNIT
    v = x**Q * (np.where(np.arange(len(lr)) < warmup, peak, lr) / peak) ** q
    left = S[:-1]  # S before update 1 and the later ones
    since = (S[-1] - left) * UNIT / (tau * left**h)
    return S[-1], v[0] + float(np.sum(np.diff(v) * (1 - (1 + since) ** -b)))


@pytest.mark.parametrize("name", ["cosine", "wsd", "linear"])
@pytest.mark.parametrize("reference", [1e-3, 2e-3])
def test_blocks_sum_as_the_updates_do(name, reference):
    lr = rates(name, 3000, lr_init=1e-3, lr_final=1e-4, warmup_steps=100)
    blocks = LevelBlocks(lr, np.array([1500, 3000]), warmup_steps(lr))
    S, N = progress_and_level(blocks, reference, {k: np.array([v]) for k, v in NONLINEAR.items()})
    expected = by_the_formula(lr, reference, **NONLINEAR)
    assert S[0, -1] == pytest.approx(expected[0], rel=1e-3)
    assert N[0, -1] == pytest.approx(expected[1], abs=0.01)


def test_coarse_updates_give_the_same_loss():
    fine = rates("wsd", 8000, lr_init=1e-3, lr_final=1e-5, warmup_steps=400)
    coarse = rates("wsd", 1000, lr_init=1e-3, lr_final=1e-5, warmup_steps=50)
    parameters = {k: np.array([v]) for k, v in NONLINEAR.items()}
    a = progress_and_level(LevelBlocks(fine, np.array([8000]), 400), 1e-3, parameters)
    b = progress_and_level(LevelBlocks(coarse, np.array([1000]), 50, each=8.0), 1e-3, parameters)
    np.testing.assert_allclose(np.ravel(a), np.ravel(b), rtol=0.02)


@pytest.mark.parametrize("reference", [1e-3, 3e-3])
def test_derivatives(reference):
    lr = rates("cosine", 2000, lr_init=1e-3, lr_final=1e-4, warmup_steps=50)
    blocks = LevelBlocks(lr, np.array([500, 1000, 2000]), 50)
    theta = np.array([3.0, *(constants.load()["prior"]["mean"][name] for name in NAMES[1:])])
    loss, J = jacobian(theta, blocks, reference, 0.1)
    moved = losses(theta + FINITE * np.eye(len(NAMES)), blocks, reference, 0.1)
    np.testing.assert_allclose(loss, losses(theta, blocks, reference, 0.1)[0])
    np.testing.assert_allclose(J, ((moved - loss) / FINITE).T, atol=1e-3)
