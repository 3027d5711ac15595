"""Mistakes in a model's configuration are one sentence that names the key."""

import dataclasses
import subprocess
import sys

import pytest

from rwkv_lab import models
from rwkv_lab.config.errors import UserError
from rwkv_lab.models.registry import MODELS


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("rwkv_v5", {}, "no model 'rwkv_v5' (did you mean"),
        ("rwkv_v4", {"n_layers": 3}, "model.n_layers: rwkv_v4 has no such field (did you mean 'n_layer'?)"),
        ("rwkv_v4", {"n_head": 3}, "model.n_head: rwkv_v4 has no such field"),
        ("rwkv_v4", {"n_layer": 0}, "model.n_layer is 0; it must be at least 1"),
        ("rwkv_v4", {"head_qk_dim": -1}, "model.head_qk_dim is -1"),
        ("rwkv_v4", {"token_shift": "quarter"}, "choose one of none, half, learned"),
        ("rwkv_v4", {"norm": "middle"}, "choose one of pre, post"),
        ("rwkv_v4", {"head_qk": "mean", "head_qk_dim": 8}, "choose one of sum, max"),
        ("rwkv_v4", {"head_qk": "max"}, "model.head_qk=max does nothing without head-QK"),
        ("rwkv_v3", {"ffn_pre": True, "n_layer": 1}, "it needs model.n_layer >= 2"),
        ("rwkv_v3", {"init_from": "a", "time_vectors_from": "b"}, "give only one of them"),
        ("mha_rotary", {"n_head": 5}, "5 heads cannot share 128 channels evenly"),
        ("mha_rotary", {"n_attn": 0}, "model.n_attn is 0"),
        ("mha_rotary", {"ffn_pre": True}, "model.ffn_pre: mha_rotary has no such field"),
        ("rwkv_v1", {"tiny_attention": 5, "tiny_attention_heads": 2}, "must divide the width"),
        ("rwkv_v1", {"tiny_attention_heads": 2}, "does nothing without a width"),
        ("rwkv_v4", {"init_from": "nowhere.safetensors"}, "nowhere.safetensors: no such file"),
    ],
)
def test_mistakes(name, fields, words):
    with pytest.raises(UserError) as caught:
        models.build(name, vocab_size=5, **fields)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", MODELS)
def test_each_schema_carries_its_name(name):
    config = MODELS[name].config()
    models.check(config)
    assert config.name == name
    assert all(field.default is not dataclasses.MISSING for field in dataclasses.fields(config))


@pytest.mark.parametrize("name", MODELS)
def test_the_yaml_holds_the_recipe(name, repository):
    """What the YAML sets is what the dataclass defaults to: `build` and the command line give the same model."""
    import yaml

    values = yaml.safe_load((repository / "conf" / "model" / f"{name}.yaml").read_text())
    assert values.pop("defaults") == [f"/schema/model/{name}@_here_"]
    config = MODELS[name].config()
    assert values == {key: getattr(config, key) for key in values}


def test_the_registry_needs_no_torch():
    code = "import sys, rwkv_lab.models, rwkv_lab.models.registry, rwkv_lab.convert; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
