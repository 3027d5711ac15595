import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.schedules.features import ScheduleFeatures, recurrence, warmup_steps

FRACTION = st.floats(0.0, 1.0)


@pytest.mark.parametrize(
    ("eta", "expected"),
    [([1, 2, 3, 3, 2], 2), ([3, 3, 3], 0), ([3, 2, 1], 0), ([1, 2, 3], 2), ([1, 2, 1, 5], 1), ([2], 0)],
)
def test_warmup_is_the_rising_prefix(eta, expected):
    assert warmup_steps(np.array(eta, dtype=float)) == expected


@given(st.lists(st.tuples(FRACTION, st.floats(-2, 2)), max_size=30))
def test_recurrence_is_the_loop(pairs):
    expected = [0.0]
    for decay, drive in pairs:
        expected.append(decay * expected[-1] + drive)
    decay, drive = np.array(pairs).reshape(-1, 2).T
    np.testing.assert_allclose(recurrence(decay, drive), expected, atol=1e-12)


def test_sums_count_the_updates_before_a_state():
    path = ScheduleFeatures(np.array([1.0, 2.0, 4.0]), np.array([0, 1, 3]))
    np.testing.assert_array_equal(path.S, [1.0, 1.0, 7.0])  # state 0 takes the first rate, so that powers stay finite


def test_warmup_gives_no_credit_and_a_lower_peak_is_a_fall():
    eta = np.array([0.5, 1.0, 1.0, 0.25])
    np.testing.assert_allclose(ScheduleFeatures(eta, np.array([4])).changes, [0, 0, 0, -0.75])
    np.testing.assert_allclose(ScheduleFeatures(eta, np.array([4]), reference=2.0).changes, [0, -1.0, 0, -0.75])


def test_blocks_hold_all_changes_and_all_rates():
    rng = np.random.default_rng(0)
    eta = np.abs(rng.normal(size=1000)) + 0.1
    blocks = ScheduleFeatures(eta, np.array([1000])).blocks
    assert len(blocks.rate) < 400
    np.testing.assert_allclose(blocks.S[-1], eta.sum())
    np.testing.assert_allclose(blocks.change.sum(), ScheduleFeatures(eta, np.array([1000])).changes.sum(), atol=1e-12)
