"""What runs of one fit share, and a fitted schedule on another model."""

import json

import pytest

from rwkv_lab.config.errors import UserError
from rwkv_lab.runs.provenance import differences, recipe, setup
from tests.composing import checked, hydra_context


def test_schedule_length_and_seed_may_differ():
    one = {"model": {"name": "a", "n_layer": 2}, "schedule": {"lr_init": 1.0}, "seed": 1, "trainer": {"steps": 10}}
    other = one | {"schedule": {"lr_init": 2.0}, "seed": 2, "trainer": {"steps": 20}}
    assert setup(one) == setup(other)
    assert differences(setup(one), setup(one | {"model": {"name": "a", "n_layer": 4}})) == ["model.n_layer"]


def test_a_recipe_leaves_out_what_a_fit_sets():
    overrides = ["model=rwkv_v4", "model.n_layer=2", "schedule=wsd", "schedule.lr_init=1", "seed=2", "trainer.steps=9"]
    assert recipe(overrides) == ["model=rwkv_v4", "model.n_layer=2"]


def test_a_fitted_schedule_is_refused_on_another_model(tmp_path):
    rates = [1e-3] * 100
    proposal = {"rates": rates, "predicted_final_loss": 2.0, "interval": [1.9, 2.1], "level": 0.9, "column": "loss"}
    file = tmp_path / "fit.json"
    own = ["trainer.steps=100", "schedule=fitted", f"schedule.fit={file}"]
    content = {"proposal": proposal | {"law": "auto", "kind": "free"}, "trained": {"setup": {"model.n_layer": 999}}}
    file.write_text(json.dumps(content))
    with hydra_context():
        with pytest.raises(UserError, match=r"model.n_layer.*schedule.fit_any=true"):
            checked(*own)
        assert checked(*own, "schedule.fit_any=true").schedule.fit_any
