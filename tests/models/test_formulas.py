"""Every architecture against its formulas written out over the original's weights, sums over all pairs of positions."""

import math

import pytest
import torch
import torch.nn.functional as F

from rwkv_lab import models
from rwkv_lab.cli.convert import load_original, to_original

VERSIONS = {"rwkv_v2": "v2", "rwkv_v3": "v3", "rwkv_v4": "v4"}
TYPES = {"rwkv_v1": "RWKV", "mha_rotary": "MHA_rotary", "mha_shift": "MHA_shift", "mha_pro": "MHA_pro"}


def norm(p, name, x):
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], 1e-5)


def linear(p, name, x):
    return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0.0)


def before(x):
    return torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), 1)


def half(x):
    h = x.shape[-1] // 2
    return torch.cat((before(x)[..., :h], x[..., h:]), -1)


def mix(x, m):
    return x * m + before(x) * (1 - m)


def head_qk(p, y, idx, V, d):
    q, k = linear(p, "head_q", y), linear(p, "head_k", y)
    c = torch.tril(q @ k.transpose(1, 2) / d)
    return c @ F.one_hot(idx, V).to(c.dtype)


def time_weights(p, at, T):
    w, L = p[f"{at}.time_w"], p[f"{at}.time_w"].shape[1]
    W = torch.zeros(w.shape[0], T, T, dtype=w.dtype)
    for t in range(T):
        for u in range(t + 1):
            W[:, t, u] = w[:, L - 1 - (t - u)] * p[f"{at}.time_alpha"][:, 0, u] * p[f"{at}.time_beta"][:, t, 0]
    return W


