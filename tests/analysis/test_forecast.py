"""Forecasts of runs in progress."""

import numpy as np
import pytest

from analysis.curves import LossCurve
from analysis.forecast import Siblings, final, forecast
from rwkv_lab.config.errors import UserError


def cut(curve, share):
    last = int(share * len(curve.lr))
    kept = curve.step <= last
    return LossCurve(curve.step[kept], curve.loss[kept], curve.lr[: last + 1], {"name": "running"})


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_a_plateau_and_a_decay_are_forecast(published, share):
    (wsd,) = published("llama_124m", "1e-3_wsd0.2_50k")
    low, high = forecast(cut(wsd, share), wsd.lr).interval(0.9)
    assert low < wsd.loss[-1] < high
    assert 0 < high - low < 0.3


def test_a_finished_run_narrows_it(published):
    wsd, cosine = published("llama_124m", "1e-3_wsd0.2_50k", "1e-3_cosine10_25k")
    alone, beside = forecast(cut(wsd, 0.3), wsd.lr), forecast(cut(wsd, 0.3), wsd.lr, [cosine])
    assert np.diff(beside.interval())[0] < 0.7 * np.diff(alone.interval())[0]
    assert beside.final_loss == pytest.approx(wsd.loss[-1], abs=0.012)


def test_a_constant_rate_is_not_refused(published):
    (constant,) = published("llama_124m", "1e-3_constant_50k")
    prediction = forecast(cut(constant, 0.4), constant.lr)
    low, high = prediction.interval()
    assert low < prediction.final_loss < high
    assert prediction.final_loss == pytest.approx(constant.loss[-1], abs=0.03)


def test_the_display_gives_the_same_number(published):
    (wsd,) = published("llama_124m", "1e-3_wsd0.2_25k")
    whole = forecast(cut(wsd, 0.5), wsd.lr)
    assert final(cut(wsd, 0.5), wsd.lr) == pytest.approx((whole.final_loss, *whole.interval(0.9)), abs=2e-3)


def test_what_cannot_be_forecast_is_refused(published):
    (wsd,) = published("llama_124m", "1e-3_wsd0.2_25k")
    with pytest.raises(UserError, match="at least 4 losses"):
        forecast(cut(wsd, 0.02), wsd.lr)
    with pytest.raises(UserError, match="differs from the rates"):
        forecast(cut(wsd, 0.5), wsd.lr * 2)
    with pytest.raises(UserError, match="goes to step"):
        forecast(cut(wsd, 0.5), wsd.lr[:1000])


class TestSiblings:
    """Forecasts from the runs of a study that have finished."""

    @pytest.fixture
    def study(self, published):
        names = ("1e-3_cosine10_50k", "1e-3_wsd0.4_50k", "5e-4_wsd0.2_50k", "1e-3_wsd0.2_50k")
        *finished, last = published("llama_124m", *names)
        return finished, last

    def test_the_end_lies_in_the_interval_and_more_runs_narrow_it(self, study):
        finished, last = study
        widths = []
        for known in (1, 3):
            siblings = Siblings.of(finished[:known], ["a"] * known)
            loss, low, high = siblings.final(cut(last, 0.5), last.lr)
            assert low < last.loss[-1] < high and loss == pytest.approx(last.loss[-1], abs=0.02)
            widths.append(high - low)
        assert widths[1] < widths[0]

    def test_a_worse_model_is_as_much_worse_at_its_end(self, study):
        finished, last = study
        siblings = Siblings.of(finished, ["a"] * 3)
        loss = siblings.final(cut(last, 0.5), last.lr)[0]
        worse = LossCurve(last.step, last.loss + 0.3, last.lr)
        found, low, high = siblings.final(cut(worse, 0.5), last.lr, stranger=True)
        assert found == pytest.approx(loss + 0.3, abs=1e-6)
        known = siblings.final(cut(worse, 0.5), last.lr)
        assert high - low > known[2] - known[1]

    def test_models_get_levels_of_their_own(self, study):
        finished, last = study
        other = LossCurve(finished[1].step, finished[1].loss + 0.3, finished[1].lr, {"name": "other"})
        apart = Siblings.of([finished[0], other, finished[2]], ["a", "b", "a"])
        together = Siblings.of([finished[0], other, finished[2]], ["a", "a", "a"])
        now = cut(last, 0.5)
        error = [abs(each.final(now, last.lr)[0] - last.loss[-1]) for each in (apart, together)]
        assert error[0] < error[1]

    def test_without_a_recent_loss_there_is_none(self, study):
        finished, last = study
        with pytest.raises(UserError, match="has no loss between"):
            Siblings.of([LossCurve([40, 50_000], [5.0, 3.0], finished[0].lr), finished[1]], ["a", "a"]).final(
                cut(last, 0.5), last.lr
            )
