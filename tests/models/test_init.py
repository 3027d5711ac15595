"""Initial values, to the letter of the originals."""

import math

import pytest
import torch

from rwkv_lab import models
from rwkv_lab.config.registry import get, names
from tests.models.contract import options, require_every_parameter_moves

HEADS = ("rwkv_v1", "mha_rotary", "mha_shift", "mha_pro")
V, C, L = 50, 24, 4


def built(name, **fields):
    return models.build(name, vocab_size=V, **({"n_layer": L, "n_embd": C, "ctx_len": 12, "head_qk_dim": 32} | fields))


def require_orthogonal(weight, scale):
    """Rows or columns orthogonal, gain scale * max(1, sqrt(out/in))."""
    out, into = weight.shape
    gain = scale * math.sqrt(max(1.0, out / into))
    gram = weight.T @ weight if out > into else weight @ weight.T
    torch.testing.assert_close(gram, gain**2 * torch.eye(len(gram)), rtol=1e-4, atol=1e-4 * gain**2)


def scales(name):
    if name == "rwkv_v1":
        zero = ["att.key", "att.receptance", "att.output", "ffn.receptance", "ffn.output"]
        return dict.fromkeys(zero, 0.0) | {"head": 0.4, "head_qk.q": 0.01, "head_qk.k": 0.01}
    zero = ["att.key", "att.receptance", "att.output", "ffn.value", "ffn.receptance", "head_qk.q"]
    return dict.fromkeys(zero, 0.0) | {"head": 0.5, "head_qk.k": 0.1}


@pytest.mark.parametrize("name", ["rwkv_v1", "rwkv_v2", "rwkv_v3", "rwkv_v4"])
def test_rwkv_matrices_are_orthogonal_or_zero(name):
    model = built(name)
    seen = set()
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            end = path if path.startswith("head") else ".".join(path.split(".")[2:])
            scale = scales(name).get(end, 1.0)
            seen.add(end)
            if scale == 0.0:
                assert not module.weight.any(), path
            else:
                require_orthogonal(module.weight.detach(), scale)
            assert module.bias is None or not module.bias.any()
    assert scales(name).keys() <= seen


