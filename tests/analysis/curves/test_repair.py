"""What no law describes is left out of a fit, and named."""

import numpy as np
import pytest

from analysis.curves import LossCurve
from analysis.curves.repair import repair
from analysis.fit import fit
from rwkv_lab.training.schedules import rates

STEPS = 2000


def run(name="wsd", seed=0):
    lr = rates(name, STEPS, lr_init=1e-3, lr_final=1e-4, warmup_steps=50)
    step = np.arange(0, STEPS, 10)
    sums = np.cumsum(np.r_[lr[0], lr])[step]
    noise = 0.003 * np.random.default_rng(seed).normal(size=len(step))
    return LossCurve(step, 2.5 + 0.4 * sums**-0.4 + 100 * lr[step] + noise, lr, {"name": name})


def changed(curve, at, by):
    loss = curve.loss.copy()
    loss[at] += by
    return LossCurve(curve.step, loss, curve.lr, curve.meta)


def test_a_clean_curve_stays():
    curve = run()
    assert repair(curve).curve is curve


@pytest.mark.parametrize(
    ("at", "by"),
    [(100, 5.0), (slice(100, 105), np.array([2, 1.5, 1, 0.7, 0.4])), (-1, 5.0)],
    ids=["point", "spike", "last"],
)
@pytest.mark.parametrize("law", ["auto", "vplus"])
def test_an_outlier_leaves_the_interval_and_is_named(law, at, by):
    others = [run("cosine", 1)]
    lr = rates("linear", STEPS, lr_init=1e-3, lr_final=0.0, warmup_steps=50)
    clean = fit([run(), *others], law).predict(lr)
    spoiled = fit([changed(run(), at, by), *others], law)
    width = [np.diff(p.interval())[0] for p in (clean, spoiled.predict(lr))]
    assert width[1] < 1.5 * width[0]
    assert any("outlier" in remark for remark in spoiled.model.remarks)


def test_only_what_follows_a_break_is_fitted():
    repaired = repair(changed(run(), slice(120, None), -0.2))
    assert repaired.jump == pytest.approx(0.2, abs=0.02)
    assert repaired.curve.step[0] == 1200
    assert any("jumps" in note for note in repaired.curve.notes)


def test_a_run_given_twice_counts_once():
    once, twice = fit([run(), run("cosine", 1)]), fit([run(), run("cosine", 1), run()])
    assert len(twice.curves) == 2
    assert twice.params == once.params
    assert any("given twice" in remark for remark in twice.model.remarks)
