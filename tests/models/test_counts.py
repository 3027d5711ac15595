"""Parameters as published, weight decay groups, FLOPs."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rwkv_lab import models
from rwkv_lab.config.registry import names
from rwkv_lab.models.factory import configure, skeleton


@pytest.mark.parametrize(
    ("name", "vocab_size", "fields", "published"),
    [
        ("rwkv_v4", 50277, {"n_layer": 12, "n_embd": 768}, 169_342_464),
        ("rwkv_v4", 50277, {"n_layer": 24, "n_embd": 1024}, 430_397_440),
        ("rwkv_v4", 50277, {"n_layer": 24, "n_embd": 2048}, 1_515_106_304),
        ("rwkv_v2", 6064, {"n_layer": 6, "n_embd": 512, "ctx_len": 1024}, 26_944_512),
    ],
)
def test_published_counts(name, vocab_size, fields, published):
    model = skeleton(configure(name, **fields), vocab_size)
    assert sum(parameter.numel() for parameter in model.parameters()) == published


@pytest.mark.parametrize(
    ("name", "millions"), [("rwkv_v1", 16.6), ("mha_pro", 16.6), ("mha_shift", 17.2), ("mha_rotary", 17.2)]
)
def test_counts_of_the_published_comparison(name, millions):
    model = skeleton(configure(name, n_layer=5, n_embd=512, ctx_len=256), 136)
    assert model.config.heads == 8
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == millions


@pytest.mark.parametrize("name", names("model"))
def test_only_linear_weights_decay(name):
    model = skeleton(configure(name, token_shift="learned", head_qk_dim=8, n_layer=2), 13)
    decaying = models.decay_parameters(model)
    shapes = {key: parameter.dim() for key, parameter in model.named_parameters()}
    assert decaying <= shapes.keys()
    assert all(key.endswith(".weight") and shapes[key] == 2 for key in decaying)
    assert not any("time_" in key or key.startswith("head") or key.startswith("emb") for key in decaying)
    matrices = {key for key, dim in shapes.items() if dim == 2 and key.endswith(".weight") and key.startswith("blocks")}
    assert decaying == matrices


@pytest.mark.parametrize("name", names("model"))
def test_flops_count_the_matrix_products(name):
    """The formula counts what torch counts, and what torch does not see: the scan and head mix are under 2 %."""
    model = models.build(name, vocab_size=50, n_layer=2, n_embd=64, ctx_len=32, head_qk_dim=16)
    idx = torch.zeros(1, 32, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(idx, idx).backward()
    assert models.flops_per_token(model) == pytest.approx(counter.get_total_flops() / 32, rel=0.02)
