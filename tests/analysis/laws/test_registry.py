"""A law is one file: what the registry knows of it, and a law from outside the package."""

import importlib.util
import sys

import numpy as np
import pytest

from analysis.curves import LossCurve
from analysis.fit import FittedModel, fit
from analysis.laws import registry
from rwkv_lab.config import registry as components
from rwkv_lab.config.errors import UserError
from rwkv_lab.training.schedules import rates

LAW = '''
"""Loss linear in the rate above a power law."""

import numpy as np

from analysis.laws.law import Law, Nonlinear
from rwkv_lab.config.registry import register


def columns(schedule, nonlinear):
    rate = np.append(schedule.lr, schedule.lr[-1])[schedule.at]
    return np.stack([np.ones(len(schedule.at)), schedule.S ** -nonlinear["a"], rate], axis=1)


LAW = register("law", "instant")(
    Law(
        name="instant",
        formula="L = L0 + A S^-a + k eta",
        source="a test",
        linear=("L0", "A", "k"),
        nonlinear=lambda eta_max: (Nonlinear("a", 0.02, 4.0, usual=0.5, spread=0.7),),
        columns=columns,
        formerly=("immediate",),
        per_rate=("k",),
    )
)
'''


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A law in a module outside the package, registered when imported."""
    (tmp_path / "instant_law.py").write_text(LAW)
    monkeypatch.syspath_prepend(tmp_path)
    spec = importlib.util.spec_from_file_location("instant_law", tmp_path / "instant_law.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "instant_law", module)
    components.members("law")
    monkeypatch.setitem(components._members, "law", dict(components._members["law"]))
    spec.loader.exec_module(module)
    return module.LAW


def test_a_law_is_one_file(outside):
    truth = {"L0": 2.0, "A": 0.8, "k": 40.0, "a": 0.6}
    curves = []
    for name in ("cosine", "wsd"):
        lr = rates(name, 400, lr_init=3e-3, lr_final=3e-4)
        step = np.arange(0, 400, 4)
        sums = np.maximum(np.concatenate([[0.0], np.cumsum(lr)])[step], lr[0])
        loss = truth["L0"] + truth["A"] * sums ** -truth["a"] + truth["k"] * lr[step]
        curves.append(LossCurve(step, loss, lr, {"name": name}))
    found = fit(curves, "instant", window=10)
    assert found.params == pytest.approx(truth, rel=1e-4)
    again = FittedModel.from_json(found.to_json().replace('"instant"', '"immediate"'))
    assert again.members == found.members
    np.testing.assert_array_equal(again.predict(lr).states, found.predict(lr).states)


def test_a_law_from_outside_is_optimised(outside, run_of):
    from analysis.schedules.recommended import best

    curves = [run_of("vplus", name) for name in ("cosine", "wsd")]
    found = best(fit(curves, "instant", window=60), 300)
    assert found.lr.max() <= 3e-3
    assert found.final_loss <= min(row.final_loss for row in found.table) + 1e-6


def test_every_law_has_one_name():
    names = [law.name for law in registry.laws()]
    assert len(names) == len(set(names)) >= 6
    assert registry.fittable()[0] == "auto"
    assert set(registry.fittable()[1:]) <= set(names)
    assert "vplus" not in registry.rivals("vplus")


def test_an_earlier_name_is_read():
    assert registry.get("vplus_own_time").name == "power_time"
    with pytest.raises(UserError, match=r"vpluss.*vplus"):
        registry.get("vpluss")