def v1_time_mix(p, at, x, H, heads):
    z = half(x)
    k = torch.exp(linear(p, f"{at}.key", z).clamp(-60, 30))
    v, r = linear(p, f"{at}.value", z), linear(p, f"{at}.receptance", z)
    T = x.shape[1]
    W = time_weights(p, at, T).repeat_interleave(k.shape[-1] // H, 0)  # [A,T,T]
    y = torch.einsum("ctu,buc->btc", W, k * v) / k.cumsum(1)
    return linear(p, f"{at}.output", torch.sigmoid(r) * y) * p[f"{at}.time_gamma"][:T]


def rotated(x):  # [B,T,H,S]
    d = x.shape[-1] // 2
    out = x.clone()
    for t in range(x.shape[1]):
        for j in range(d // 2):
            angle = t * 10000 ** (-2 * j / d)
            a, b = x[:, t, :, j], x[:, t, :, j + d // 2]
            out[:, t, :, j] = a * math.cos(angle) - b * math.sin(angle)
            out[:, t, :, j + d // 2] = b * math.cos(angle) + a * math.sin(angle)
    return out


def attention(p, at, x, H, name):
    x = x if name == "mha_rotary" else half(x)
    q, k, v = (linear(p, f"{at}.{part}", x).unflatten(-1, (H, -1)) for part in ("query", "key", "value"))
    scores = torch.einsum("bthc,buhc->bhtu", rotated(q), rotated(k)) / math.sqrt(q.shape[-1])
    T = x.shape[1]
    a = torch.softmax(scores + torch.full((T, T), -math.inf).triu(1), -1)
    if name == "mha_pro":
        a = torch.einsum("gh,bhtu->bgtu", p[f"{at}.head_mix.weight"][:, :, 0, 0], a * time_weights(p, at, T))
    out = linear(p, f"{at}.output", torch.einsum("bhtu,buhc->bthc", a, v).flatten(2))
    return out * p[f"{at}.time_gamma"][:T] if name == "mha_pro" else out


def v1_channel_mix(p, at, x, name):
    z = x if name == "mha_rotary" else half(x)
    k, v = linear(p, f"{at}.key", z), linear(p, f"{at}.value", z)
    if name in ("mha_rotary", "mha_shift"):
        return linear(p, f"{at}.weight", F.gelu(k) * v)
    return torch.sigmoid(linear(p, f"{at}.receptance", z)) * linear(
        p, f"{at}.weight", k * torch.tanh(F.softplus(k)) * v
    )


def v1_logits(p, idx, name, L, H):
    x = p["tok_emb.weight"][idx]
    for i in range(L):
        at = f"blocks.{i}.attn"
        y = norm(p, f"blocks.{i}.ln1", x)
        x = x + (v1_time_mix(p, at, y, H, H) if name == "rwkv_v1" else attention(p, at, y, H, name))
        x = x + v1_channel_mix(p, f"blocks.{i}.mlp", norm(p, f"blocks.{i}.ln2", x), name)
    y = norm(p, "ln_f", x)
    logits = (y * p["time_out"][:, : idx.shape[1]]) @ p["head.weight"].T
    return (
        logits + head_qk(p, y, idx, logits.shape[-1], p["head_q.weight"].shape[0]) if "head_q.weight" in p else logits
    )


def scan_time_mix(p, at, x, version):
    shares = [p[f"{at}.time_mix"]] * 3 if version == "v2" else [p[f"{at}.time_mix_{role}"] for role in "kvr"]
    k, v, r = (linear(p, f"{at}.{n}", mix(x, m)) for n, m in zip(("key", "value", "receptance"), shares, strict=True))
    d, first = p[f"{at}.time_decay"].flatten().exp(), p[f"{at}.time_first"].flatten()
    eps = {"v2": 1e-16, "v3": 1e-8, "v4": 0.0}[version]
    k = k if version == "v4" else k.clamp(max=60)
    out = []
    for t in range(x.shape[1]):
        age = torch.arange(t - 1, -1, -1, dtype=k.dtype).unsqueeze(-1)
        exponent = torch.cat((k[:, :t] - age * d, k[:, t : t + 1] + first), 1)  # [B,t+1,C]
        scale = exponent.max(1, keepdim=True).values.detach() if version == "v4" else torch.zeros_like(exponent[:, :1])
        e = torch.exp(exponent - scale)
        out.append((e * v[:, : t + 1]).sum(1) / (e.sum(1) + eps))
    return linear(p, f"{at}.output", torch.sigmoid(r) * torch.stack(out, 1))


def scan_channel_mix(p, at, x, version):
    m_k, m_r = (p[f"{at}.time_mix"],) * 2 if version == "v2" else (p[f"{at}.time_mix_k"], p[f"{at}.time_mix_r"])
    hidden = torch.relu(linear(p, f"{at}.key", mix(x, m_k))) ** 2
    return torch.sigmoid(linear(p, f"{at}.receptance", mix(x, m_r))) * linear(p, f"{at}.value", hidden)


def scan_logits(p, idx, version, L, ffn_pre):
    x = p["emb.weight"][idx]
    for i in range(L):
        b = f"blocks.{i}"

        def first(y, b=b, i=i):
            if ffn_pre and i == 0:
                return scan_channel_mix(p, f"{b}.ffnPre", y, version)
            return scan_time_mix(p, f"{b}.att", y, version)

        if version == "v2":
            x = norm(p, f"{b}.ln1", x)
            x = norm(p, f"{b}.ln2", x + first(x))
            x = x + scan_channel_mix(p, f"{b}.ffn", x, version)
        else:
            x = norm(p, f"{b}.ln0", x) if i == 0 else x
            x = x + first(norm(p, f"{b}.ln1", x))
            x = x + scan_channel_mix(p, f"{b}.ffn", norm(p, f"{b}.ln2", x), version)
    y = norm(p, "ln_out", x)
    logits = y @ p["head.weight"].T
    return (
        logits + head_qk(p, y, idx, logits.shape[-1], p["head_q.weight"].shape[0]) if "head_q.weight" in p else logits
    )


def randomised(model, seed=3, **spreads):
    """The model in float64 with every parameter moved off its initial value; spreads by a part of the name."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = next((value for part, value in spreads.items() if part in name.replace(".", "_")), 0.3)
            parameter += spread * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


CASES = [
    ("rwkv_v1", {}),
    ("rwkv_v1", {"head_qk_dim": 16, "n_attn": 12, "n_ffn": 7, "n_head": 3}),
    ("rwkv_v2", {"head_qk_dim": 5}),
    ("rwkv_v2", {"head_qk_dim": 0, "ffn_pre": True}),
    ("rwkv_v3", {}),
    ("rwkv_v3", {"head_qk_dim": 40, "ffn_pre": True}),
    ("rwkv_v4", {"head_qk_dim": 9}),
    ("rwkv_v4", {"ffn_pre": True, "n_layer": 4}),
    ("mha_rotary", {"head_qk_dim": 16}),
    ("mha_shift", {"n_attn": 24, "n_head": 3, "n_ffn": 5}),
    ("mha_pro", {}),
    ("mha_pro", {"head_qk_dim": 16, "n_attn": 8, "n_head": 1}),
]


@pytest.mark.parametrize("T", [1, 7, 12])
@pytest.mark.parametrize(("name", "fields"), CASES, ids=lambda value: value if isinstance(value, str) else None)
def test_formulas(name, fields, T):
    check(name, {"n_layer": 2, "n_embd": 16, "ctx_len": 12} | fields, T)


@pytest.mark.parametrize("name", ["rwkv_v1", "rwkv_v2", "rwkv_v3", "rwkv_v4"])
def test_formulas_with_keys_of_hundreds(name):
    """Keys reach past ±800: where k is cut off its gradient is zero, and nothing overflows."""
    keys = check(name, {"n_layer": 2, "n_embd": 16, "ctx_len": 12}, 12, att_key=130.0)
    assert keys.min() < -800
    assert keys.max() > 800


@pytest.mark.parametrize("name", ["rwkv_v2", "rwkv_v3"])
def test_formulas_with_keys_near_the_epsilon(name):
    """At k near ln eps the epsilon of the denominator carries weight."""
    log_eps, C = {"rwkv_v2": -36.8, "rwkv_v3": -18.4}[name], 16
    model = randomised(models.build(name, vocab_size=19, n_layer=2, n_embd=C, ctx_len=12))
    with torch.no_grad():
        for block in model.blocks:
            block.ln1.bias.fill_(1.0)  # then the inputs of the key sum to about C
            block.att.key.weight.add_(log_eps / C)
    keys = compare(model, name, 12)
    assert ((keys - log_eps).abs() < 2).any()


def check(name, fields, T, **spreads):
    model = randomised(models.build(name, vocab_size=19, **fields), **spreads)
    return compare(model, name, T)


def compare(model, name, T):
    """Logits and gradients against the formulas, in float64; returns all keys of RWKV's time mixes."""
    config = model.config
    p = {key: value.requires_grad_(True) for key, value in to_original(model).items()}
    idx = torch.randint(0, 19, (2, T), generator=torch.Generator().manual_seed(5))
    if name in VERSIONS:
        want = scan_logits(p, idx, VERSIONS[name], config.n_layer, config.ffn_pre)
    else:
        want = v1_logits(p, idx, name, config.n_layer, config.heads)
    keys = []
    if name.startswith("rwkv"):
        for block in model.blocks:
            block.att.key.register_forward_hook(lambda _m, _i, output: keys.append(output.detach().flatten()))
    got = model(idx)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9 * float(want.detach().abs().max()))
    direction = torch.randn(got.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    (got * direction).sum().backward()
    (want * direction).sum().backward()
    for key, grad in to_original(model, grads=True).items():
        expected = torch.zeros_like(p[key]) if p[key].grad is None else p[key].grad
        assert torch.isfinite(grad).all(), key
        torch.testing.assert_close(
            grad,
            expected,
            rtol=1e-7,
            atol=1e-8 * max(1.0, float(expected.abs().max())),
            msg=lambda m, key=key: f"{key}: {m}",
        )
    return torch.cat(keys) if keys else None


def test_the_original_names_load_again():
    model = randomised(models.build("mha_shift", vocab_size=19, n_layer=1, n_embd=16, ctx_len=12))
    again = load_original(to_original(model), "v1", "MHA_shift", n_head=4)
    idx = torch.arange(10).unsqueeze(0)
    assert torch.equal(again(idx), model(idx))
