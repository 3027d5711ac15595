"""Mistakes in a model's configuration are one sentence that names the key."""

import dataclasses
import subprocess
import sys

import pytest

from rwkv_lab import models
from rwkv_lab.config.errors import UserError
from rwkv_lab.config.registry import get, names


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("rwkv_v5", {}, ["rwkv_v5", "rwkv_v4", "mha_pro"]),
        ("rwkv_v4", {"n_layers": 3}, ["model.n_layers", "n_layer", "n_embd"]),
        ("rwkv_v4", {"n_head": 3}, ["model.n_head", "rwkv_v4"]),
        ("rwkv_v4", {"n_layer": 0}, ["model.n_layer", "at least 1"]),
        ("rwkv_v4", {"head_qk_dim": -1}, ["model.head_qk_dim", "at least 0"]),
        ("rwkv_v4", {"token_shift": "quarter"}, ["model.token_shift", "none, half, learned"]),
        ("rwkv_v2", {"norm": "middle"}, ["model.norm", "pre, post"]),
        ("rwkv_v4", {"head_qk": "mean", "head_qk_dim": 8}, ["model.head_qk", "sum, max"]),
        ("rwkv_v4", {"head_qk": "max"}, ["model.head_qk=max", "model.head_qk_dim"]),
        ("rwkv_v3", {"ffn_pre": True, "n_layer": 1}, ["model.ffn_pre", "model.n_layer >= 2"]),
        ("rwkv_v3", {"init_from": "a", "time_vectors_from": "b"}, ["model.init_from", "model.time_vectors_from"]),
        ("rwkv_v3", {"init_vocab": "match"}, ["model.init_vocab", "model.init_from"]),
        ("rwkv_v3", {"emb_init": "tiny"}, ["model.emb_init", "unit, recipe, small"]),
        ("rwkv_v3", {"small_init_emb": True, "emb_init": "unit"}, ["model.small_init_emb=true", "model.emb_init=unit"]),
        ("rwkv_v3", {"small_init_emb": False, "emb_init": "recipe"}, ["model.small_init_emb=false", "model.emb_init"]),
        ("mha_pro", {"small_init_emb": True, "emb_norm": False}, ["model.small_init_emb=true", "model.emb_norm=false"]),
        ("mha_pro", {"small_init_emb": False, "emb_norm": True}, ["model.small_init_emb=false", "model.emb_norm=true"]),
        ("rwkv_v2", {"emb_norm": False}, ["model.emb_norm=false", "model.norm=pre"]),
        ("mha_rotary", {"n_head": 5}, ["model.n_head", "5 heads", "128 channels"]),
        ("mha_rotary", {"n_attn": 0}, ["model.n_attn", "at least 1"]),
        ("mha_rotary", {"ffn_pre": True}, ["model.ffn_pre", "mha_rotary"]),
        ("rwkv_v1", {"tiny_attention": 5, "tiny_attention_heads": 2}, ["model.tiny_attention_heads"]),
        ("rwkv_v1", {"tiny_attention_heads": 2}, ["model.tiny_attention_heads", "model.tiny_attention"]),
        ("rwkv_v4", {"init_from": "nowhere.safetensors"}, ["model.init_from=nowhere.safetensors"]),
        ("rwkv_v4", {"init_from": "no-such-run"}, ["model.init_from=no-such-run"]),
    ],
)
def test_mistakes(name, fields, words):
    with pytest.raises(UserError) as caught:
        models.build(name, vocab_size=5, **fields)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", names("model"))
def test_each_schema_carries_its_name(name):
    config = get("model", name)()
    models.check(config)
    assert config.name == name
    assert all(field.default is not dataclasses.MISSING for field in dataclasses.fields(config))


@pytest.mark.parametrize("name", names("model"))
def test_the_yaml_agrees_with_the_dataclass(name, repository):
    """`build` and the command line give the same model."""
    import yaml

    values = yaml.safe_load((repository / "conf" / "model" / f"{name}.yaml").read_text())
    assert values.pop("defaults") == [f"/schema/model/{name}@_here_"]
    config = get("model", name)()
    assert values == {key: getattr(config, key) for key in values}


def test_configs_need_no_torch():
    code = """
import sys
from rwkv_lab.config import registry
for name, owner in registry.members("model").items():
    owner().check()
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
