"""Bin means, bands and values at a budget, against plain loops."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.compare.records import Record, band, common_budget, measured, value_at
from analysis.curves.curve import bin_means


def record(tokens, bpb, seconds=None, flops=2.0) -> Record:
    columns = {"tokens": np.array(tokens, float), "val_bpb": np.array(bpb, float)}
    columns["seconds"] = np.array(tokens if seconds is None else seconds, float)
    return Record(Path("study/run"), "complete", manifest={"flops_per_token": flops}, columns=columns)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=60), st.integers(1, 20))
def test_bin_means_keep_the_mean_of_every_row(values, bins):
    rows = np.array(values)
    edges = np.linspace(0, len(rows), bins + 1).astype(int)
    expected = rows if len(rows) <= bins else [rows[a:b].mean() for a, b in pairwise(edges)]
    assert np.allclose(bin_means(rows, bins)[0], expected)


def test_unmeasured_and_repeated_rows():
    x, y = measured(record([1, 2, 2, 3, 4], [5, 4, 3.5, np.nan, 3]), "tokens", "val_bpb")
    assert x.tolist() == [1, 2, 4] and y.tolist() == [5, 3.5, 3]


def test_value_at_a_budget():
    run = record([100, 200, 300], [3.0, 2.0, 1.5], seconds=[10, 20, 30])
    assert value_at(run, "tokens", "val_bpb", 250) == pytest.approx(1.75)
    assert value_at(run, "seconds", "val_bpb", 15) == pytest.approx(2.5)
    assert value_at(run, "flops", "val_bpb", 400) == pytest.approx(2.0)
    assert value_at(run, "tokens", "val_bpb", 300) == 1.5
    assert np.isnan(value_at(run, "tokens", "val_bpb", 301)) and np.isnan(value_at(run, "tokens", "val_bpb", 99))


def test_common_budget_is_what_all_have_spent():
    runs = [record([1, 10], [3, 2], seconds=[1, 50]), record([1, 20], [3, 2], seconds=[1, 30]), record([], [])]
    assert common_budget(runs, "tokens", "val_bpb") == 10
    assert common_budget(runs, "seconds", "val_bpb") == 30
    assert np.isnan(common_budget(runs[2:], "tokens", "val_bpb"))


def test_band_is_mean_and_sample_deviation_where_all_are_measured():
    runs = [record([0, 10, 20], [4, 3, 2]), record([0, 10, 20], [5, 3, 3]), record([0, 10], [6, 6])]
    found = band(runs, "tokens", "val_bpb", 100)
    assert found is not None and found.n == 3
    assert found.x.tolist() == [0, 10]
    assert found.mean.tolist() == [5, 4]
    assert found.std == pytest.approx([1.0, np.sqrt(3)])


def test_band_of_one_run_has_no_width_and_of_none_is_none():
    found = band([record([0, 10], [4, 3])], "tokens", "val_bpb", 100)
    assert found is not None and found.n == 1 and not found.std.any()
    assert band([record([], [])], "tokens", "val_bpb", 100) is None
    apart = [record([0, 10], [4, 3]), record([20, 30], [4, 3])]
    assert band(apart, "tokens", "val_bpb", 100) is None
