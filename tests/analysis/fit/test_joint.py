import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.curves import LossCurve
from analysis.fit import FittedModel, fit
from analysis.fit.fitted_law import ErrorBudget, LeftOut
from rwkv_lab.config.errors import UserError

PAIR = ("cosine", "wsd")


@pytest.fixture(scope="module")
def mixture(run_of):
    return fit([run_of("vplus", name, noise=0.003) for name in PAIR])


@pytest.mark.parametrize("law", ["vplus", "annealing", "multi_power", "functional"])
def test_exact_data_give_exact_parameters(run_of, truth, law):
    curves = [run_of(law, name) for name in PAIR]
    curves = [LossCurve(c.step, c.loss, c.lr, c.meta) for c in curves]
    found = fit(curves, law, window=60).params
    if law in ("multi_power", "functional"):  # summed over blocks here and in the truth alike
        assert found == pytest.approx(truth[law].parameters, rel=1e-5)
    else:
        assert found == pytest.approx(truth[law].parameters, rel=1e-6)


@settings(max_examples=10, deadline=None)
@given(st.floats(0.3, 1.2), st.floats(0.3, 3.0), st.floats(20.0, 90.0), st.sampled_from(["cosine", "wsd", "linear"]))
def test_vplus_is_recovered_from_two_runs(run_of, schedule_of, truth, a, beta, alpha, other):
    from dataclasses import replace

    law = replace(truth["vplus"], nonlinear={"a": a, "beta": beta}, linear={"L0": 2.0, "A": 1.0, "alpha": alpha})
    curves = []
    for name in ("exponential", other):
        eta = schedule_of(name, 800)
        step = np.arange(0, 800, 8)
        curves.append(LossCurve(step, law.loss(eta, step), eta, {"name": name}))
    assert fit(curves, "vplus", window=60).params == pytest.approx(law.parameters, rel=1e-5)


def test_the_default_predicts_schedules_it_has_not_seen(run_of, mixture):
    assert [member.law for member in mixture.members] == ["level"]
    predicted, measured = [], []
    for name in ("constant", "linear", "exponential"):
        unseen = run_of("vplus", name)
        prediction = mixture.predict(unseen.lr)
        predicted.append(prediction.final_loss)
        measured.append(unseen.loss[-1])
        error = prediction.at(unseen.step[-1]) - unseen.loss[-1]
        low, high = prediction.interval(0.9)
        assert abs(error) < 0.02
        assert low < prediction.final_loss < high
    np.testing.assert_array_equal(np.argsort(predicted), np.argsort(measured))


def test_a_prediction_counts_states_as_a_curve_does(run_of, mixture):
    eta = run_of("vplus", "linear").lr
    prediction = mixture.predict(eta)
    assert prediction.loss.shape == eta.shape
    assert prediction.at(len(eta)) == prediction.final_loss
    assert np.isfinite(prediction.loss).all()
    by_name = mixture.predict("linear", len(eta), lr_init=eta.max(), lr_final=eta[-1], warmup_steps=50)
    assert by_name.final_loss == pytest.approx(prediction.final_loss, abs=1e-9)
    by_function = mixture.predict(lambda step, total: 1e-3, 300)
    np.testing.assert_array_equal(by_function.lr, np.full(300, 1e-3))


def test_intervals_nest_and_widen_with_doubt(run_of, mixture):
    eta = run_of("vplus", "linear").lr
    prediction = mixture.predict(eta)
    widths = [np.diff(prediction.interval(level))[0] for level in (0.5, 0.8, 0.9, 0.99)]
    assert widths == sorted(widths)
    alone = fit([run_of("vplus", "cosine", noise=0.003)])
    assert np.diff(alone.predict(eta).interval())[0] > 1.1 * widths[2]
    sure, unsure = ErrorBudget([LeftOut("a", 2.0, 2.001)]), ErrorBudget([LeftOut("a", 2.0, 2.05)])
    near = np.array([1.0])
    assert unsure.scale(0 * near, near) > sure.scale(0 * near, near)
    assert sure.scale(0.01 * near, near) > sure.scale(0 * near, near)
    assert ErrorBudget(furthest=1.0).scale(0 * near, 3 * near) > ErrorBudget(furthest=1.0).scale(0 * near, near)


@pytest.mark.parametrize("law", ["auto", "variational", "vplus", "multi_power"])
def test_json_round_trip(run_of, law):
    curves = [run_of("vplus", name, noise=0.002) for name in PAIR]
    found = fit(curves, law)
    again = FittedModel.from_json(found.to_json())
    eta = run_of("vplus", "linear").lr
    first, second = found.predict(eta), again.predict(eta)
    np.testing.assert_array_equal(first.states, second.states)
    assert first.interval() == second.interval()
    assert again.params == found.params
    assert again.correlations == found.model.correlations
    assert again.to_json() == found.to_json()


