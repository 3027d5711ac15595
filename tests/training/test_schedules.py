"""Schedules against values worked out by hand, and their common properties."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_lab.config.errors import UserError
from rwkv_lab.training import schedules

DECAYS = {
    "linear": lambda p: 1e-3 + (1e-4 - 1e-3) * p,
    "cosine": lambda p: 1e-4 + 9e-4 * (1 + math.cos(math.pi * p)) / 2,
    "exponential": lambda p: 1e-3 * 0.1**p,
}


@pytest.mark.parametrize("name", DECAYS)
def test_decay_without_warmup(name):
    got = schedules.rates(name, 5, lr_init=1e-3, lr_final=1e-4)
    assert got == pytest.approx([DECAYS[name](p) for p in (0, 0.25, 0.5, 0.75, 1)], rel=1e-12)


@pytest.mark.parametrize("name", DECAYS)
def test_warmup_rises_by_equal_parts_then_decays(name):
    got = schedules.rates(name, 8, lr_init=1e-3, lr_final=1e-4, warmup_steps=3)
    want = [1e-3 / 3, 2e-3 / 3, 1e-3, *(DECAYS[name](p) for p in (0, 0.25, 0.5, 0.75, 1))]
    assert got == pytest.approx(want, rel=1e-12)


def test_constant():
    assert schedules.rates("constant", 4, lr_init=2e-3, warmup_steps=2) == pytest.approx([1e-3, 2e-3, 2e-3, 2e-3])


def test_wsd_holds_then_decays_over_its_share():
    got = schedules.rates("wsd", 11, lr_init=1.0, lr_final=0.0, decay_fraction=0.4)
    # 0.4 of 11 updates, rounded, is 4: the decay goes from update 6 to update 10.
    assert got == pytest.approx([1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])


def test_piecewise_is_the_notes_protocol():
    stages = [{"until": 1 / 13, "lr": 1.0, "shape": "constant"}, {"until": 1.0, "lr": 0.2, "shape": "exponential"}]
    got = schedules.rates("piecewise", 130, lr_init=1.0, stages=stages)
    assert got[:10] == pytest.approx([1.0] * 10)
    assert got[-1] == pytest.approx(0.2)
    assert np.diff(np.log(got[9:])) == pytest.approx([math.log(0.2) / 120] * 120)


def test_piecewise_stages_continue_from_each_other():
    stages = [
        {"until": 0.5, "lr": 0.5, "shape": "linear"},
        {"until": 0.75, "lr": 2.0, "shape": "constant"},
        {"until": 1.0, "lr": 0.0, "shape": "cosine"},
    ]
    got = schedules.rates("piecewise", 8, lr_init=1.0, stages=stages)
    half = [1, 1 - 0.5 / 3, 1 - 1 / 3, 0.5]
    assert got == pytest.approx([*half, 2, 2, 1, 0], abs=1e-12)


def test_fitted_gives_its_rates_and_refuses_another_length(tmp_path):
    file = tmp_path / "fit.json"
    proposal = {"interval": [1, 2], "predicted_final_loss": 1.5, "level": 0.9, "column": "val_loss", "law": "vplus"}
    file.write_text(json.dumps({"proposal": proposal | {"kind": "wsd", "rates": [3.0, 2.0, 1.0]}}))
    assert schedules.rates("fitted", 3, fit=str(file)) == pytest.approx([3, 2, 1])
    with pytest.raises(UserError, match="3 steps and the run has 4"):
        schedules.rates("fitted", 4, fit=str(file))


def test_exponential_to_zero_is_refused():
    with pytest.raises(UserError, match=r"schedule\.lr_final"):
        schedules.rates("exponential", 3, lr_init=1e-3, lr_final=0.0)


@given(
    name=st.sampled_from(["linear", "cosine", "exponential", "wsd"]),
    total=st.integers(1, 60),
    warmup=st.integers(0, 60),
    top=st.floats(1e-6, 1e-1),
    share=st.floats(1e-3, 1.0),
)
def test_rates_stay_between_their_ends_and_never_rise_after_warmup(name, total, warmup, top, share):
    warmup = min(warmup, total)
    got = schedules.rates(name, total, lr_init=top, lr_final=top * share, warmup_steps=warmup)
    assert got.shape == (total,)
    assert (got > 0).all() and (got <= top * (1 + 1e-12)).all()
    assert (np.diff(got[:warmup]) > 0).all()
    assert (np.diff(got[warmup:]) <= 1e-15).all()
    if total > warmup + 1:
        assert got[-1] == pytest.approx(top * share)
