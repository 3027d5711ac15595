"""The variational law's own fitter."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.curves import LossCurve
from analysis.fit import fit
from analysis.laws.variational import fit_variational
from rwkv_lab.training.schedules import rates

STEPS = 600


@st.composite
def cases(draw):
    """Parameters, and a schedule that varies enough to tell them."""
    peak = draw(st.floats(1e-4, 1e-2))
    truth = {
        "L0": draw(st.floats(1.0, 4.0)),
        "alpha": draw(st.floats(0.02, 0.5)) / peak,
        "beta": draw(st.floats(2.0, 30.0)) / (peak * STEPS),
    }
    truth["L_start"] = truth["L0"] + draw(st.floats(0.8, 3.0))
    name = draw(st.sampled_from(["cosine", "linear", "exponential", "wsd"]))
    eta = rates(name, STEPS, lr_init=peak, lr_final=peak * draw(st.floats(0.05, 0.3)))
    return truth, eta, draw(st.sampled_from([1, 7]))


@settings(max_examples=25, deadline=None)
@given(cases())
def test_exact_data_give_exact_parameters(recursion, case):
    truth, eta, every = case
    step = np.arange(0, STEPS, every)
    curve = LossCurve(step, recursion(eta, **truth)[step], eta)
    found = fit_variational([curve], 0).parameters
    assert {name: found[name] for name in truth} == pytest.approx(truth, rel=1e-6)


def test_a_hundred_thousand_noisy_points(recursion):
    steps = 100_000
    truth = {"L0": 2.5, "alpha": 300.0, "beta": 0.08, "L_start": 4.0}
    eta = rates("cosine", steps, lr_init=1e-3, lr_final=1e-4)
    loss = recursion(eta, **truth)[:-1] + 0.02 * np.random.default_rng(0).normal(size=steps)
    found = fit(LossCurve(np.arange(steps), loss, eta), "variational").params
    assert found["alpha"] == pytest.approx(truth["alpha"], rel=0.01)
    assert found["beta"] == pytest.approx(truth["beta"], rel=0.03)


def test_outliers_hardly_move_it(recursion):
    truth = {"L0": 2.5, "alpha": 300.0, "beta": 9.0, "L_start": 4.0}
    eta = rates("cosine", STEPS, lr_init=1e-3, lr_final=1e-4)
    rng = np.random.default_rng(1)
    loss = recursion(eta, **truth)[:-1] + 0.01 * rng.normal(size=STEPS)
    struck = loss.copy()
    struck[rng.choice(STEPS, 12, replace=False)] += 2.0
    clean, found = (fit_variational([LossCurve(np.arange(STEPS), x, eta)], 0).parameters for x in (loss, struck))
    assert found["alpha"] == pytest.approx(clean["alpha"], rel=0.06)
    assert found["L0"] == pytest.approx(clean["L0"], rel=0.01)


def test_runs_that_reach_the_window_by_other_rates_start_elsewhere(recursion):
    truth = {"L0": 2.5, "alpha": 300.0, "beta": 9.0}
    curves = []
    for name, peak, L_start in (("cosine", 1e-3, 4.0), ("linear", 5e-4, 4.4)):
        eta = np.concatenate([np.full(100, peak), rates(name, STEPS, lr_init=peak, lr_final=peak / 10)])
        loss = recursion(eta[100:], L_start=L_start, **truth)
        curves.append(LossCurve(100 + np.arange(STEPS), loss[:-1], eta, {"name": name}))
    found = fit_variational(curves, 100).parameters
    assert found == pytest.approx({**truth, "L_start": 4.0, "L_start_2": 4.4}, rel=1e-6)


def test_the_window_of_one_run_begins_where_the_law_does(recursion):
    """A transient that the law cannot follow comes first."""
    eta = rates("cosine", 2000, lr_init=1e-3, lr_final=1e-4)
    loss = recursion(eta, L0=2.5, alpha=300.0, beta=3.0, L_start=4.0)[:-1]
    loss = loss + 1.5 * np.exp(-np.arange(2000) / 40) + 0.003 * np.random.default_rng(2).normal(size=2000)
    found = fit(LossCurve(np.arange(2000), loss, eta), "variational")
    assert 100 <= found.fit_start <= 800
    assert found.params["alpha"] == pytest.approx(300.0, rel=0.03)
    assert [row.kind for row in found.windows] == ["correlation"] * len(found.windows)


def test_the_recursion_is_followed_back_before_the_window(recursion):
    truth = {"L0": 2.5, "alpha": 300.0, "beta": 9.0, "L_start": 4.0}
    eta = rates("cosine", STEPS, lr_init=1e-3, lr_final=1e-4)
    loss = recursion(eta, **truth)
    found = fit(LossCurve(np.arange(STEPS), loss[:-1], eta), "variational", window=50)
    prediction = found.predict(eta)
    np.testing.assert_allclose(prediction.loss, loss[:-1], rtol=1e-6)
    assert prediction.final_loss == pytest.approx(loss[-1], rel=1e-6)


def test_the_note(published):
    """The digitised cosine run of the original note."""
    (curve,) = published("note_figure", "cosine_run")
    found = fit(curve, "variational")
    assert found.params["alpha"] == pytest.approx(337, rel=0.01)
    assert found.params["beta"] == pytest.approx(36, rel=0.02)
    assert found.params["L0"] == pytest.approx(2.556, abs=0.002)
    assert abs(found.model.correlations["beta"]["L0"]) > 0.8
    assert any("beta" in remark and "L0" in remark for remark in found.model.remarks)