def test_correlations_are_a_correlation_matrix(run_of):
    found = fit([run_of("vplus", name, noise=0.002) for name in PAIR], "vplus")
    names = list(found.params)
    matrix = np.array([[found.model.correlations[a][b] for b in names] for a in names])
    np.testing.assert_allclose(np.diag(matrix), 1.0)
    np.testing.assert_allclose(matrix, matrix.T)
    assert (np.linalg.eigvalsh(matrix) > -1e-9).all()
    assert all(found.model.standard_errors[name] > 0 for name in names)


def test_windows_compared_are_kept(run_of):
    found = fit([run_of("vplus", name, noise=0.002) for name in PAIR], "vplus")
    assert found.fit_start in [row.fit_start for row in found.windows]
    assert len(found.windows) >= 4
    assert {row.kind for row in found.windows} == {"left out"}
    assert fit([run_of("vplus", name) for name in PAIR], "vplus", window=200).fit_start == 200


def flat(name="flat", steps=200, **meta):
    step = np.arange(steps)
    return LossCurve(step, 4 - 0.004 * step, np.full(steps, 1e-3), {"name": name, **meta})


def varied(loss=None, name="varied", points=200, **meta):
    step = np.arange(points)
    loss = 4 - 1.5 * (1 - np.exp(-step / 60)) if loss is None else loss
    return LossCurve(step, loss, np.linspace(1e-3, 1e-4, points), {"name": name, **meta})


@pytest.mark.parametrize(
    ("curves", "law", "window", "message"),
    [
        ([], "auto", "auto", "at least one curve"),
        ([varied()], "vpluss", "auto", "law 'vpluss'.*did you mean 'vplus'.*auto.*multi_power"),
        ([varied()], "auto", "early", "window must be auto or"),
        ([varied()], "auto", -3, "window"),
        ([varied()], "auto", 195, "varied: law auto needs at least 10 points .*got 5"),
        ([varied(points=6)], "variational", "auto", "at least 8 points"),
        ([flat()], "auto", "auto", "learning rate is constant"),
        ([flat(), flat("other")], "vplus", "auto", "learning rate is constant"),
        ([varied(loss=np.linspace(2, 3, 200))], "auto", "auto", "varied: the loss rises from"),
        ([varied(batch_size=8), varied(batch_size=16)], "auto", "auto", "mixed batch sizes"),
        ([varied(column="val_loss"), varied(column="loss")], "auto", "auto", "mixed columns"),
    ],
)
def test_what_cannot_be_fitted_is_refused(curves, law, window, message):
    with pytest.raises(UserError, match=message) as caught:
        fit(curves, law, window)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("eta", "steps", "parameters", "message"),
    [
        ([], None, {}, "lr must"),
        ([1e-3, -1e-3], None, {}, "lr must"),
        ([math.nan], None, {}, "lr must"),
        ("cosine", None, {}, "steps must"),
        ("cosin", 10, {}, "cosin is unknown.*cosine"),
        ("cosine", 10, {"lr_final": -1.0}, "lr_final"),
        ("exponential", 10, {"lr_init": 1e-3, "lr_final": 0.0}, "above 0"),
    ],
)
def test_a_schedule_that_is_none_is_refused(mixture, eta, steps, parameters, message):
    with pytest.raises(UserError, match=message):
        mixture.predict(eta, steps, **parameters)


def test_levels_outside_0_and_1_are_refused(run_of, mixture):
    with pytest.raises(UserError, match="level"):
        mixture.predict(run_of("vplus", "linear").lr).interval(1.0)


def test_a_file_that_is_no_fit_is_refused(tmp_path):
    (tmp_path / "fit.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="not a fit"):
        FittedModel.load(tmp_path / "fit.json")
    with pytest.raises(UserError, match="cannot be read"):
        FittedModel.load(tmp_path / "gone.json")


def test_intervals_widen_with_distance_and_remarks_name_it(mixture):
    def ask(steps=1500, peak=3e-3, end=3e-4):
        return mixture.predict("cosine", steps, lr_init=peak, lr_final=end, warmup_steps=50)

    def width(prediction):
        return float(np.diff(prediction.interval())[0])

    near = ask()
    assert not near.remarks
    for far, word in (
        (ask(steps=6000), "times as long"),
        (ask(peak=1e-3, end=1e-4), "peak"),
        (ask(end=0.0), "ends at"),
    ):
        assert width(far) > width(near)
        assert any(word in remark for remark in far.remarks)


def test_logs_that_one_law_hardly_describes_get_a_remark(run_of):
    def of_other_model(curve, factor):
        return LossCurve(curve.step, curve.loss * factor, curve.lr, {"name": "other"})

    wsd, cosine = (run_of("multi_power", name, noise=0.003) for name in ("wsd", "cosine"))
    assert not any("are they of one model" in remark for remark in fit([wsd, cosine]).model.remarks)
    mixed = fit([wsd, of_other_model(cosine, 1.15)]).model.remarks
    assert sum("are they of one model" in remark for remark in mixed) == 1
