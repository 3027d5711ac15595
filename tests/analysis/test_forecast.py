"""Forecasts of runs in progress."""

import numpy as np
import pytest

from analysis.curves import LossCurve
from analysis.forecast import final, forecast
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
