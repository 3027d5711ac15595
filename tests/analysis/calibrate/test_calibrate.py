"""The measurement of constants runs on small families, and asks every cell they have."""

import json

import numpy as np
import pytest

from analysis.calibrate.families import cases, families
from analysis.calibrate.measure import (
    COVERED,
    FACTORS,
    half_widths,
    interval_constants,
    left_out,
    shares,
    summary,
)
from analysis.cli import main
from analysis.cli.calibrate import changed
from analysis.constants import shipped
from rwkv_lab.config.errors import UserError
from rwkv_lab.training.schedules import rates

PEAK = 1e-3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("curves")
    for seed, family in enumerate(("one", "other")):
        (root / family).mkdir()
        schedules = {}
        for kind, name in (("cosine", "cosine"), ("linear_tail", "wsd"), ("linear_tail", "linear")):
            described = {"kind": kind, "total": 2000, "warmup": 50, "peak": PEAK, "end": PEAK / 10}
            described |= {"decay_start": 1600 if name == "wsd" else 50} if kind == "linear_tail" else {}
            schedules[name] = described
            lr = rates(name, 2000, lr_init=PEAK, lr_final=PEAK / 10, warmup_steps=50)
            step = np.arange(0, 2000, 20)
            loss = 2.5 + 0.4 * np.cumsum(np.r_[PEAK, lr])[step] ** -0.4 + 100 * lr[step]
            loss += 0.003 * np.random.default_rng(seed).normal(size=len(step))
            rows = [f"{s},{lr[s]},{x}" for s, x in zip(step, loss, strict=True)]
            (root / family / f"{name}.csv").write_text("\n".join(["step,lr,loss", *rows]))
        (root / family / "schedules.json").write_text(json.dumps({"schedules": schedules}))
    return root


@pytest.fixture(scope="module")
def measured(folder):
    return left_out(families([folder]), shipped(), 2)


def test_cells(folder):
    (family, _) = families([folder])
    assert {run.kind for run in family.runs} == {"smooth", "wsd"}
    found = {case.cell for case in cases(family, 4)}
    assert {"same peak", "one run", "running 10%", "running 70% + 1"} <= found
    with pytest.raises(UserError, match="no family"):
        families([folder / "one" / "gone"])


def test_a_family_is_left_out_of_its_own_prior(measured):
    outcomes, numbers = measured
    assert numbers["prior"]["mean"].keys() == shipped()["prior"]["mean"].keys()
    assert all(np.isfinite(list(numbers["prior"]["sd"].values())))
    rows = summary(outcomes)
    assert {row.family for row in rows} == {"one", "other", "all"}
    assert all(0 <= row.covered <= 1 and row.error >= 0 for row in rows)


def test_the_command_writes_constants_that_can_be_read(folder, tmp_path, capsys):
    arguments = ["calibrate", str(folder), "--cases", "1", "--laws", "vplus", "--write", str(tmp_path / "c.json")]
    assert main(arguments) == 0
    assert json.loads((tmp_path / "c.json").read_text()).keys() == dict(shipped()).keys()
    assert "vplus" in capsys.readouterr().out


def test_constants_of_the_intervals_cover_what_they_were_chosen_on(measured):
    outcomes, _ = measured
    chosen = interval_constants(outcomes, shipped()["interval"])
    assert chosen.keys() == shipped()["interval"].keys()
    for mode in ("one", "running"):
        own = [one for one in outcomes if one.case.mode == mode]
        covered = np.array([abs(one.error) for one in own]) <= half_widths(own, chosen)
        assert chosen["factor"][mode] == FACTORS[-1] or shares(own) @ covered >= COVERED
    tight = {**chosen, "factor": dict.fromkeys(chosen["factor"], 0.1)}
    assert (half_widths(outcomes, tight) < half_widths(outcomes, chosen)).all()


@pytest.mark.parametrize("word", ["data.independant=6", "data=6", "prior.mean=1", "data.independent=six"])
def test_other_constants_are_tried_by_name(word):
    assert changed(shipped(), ["data.independent=6"])["data"]["independent"] == 6
    with pytest.raises(UserError, match=r"data\.independent"):
        changed(shipped(), [word])