@pytest.mark.parametrize(("name", "scale"), [("rwkv_v1", 0.4), ("rwkv_v2", 1e-4), ("rwkv_v3", 1e-4), ("rwkv_v4", 1e-4)])
def test_rwkv_embedding(name, scale):
    weight = built(name).emb.weight.detach() / (scale * math.sqrt(V))
    torch.testing.assert_close(weight.T @ weight, torch.eye(C), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mha_rotary", "mha_shift", "mha_pro"])
def test_attention_matrices_are_normal(name):
    model = built(name, n_embd=64)
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            assert abs(module.weight.std().item() - 0.01) < 0.001, path
            assert abs(module.weight.mean().item()) < 0.001, path
            assert getattr(module, "bias", None) is None or not module.bias.any()


@pytest.mark.parametrize("name", names("model"))
def test_small_init_emb(name):
    small = built(name, small_init_emb=True).emb.weight.detach()
    assert small.abs().max() <= 1e-4
    assert abs(small.std().item() * math.sqrt(12) / 2e-4 - 1.0) < 0.1
    plain = built(name, small_init_emb=False)
    assert abs(plain.emb.weight.std().item() - 1.0) < 0.1
    assert plain.blocks[0].ln0 is None


@pytest.mark.parametrize("name", names("model"))
def test_the_two_halves_of_small_init_emb(name):
    for start, scale in (("unit", 1.0), ("small", 2e-4 / math.sqrt(12))):
        for norm in (True, False):
            model = built(name, norm="pre", emb_init=start, emb_norm=norm)
            assert abs(model.emb.weight.std().item() / scale - 1.0) < 0.1
            assert (model.blocks[0].ln0 is not None) == norm
    both, small = (
        built(name, norm="pre", **f) for f in ({"emb_init": "small", "emb_norm": True}, {"small_init_emb": True})
    )
    assert all(torch.equal(a, b) for a, b in zip(both.parameters(), small.parameters(), strict=True))
    recipe = built(name, emb_init="recipe")
    assert torch.equal(recipe.emb.weight, built(name).emb.weight)
    assert (recipe.blocks[0].ln0 is None) == (built(name).blocks[0].ln0 is None)


@pytest.mark.parametrize(
    ("name", "option"), [(name, option) for name in names("model") for option in options(name)], ids=str
)
def test_every_parameter_moves(name, option):
    require_every_parameter_moves(name, option)


def test_a_channel_mix_starts_as_one_wherever_it_stands():
    for name in names("model"):
        if hasattr(get("model", name), "ffn_pre"):
            for mix in (built(name, ffn_pre=True).blocks[0].att, built(name, ffn_pre=True).blocks[0].ffn):
                require_orthogonal(mix.key.weight.detach(), 1.0)
                assert not mix.value.weight.any()
                assert not mix.receptance.weight.any()


@pytest.mark.parametrize("name", names("model"))
def test_norms_and_factors_start_at_one(name):
    for path, parameter in built(name).named_parameters():
        if ".ln" in path or path.startswith("ln_out"):
            assert torch.equal(parameter, torch.full_like(parameter, float(path.endswith("weight")))), path
        if path.endswith(("time_alpha", "time_beta", "time_gamma", "time_out")):
            assert torch.equal(parameter, torch.ones_like(parameter)), path


def test_v1_curves():
    model = built("rwkv_v1", n_head=4)
    w = model.blocks[2].att.time_w
    for h, speed in enumerate([12 ** -(1 / 3), 12 ** -(2 / 3), 1 / 12, 0.0]):
        want = [math.exp(-(11 - i) * speed) for i in range(12)]
        torch.testing.assert_close(w[h].tolist(), want, rtol=1e-5, atol=1e-7)
    one_head = built("rwkv_v1", n_head=1).blocks[0].att.time_w
    assert torch.equal(one_head, torch.ones_like(one_head))


def test_mha_pro_weights():
    model = built("mha_pro", n_head=4)
    for block in model.blocks:
        assert torch.equal(block.att.time_w, torch.ones_like(block.att.time_w))
        assert block.att.head_mix.abs().max() <= 0.5
        assert block.att.head_mix.abs().max() > 0.2


def v2_decay(l, i, L, C):
    q = (l - 1) / (L - 2) if L != 2 else 0.0
    f1 = 3.0 - 1.8 * q + (0.5 if l == 1 else 0.0)
    f2 = 0.37 if l == L - 1 else 0.4 if l == L - 2 else 0.65 - 0.25 * q
    return math.log(f2 ** (7 * i / (C - 1) if C > 1 else 0.0) * f1)


@pytest.mark.parametrize(("layers", "channels"), [(1, 8), (2, 8), (3, 5), (6, 24), (2, 1)])
def test_v2_vectors(layers, channels):
    model = built("rwkv_v2", n_layer=layers, n_embd=channels)
    for l, block in enumerate(model.blocks):
        want = [v2_decay(l, i, layers, channels) for i in range(channels)]
        torch.testing.assert_close(block.att.time_decay.tolist(), want, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(block.att.time_first.tolist(), [math.log(0.3)] * channels, rtol=1e-6, atol=0.0)
        for mix in (block.att, block.ffn):
            half = channels // 2
            assert mix.shift.time_mix.tolist() == [0.0] * half + [1.0] * (channels - half)


@pytest.mark.parametrize("name", ["rwkv_v3", "rwkv_v4"])
@pytest.mark.parametrize(("layers", "channels"), [(1, 8), (2, 8), (6, 24), (2, 1)])
@pytest.mark.parametrize("ffn_pre", [False, True])
def test_v3_and_v4_vectors(name, layers, channels, ffn_pre):
    if ffn_pre and layers == 1:
        pytest.skip("refused")
    model = built(name, n_layer=layers, n_embd=channels, ffn_pre=ffn_pre)
    for l, block in enumerate(model.blocks):
        r, s = (l / (layers - 1) if layers > 1 else 0.0), 1 - l / layers
        share = [i / channels for i in range(channels)]
        m_k = [x**s for x in share]
        channel_mixes = [block.ffn]
        if ffn_pre and l == 0:
            channel_mixes.append(block.att)
        else:
            ramp = [i / (channels - 1) if channels > 1 else 0.0 for i in range(channels)]
            want = {
                "time_decay": [-5 + 8 * x ** (0.7 + 1.3 * r) for x in ramp],
                "time_first": [math.log(0.3) + 0.5 * ((i + 1) % 3 - 1) for i in range(channels)],
                "shift.time_mix_k": m_k,
                "shift.time_mix_v": [m + 0.3 * r for m in m_k],
                "shift.time_mix_r": [x ** (s / 2) for x in share],
            }
            require(block.att, want)
        for mix in channel_mixes:
            require(mix, {"shift.time_mix_k": m_k, "shift.time_mix_r": m_k})


def require(mix, want):
    for key, values in want.items():
        torch.testing.assert_close(
            mix.get_parameter(key).tolist(), values, rtol=1e-5, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("name", HEADS)
def test_learned_shift_of_the_heads_family_starts_halved(name):
    for block in built(name, token_shift="learned").blocks:
        for mix in (block.att, block.ffn):
            shares = list(mix.shift.parameters())
            assert len(shares) == len(mix.shift.roles)
            assert all(share.tolist() == [0.0] * (C // 2) + [1.0] * (C // 2) for share in shares)


@pytest.mark.parametrize("name", names("model"))
def test_the_seed_alone_decides(name):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = built(name, seed=7).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = built(name, seed=7).state_dict(), built(name, seed=8).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["emb.weight"], other["emb.weight"])


@pytest.mark.parametrize("name", names("model"))
def test_every_parameter_is_initialised(name, monkeypatch):
    """Memory full of NaN before initialisation leaves none after it."""
    to_empty = torch.nn.Module.to_empty

    def to_nan(module, **where):
        module = to_empty(module, **where)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(torch.nan)
        return module

    monkeypatch.setattr(torch.nn.Module, "to_empty", to_nan)
    extra = {"tiny_attention": 4} if name == "rwkv_v1" else {}
    model = built(name, token_shift="learned", **extra)
    assert [key for key, parameter in model.named_parameters() if parameter.isnan().any()] == []
