import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from analysis.curves import LossCurve
from analysis.fit import fit
from analysis.fit.fitted_law import FittedLaw
from analysis.laws import variational as law_of_peng
from analysis.schedules import recommended, search
from rwkv_lab.config.errors import UserError
from rwkv_lab.training.schedules import rates

PEAK = 3e-3


def never_rises(eta, warmup):
    return bool((np.diff(eta[warmup:]) <= 1e-15 * eta.max()).all())


@pytest.fixture(scope="module")
def variational(recursion):
    truth = {"L0": 2.5, "alpha": 300.0, "beta": 40.0, "L_start": 3.2}
    eta = rates("cosine", 300, lr_init=8e-4, lr_final=1e-4)
    curve = LossCurve(np.arange(300), recursion(eta, **truth)[:-1], eta, {"name": "cosine"})
    return truth, eta, fit(curve, "variational", window=0)


@pytest.fixture(scope="module")
def mixture(run_of):
    return fit([run_of("vplus", name, noise=0.003) for name in ("cosine", "wsd")])


@settings(max_examples=8, deadline=None)
@given(st.floats(0.2, 1.5), st.floats(0.3, 1.5), st.floats(5.0, 40.0), st.integers(8, 25))
def test_feedback_is_the_free_optimum(recursion, excess, cap, pace, steps):
    """Free numerical optimisation of every single rate finds nothing better, to 1e-6."""
    L0, alpha = 2.0, 200.0
    eta_max = cap * excess / (2 * alpha)
    beta = pace / (steps * eta_max)
    if beta * eta_max >= 1:
        beta = 0.9 / eta_max
    member = FittedLaw(
        "variational", {"L0": L0, "alpha": alpha, "L_start": L0 + excess}, {"beta": beta}, 0, eta_max, 0.0
    )

    def final(shares):
        return recursion(eta_max * shares, L0, alpha, beta, L0 + excess)[-1]

    found = law_of_peng.best_schedule(member.linear, member.nonlinear, steps, eta_max, 0)
    free = minimize(final, np.full(steps, 0.5), method="L-BFGS-B", bounds=[(0, 1)] * steps, options={"ftol": 1e-15})
    assert final(found / eta_max) == pytest.approx(free.fun, abs=1e-6)
    assert final(found / eta_max) <= free.fun + 1e-9
    assert found.max() <= eta_max
    assert never_rises(found, 0)


def test_feedback_tends_to_its_continuous_limit():
    """eta(t) = 2 D / (beta D t + 4 alpha) and the loss L0 + 4 alpha D / (beta D t + 4 alpha)."""
    L0, alpha, beta, D, steps = 2.0, 300.0, 1.5, 0.7, 3000
    member = FittedLaw("variational", {"L0": L0, "alpha": alpha, "L_start": L0 + D}, {"beta": beta}, 0, 1.0, 0.0)
    eta = law_of_peng.best_schedule(member.linear, member.nonlinear, steps, 1.0, 0)
    np.testing.assert_allclose(eta, 2 * D / (beta * D * np.arange(steps) + 4 * alpha), rtol=1e-3)
    final = member.loss(eta, np.array([steps]))[0]
    assert final == pytest.approx(L0 + 4 * alpha * D / (beta * D * steps + 4 * alpha), abs=1e-4)


def test_the_closed_form_is_best_then_exponential_then_linear(variational):
    _, eta, found = variational
    final = {kind: recommended.best(found, 300, 8e-4, kind=kind).final_loss for kind in recommended.kinds()}
    assert final["free"] <= final["exponential"] <= final["linear"] < found.predict(eta).final_loss


def test_an_optimum_of_the_variational_law_starts_at_L_start(variational, recursion):
    truth, _, found = variational
    best = recommended.best(found, 200, 8e-4)
    assert best.final_loss == pytest.approx(recursion(best.lr, **truth)[-1], abs=1e-6)
    assert best.method == "closed form of the law"
    assert len(best.lr) == 200


KERNELS = {
    "vplus": FittedLaw("vplus", {"L0": 3.0, "A": 0.5, "alpha": 60.0}, {"a": 0.5, "beta": 1.5}, 0, PEAK, 0.0),
    "power_time": FittedLaw(
        "power_time", {"L0": 3.0, "A": 0.5, "alpha": 60.0}, {"a": 0.5, "beta": 1.5, "p": 0.7}, 0, PEAK, 0.0
    ),
    "functional": FittedLaw(
        "functional", {"L0": 3.0, "A": 0.5, "c": 400.0}, {"a": 0.5, "tau": 0.2, "kappa": 1.5, "d": 0.0}, 0, PEAK, 0.0
    ),
}


