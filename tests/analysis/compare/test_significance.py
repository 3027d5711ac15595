"""Verdicts: against scipy, against known adjusted p-values, and against chance itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.compare.significance import (
    BEYOND,
    UNDECIDED,
    UNJUDGED,
    WITHIN,
    against,
    bartlett,
    holm,
    pairwise_verdicts,
    pooled_std,
    welch,
)

samples = st.lists(st.floats(-5, 5).map(lambda x: round(x, 3)), min_size=2, max_size=6).filter(
    lambda x: np.ptp(x) > 0.01
)


@given(samples, samples)
def test_welch_is_scipys(x, y):
    expected = stats.ttest_ind(x, y, equal_var=False)
    interval = expected.confidence_interval(0.9)
    assert welch(x, y, 0.9) == pytest.approx((expected.pvalue, interval.low, interval.high), rel=1e-6, abs=1e-9)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, float("nan"), 0.02]) == pytest.approx([0.5, np.nan, 0.04], nan_ok=True)
    assert holm([]).size == 0


def test_differences_beyond_and_within_noise():
    verdicts = pairwise_verdicts({"a": [1.80, 1.81, 1.79], "b": [1.90, 1.91, 1.89], "c": [1.80, 1.82, 1.78]})
    assert {(v.a, v.b): v.verdict for v in verdicts} == {("a", "b"): BEYOND, ("a", "c"): WITHIN, ("b", "c"): BEYOND}
    turned = against(verdicts, "b")
    assert turned["a"].difference == pytest.approx(-0.1) and turned["c"].difference == pytest.approx(-0.1)
    assert turned["c"].low < -0.1 < turned["c"].high < 0


@pytest.mark.parametrize("lone", [[1.5], [1.5, 1.5, 1.5]])
def test_without_spread_there_is_no_verdict(lone):
    (verdict,) = pairwise_verdicts({"a": lone, "b": [1.9] * len(lone)})
    assert verdict.verdict == UNJUDGED and np.isnan(verdict.p) and verdict.difference == pytest.approx(-0.4)


def test_one_seed_leaves_the_others_judged():
    verdicts = pairwise_verdicts({"a": [1.80, 1.81, 1.79], "b": [1.90, 1.91, 1.89], "one": [1.0], "none": []})
    assert [(v.a, v.b) for v in verdicts if v.verdict == UNJUDGED] == [("a", "one"), ("b", "one")]
    assert next(v for v in verdicts if (v.a, v.b) == ("a", "b")).p == pytest.approx(
        welch([1.8, 1.81, 1.79], [1.9, 1.91, 1.89])[0]
    )


def test_two_seeds_are_undecided_and_keep_their_p():
    """By their own noise the near pair would be a difference and the far one not."""
    groups = {"best": [1.800, 1.8001], "near": [1.810, 1.8101], "far": [1.85, 2.05], "three": [1.9, 1.91, 1.92]}
    verdicts = pairwise_verdicts(groups)
    assert {v.verdict for v in verdicts} == {UNDECIDED}
    by_pair = {(v.a, v.b): v.p for v in verdicts}
    assert by_pair["best", "near"] < 0.05 < by_pair["best", "far"]
    assert {v.verdict for v in pairwise_verdicts(groups, shared=True)} <= {BEYOND, WITHIN}


def test_a_baseline_is_compared_with_each_other_group_alone():
    verdicts = pairwise_verdicts({"a": [1.0, 1.1], "b": [2.0, 2.1], "c": [3.0, 3.1]}, baseline="b")
    assert [(v.a, v.b) for v in verdicts] == [("a", "b"), ("c", "b")]


def test_pure_noise_is_seldom_called_a_difference():
    """Of 400 comparisons of five equal groups of three seeds, any false verdict in about 5 %, never above 9 %."""
    noise = np.random.default_rng(0)
    false = 0
    for _ in range(400):
        groups = {str(i): noise.normal(1.8, 0.01, 3).tolist() for i in range(5)}
        false += any(v.verdict == BEYOND for v in pairwise_verdicts(groups))
    assert false / 400 < 0.09


def test_shared_noise_is_the_classical_test_for_two_groups():
    x, y = [1.80, 1.82, 1.79], [1.84, 1.85, 1.86, 1.83]
    (verdict,) = pairwise_verdicts({"a": x, "b": y}, shared=True)
    expected = stats.ttest_ind(x, y, equal_var=True)
    interval = expected.confidence_interval(0.95)
    assert (verdict.p, verdict.low, verdict.high) == pytest.approx((expected.pvalue, interval.low, interval.high))


def test_shared_noise_sees_more_and_judges_one_seed():
    groups = {"a": [1.80, 1.81, 1.79], "b": [1.84, 1.87, 1.85], "c": [1.90, 1.91, 1.89], "one": [2.0]}
    own = [v.verdict for v in pairwise_verdicts(groups)]
    shared = pairwise_verdicts(groups, shared=True)
    assert own.count(BEYOND) < 6 == [v.verdict for v in shared].count(BEYOND)
    assert pairwise_verdicts({"a": [1.0], "b": [2.0]}, shared=True)[0].verdict == UNJUDGED


def test_pooled_std():
    spread, freedom = pooled_std({"a": [1.0, 3.0], "b": [2.0, 2.0, 5.0], "one": [9.0]})
    assert freedom == 3 and spread == pytest.approx(np.sqrt((2.0 + 6.0) / 3))
    assert pooled_std({"one": [9.0]})[1] == 0


@given(st.lists(samples, min_size=2, max_size=5))
def test_bartlett_is_scipys(groups):
    found, expected = bartlett(dict(enumerate(groups))), stats.bartlett(*groups).pvalue
    assert found == pytest.approx(1.0 if np.isnan(expected) else expected, rel=1e-6, abs=1e-7)


def test_bartlett_without_spread_says_nothing():
    assert np.isnan(bartlett({"a": [1.0, 1.0], "b": [1.0, 2.0], "one": [3.0]})) and np.isnan(bartlett({}))