@pytest.mark.parametrize("law", KERNELS)
def test_kernel_forms_beat_every_searched_shape(law):
    member, steps = KERNELS[law], 1200
    goal = search.Goal(member.final_loss, steps, 0, 1.0)
    closed = member.kernel_schedule(steps, PEAK, 0)
    for shape in search.shapes().values():
        assert member.final_loss(closed) <= search.search_shape(goal, shape, (PEAK, PEAK), 0)[1] + 1e-4
    assert closed.max() <= PEAK
    assert never_rises(closed, 0)


def test_a_kernel_that_underflows_has_a_closed_form():
    member = FittedLaw("vplus", {"L0": 3.0, "A": 0.5, "alpha": 60.0}, {"a": 0.5, "beta": 400.0}, 0, PEAK, 0.0)
    closed = member.kernel_schedule(1200, PEAK, 0)
    assert np.isfinite(closed).all()
    assert closed.max() <= PEAK


def test_an_exponential_kernel_gives_a_plateau_then_a_rate_whose_inverse_is_linear():
    closed = KERNELS["vplus"].kernel_schedule(3000, PEAK, 0)
    assert closed[1000] == PEAK
    tail = 1 / closed[closed < 0.95 * PEAK]
    assert len(tail) > 100
    slopes = np.diff(tail)[5:-5]
    assert slopes.std() < 0.02 * slopes.mean()


@pytest.mark.parametrize("kind", recommended.kinds())
@pytest.mark.parametrize("warmup", [0, 60])
def test_limits_are_kept(mixture, kind, warmup):
    best = recommended.best(mixture, 1000, 2e-3, warmup, kind)
    assert len(best.lr) == 1000
    assert best.lr.min() >= 0 and best.lr.max() <= 2e-3
    assert never_rises(best.lr, warmup)
    assert best.final_loss == pytest.approx(mixture.predict(best.lr).final_loss)
    if warmup:
        assert (np.diff(best.lr[:warmup]) > 0).all()
    if best.schedule:
        named = dict(best.schedule)
        np.testing.assert_allclose(rates(named.pop("name"), 1000, **named), best.lr, rtol=1e-12)


def test_the_table_has_the_usual_schedules_with_gains_and_the_error(mixture):
    best = recommended.best(mixture, 1000, warmup=50)
    assert {row.kind for row in best.table} == set(search.shapes())
    for row in best.table:
        assert row.gain == pytest.approx(row.final_loss - best.final_loss)
        assert not (row.beyond_error and row.gain <= 0)
        assert row.interval[0] < row.final_loss < row.interval[1]
        assert row.gain > -0.002
    low, high = best.interval(0.9)
    assert low < best.final_loss < high
    assert best.error > 0.003
    assert any("above its prediction" in remark for remark in best.remarks)


def test_a_coarser_law_gives_the_same_loss():
    """The optimiser takes several updates as one."""
    for member in (*KERNELS.values(), FittedLaw("multi_power", {"L0": 3, "A": 0.5, "B": 70}, {
        "a": 0.5, "C": 0.15, "g": 0.5, "b": 0.4}, 0, PEAK, 0.0)):  # fmt: skip
        fine = rates("wsd", 8000, lr_init=PEAK, lr_final=PEAK / 10)
        coarse = rates("wsd", 2000, lr_init=PEAK, lr_final=PEAK / 10)
        expected = member.loss(fine, np.array([8000]))[0]
        assert member.coarser(4.0).loss(4 * coarse, np.array([2000]))[0] == pytest.approx(expected, abs=1e-3)


def test_a_longer_schedule_is_found_on_a_coarser_one(mixture):
    best = recommended.best(mixture, 9000, PEAK, 300)
    assert len(best.lr) == 9000
    assert best.lr.max() <= PEAK
    assert never_rises(best.lr, 300)
    assert all(row.gain > -0.002 for row in best.table)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 1}, "steps"),
        ({"steps": 100, "eta_max": 0.0}, "eta_max"),
        ({"steps": 100, "eta_max": float("nan")}, "eta_max"),
        ({"steps": 100, "warmup": 99}, "warmup"),
        ({"steps": 100, "kind": "cosin"}, "did you mean 'cosine'"),
    ],
)
def test_what_cannot_be_optimised_is_refused(mixture, arguments, message):
    with pytest.raises(UserError, match=message):
        recommended.best(mixture, **arguments)


def test_the_annealing_law_is_never_optimised(run_of):
    found = fit([run_of("vplus", name) for name in ("cosine", "wsd")], "annealing", window=100)
    with pytest.raises(UserError, match=r"annealing.*auto or vplus"):
        recommended.best(found, 100)
