"""Each trick against its definition, and all of them on all models."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from rwkv_lab import models
from rwkv_lab.config.errors import UserError
from rwkv_lab.config.model_fields import RoleShares, Shift
from rwkv_lab.config.registry import get, names
from rwkv_lab.models.blocks.attention import TinyAttention
from rwkv_lab.models.blocks.head_qk import HeadQK
from rwkv_lab.models.blocks.token_shift import LearnedShift, TokenShift
from rwkv_lab.models.head_loss import with_l2_wrap
from tests.models.contract import require_recurrent_equals_parallel, tokens

SMALL = {"n_layer": 2, "n_embd": 16, "ctx_len": 9}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def filled(module):
    generator = seeded(4)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


@pytest.mark.parametrize("form", ["sum", "max"])
@pytest.mark.parametrize("window", [20, 3])
def test_head_qk_by_loops(form, window):
    B, T, C, V, D = 2, 9, 6, 5, 4
    head_qk = filled(HeadQK(C, D, window, form, bias=True)).double()
    x = torch.randn(B, T, C, generator=seeded(), dtype=torch.float64)
    idx = torch.randint(0, V, (B, T), generator=seeded(1))
    base = torch.randn(B, T, V, generator=seeded(2), dtype=torch.float64)
    got, _ = head_qk(base.clone(), x, idx)
    want = base.clone()
    q, k = head_qk.q(x), head_qk.k(x)
    for b, t in itertools.product(range(B), range(T)):
        for token in range(V):
            amounts = [
                (q[b, t] @ k[b, u] / D).item() for u in range(max(0, t - window + 1), t + 1) if idx[b, u] == token
            ]
            if amounts:
                want[b, t, token] += sum(amounts) if form == "sum" else max(amounts)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("form", ["sum", "max"])
def test_head_qk_gradient(form):
    head_qk = filled(HeadQK(3, 2, 4, form, bias=False)).double()
    idx = torch.tensor([[0, 1, 0, 2, 1]])
    x = torch.randn(1, 5, 3, generator=seeded(), dtype=torch.float64, requires_grad=True)
    base = torch.zeros(1, 5, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: head_qk(base.clone(), x, idx)[0], x)


def test_token_shift_kinds():
    x = torch.randn(2, 4, 5, generator=seeded())
    prev = torch.cat((torch.zeros(2, 1, 5), x[:, :-1]), 1)
    assert all(torch.equal(part, x) for part in TokenShift("none", 5, "kv")(x))
    (half,) = TokenShift("half", 5, "k")(x)
    assert torch.equal(half[..., :2], prev[..., :2])
    assert torch.equal(half[..., 2:], x[..., 2:])
    learned = filled(TokenShift("learned", 5, "kr"))
    for part, m in zip(learned(x), (learned.time_mix_k, learned.time_mix_r), strict=True):
        torch.testing.assert_close(part, x * m + prev * (1 - m))
    shared = filled(TokenShift("learned", 5, "kvr", shared=True))
    assert [name for name, _ in shared.named_parameters()] == ["time_mix"]
    assert len(shared(x)) == 3


SHIFTS = {
    "share": {"token_shift": "share", "shift_share": 0.25},
    "roles": {"token_shift": "roles", "shift_roles": RoleShares(q=0.3, k=0.5, v=0.7)},
    "ramp": {"token_shift": "ramp", "shift_share": 0.8, "shift_last": 0.2},
    "start": {"token_shift": "learned", "shift_share": 0.75},
}


def shares_of(model):
    """The shares of channels from the previous token by layer, side and role, as they are or as a learned m begins."""
    found = {}
    for layer, block in enumerate(model.blocks):
        for side in ("att", "ffn"):
            shift = getattr(block, side).shift
            for role, n in zip(shift.roles, shift.n_shifted, strict=True):
                m = dict(shift.named_parameters()).get("time_mix" if shift.shared else f"time_mix_{role}")
                found[layer, side, role] = n / 20 if m is None else float((1 - m.detach()).mean())
    return found


@pytest.mark.parametrize("name", names("model"))
@pytest.mark.parametrize("kind", SHIFTS)
def test_shares_of_the_token_shift(name, kind):
    """Each role of each layer has the share of channels that the fields say, in every model."""
    model = models.build(name, vocab_size=5, n_layer=3, n_embd=20, ctx_len=6, **SHIFTS[kind])
    for (layer, _, role), share in shares_of(model).items():
        want = {
            "share": 0.25,
            "roles": {"q": 0.3, "k": 0.5, "v": 0.7, "r": 0.5}[role],
            "ramp": 0.8 - 0.3 * layer,
            "start": 0.75,
        }[kind]
        assert share == pytest.approx(want), (layer, role)


@pytest.mark.parametrize("name", names("model"))
@pytest.mark.parametrize("kind", SHIFTS)
def test_shifts_in_recurrent_form(name, kind, tmp_path):
    """Chunk by chunk, and after saving and loading, the logits are those of the whole."""
    model = models.build(name, vocab_size=11, n_layer=2, n_embd=12, ctx_len=8, **SHIFTS[kind])
    require_recurrent_equals_parallel(filled(model).double(), 8)
    models.save(model.float(), tmp_path / "model.safetensors")
    idx = tokens(1, 8)
    assert torch.equal(models.load(tmp_path / "model.safetensors")(idx), model(idx))


def test_learned_shares_begin_where_they_are_told():
    """Roles of their own and a ramp over layers; v2, whose roles share one m, refuses the former."""
    fields = {"token_shift": "learned", "n_embd": 20, "n_layer": 3, "ctx_len": 6}
    roles = models.build("mha_rotary", vocab_size=5, shift_roles=RoleShares(q=0.1, v=0.9), **fields)
    assert {role: share for (_, side, role), share in shares_of(roles).items() if side == "att"} == pytest.approx(
        {"q": 0.1, "k": 0.5, "v": 0.9}
    )
    ramp = models.build("rwkv_v2", vocab_size=5, shift_last=0.1, **fields)
    assert [shares_of(ramp)[layer, "att", "k"] for layer in range(3)] == pytest.approx([0.5, 0.3, 0.1])
    with pytest.raises(UserError, match=r"model\.shift_roles"):
        models.build("rwkv_v2", vocab_size=5, shift_roles=RoleShares(k=0.1), **fields)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"token_shift": "half", "shift_share": 0.2}, r"model\.shift_share"),
        ({"token_shift": "share", "shift_last": 0.2}, r"model\.shift_last"),
        ({"token_shift": "ramp", "shift_roles": {"k": 0.2}}, r"model\.shift_roles"),
        ({"token_shift": "roles"}, r"model\.shift_roles"),
        ({"token_shift": "roles", "shift_roles": {"w": 0.2}}, r"model\.shift_roles\.w"),
        ({"token_shift": "roles", "shift_roles": {"k": 1.2}}, r"model\.shift_roles\.k"),
        ({"token_shift": "share", "shift_share": -0.1}, r"model\.shift_share"),
    ],
)
def test_mistakes_in_the_shares(fields, pattern):
    with pytest.raises(UserError, match=pattern):
        models.build("mha_rotary", vocab_size=5, **fields)
    with pytest.raises(UserError, match="token_shift=ramp"):
        TokenShift("ramp", 4, "k")


@pytest.mark.parametrize("kind", ["none", "half", "learned", Shift(False, 0.8, {"v": 0.3}), Shift(False, 1.0)])
def test_token_shift_carries_the_last_input(kind):
    shift = filled(TokenShift(kind, 5, "kv"))
    x = torch.randn(2, 6, 5, generator=seeded())
    for whole, late in zip(shift(x), shift(x[:, 2:], x[:, 1]), strict=True):
        assert torch.equal(whole[:, 2:], late)


def test_l2_wrap_changes_the_gradient_alone():
    logits = torch.randn(2, 3, 7, generator=seeded(), requires_grad=True)
    targets = torch.randint(0, 7, (6,), generator=seeded(1))
    plain = F.cross_entropy(logits.flatten(0, 1), targets)
    wrapped = with_l2_wrap(plain, logits)
    assert torch.equal(plain, wrapped)
    (without,) = torch.autograd.grad(plain, logits, retain_graph=True)
    (with_wrap,) = torch.autograd.grad(wrapped * 3.0, logits)
    largest, where = logits.detach().max(-1, keepdim=True)
    pull = torch.zeros_like(without).scatter(-1, where, largest * 1e-4 / 6)
    torch.testing.assert_close(with_wrap, 3.0 * (without + pull))


def test_tiny_attention_by_its_formula():
    tiny = filled(TinyAttention(6, 4, 2))
    x = torch.randn(1, 5, 6, generator=seeded())
    q, k, v = (part.unflatten(-1, (2, 2)) for part in tiny.qkv(x).chunk(3, -1))
    scores = torch.einsum("bthc,buhc->bhtu", q, k) / 2**0.5 + torch.full((5, 5), -torch.inf).triu(1)
    want = tiny.out(torch.einsum("bhtu,buhc->bthc", scores.softmax(-1), v).flatten(2))
    torch.testing.assert_close(tiny(x)[0], want)


def test_tiny_attention_joins_the_time_mix():
    fields = SMALL | {"tiny_attention": 8, "tiny_attention_heads": 2}
    model = filled(models.build("rwkv_v1", vocab_size=7, **fields))
    idx = torch.randint(0, 7, (1, 9), generator=seeded())
    before = model(idx)
    with torch.no_grad():
        model.blocks[1].att.tiny_att.out.bias[0] += 1.0
    assert not torch.allclose(before, model(idx))


@pytest.mark.parametrize("name", names("model"))
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("small", [None, True, False])
def test_every_trick_on_every_model(name, norm, small):
    """A finite loss, and a gradient for every parameter once the zero-initialised ones have moved."""
    for shift, dim, form in (("none", 6, "max"), ("half", 0, "sum"), ("half", 6, "sum"), ("learned", 6, "max")):
        model = models.build(
            name,
            vocab_size=13,
            **SMALL,
            norm=norm,
            small_init_emb=small,
            token_shift=shift,
            head_qk_dim=dim,
            head_qk=form,
        )
        recipe = get("model", name).recipe_emb_norm
        assert (model.blocks[0].ln0 is not None) == (norm == "pre" and (recipe if small is None else small))
        idx = torch.randint(0, 13, (4, 10), generator=seeded())
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            loss = model.loss(idx[:, :-1], idx[:, 1:])
            loss.backward()
            optimizer.step()
        assert torch.isfinite(loss)
        silent = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        assert silent == [], f"{shift} {dim} {form}"


@pytest.mark.parametrize("name", names("model"))
def test_causal(name):
    """Logits at t depend on no later token; in float64, since the scan scales a tile by its largest key."""
    model = filled(models.build(name, vocab_size=13, **SMALL, head_qk_dim=6)).double()
    idx = torch.randint(0, 13, (2, 9), generator=seeded())
    changed = idx.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 13
    torch.testing.assert_close(model(idx)[:, :5], model(changed)[:, :5])
    assert not torch.allclose(model(idx)[:, 5:], model(changed)[:, 5:])


@pytest.mark.parametrize("name", names("model"))
def test_accumulation_equals_one_batch(name):
    """n micro-batches with the loss divided by n give the gradient of the whole, L2Wrap included."""
    model = models.build(name, vocab_size=13, **SMALL, l2_wrap=True).double()
    with torch.no_grad():
        model.head.weight *= 50.0  # large logits, so that the pull of L2Wrap shows
    idx = torch.randint(0, 13, (6, 10), generator=seeded())
    x, y = idx[:, :-1], idx[:, 1:]
    model.loss(x, y).backward()
    whole = {key: p.grad.clone() for key, p in model.named_parameters()}
    model.zero_grad()
    for part_x, part_y in zip(x.split(2), y.split(2), strict=True):
        (model.loss(part_x, part_y) / 3).backward()
    for key, p in model.named_parameters():
        torch.testing.assert_close(p.grad, whole[key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", names("model"))
def test_smallest_sizes(name):
    """One layer, one channel, one head, one token."""
    heads = {"n_head": 1} if hasattr(get("model", name)(), "n_head") else {}
    for fields in ({"n_layer": 1, "n_embd": 1}, {"n_layer": 2, "n_embd": 1}, {"n_layer": 1, "n_embd": 7}):
        model = models.build(name, vocab_size=3, ctx_len=4, **fields, **heads)
        idx = torch.tensor([[2]])
        loss = model.loss(idx, idx)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", names("model"))
def test_bfloat16_autocast_stays_close(name):
    model = models.build(name, vocab_size=13, **SMALL, head_qk_dim=6)
    idx = torch.randint(0, 13, (2, 10), generator=seeded())
    exact = model.loss(idx[:, :-1], idx[:, 1:])
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.loss(idx[:, :-1], idx[:, 1:])
    rough.backward()
    assert rough.dtype == torch.float32
    assert abs(rough.item() - exact.item()) < 0.05
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("T", [1, 4])
def test_gradients_of_the_learned_shift(T, first):
    generator = torch.Generator().manual_seed(T)
    sizes = [(2, T, 3)] if first else [(2, T, 3), (2, 3)]
    inputs = [torch.randn(*size, generator=generator, dtype=torch.float64) for size in (*sizes, (3,), (3,))]
    inputs = [x.requires_grad_() for x in inputs]

    def shift(x, *rest):
        return LearnedShift.apply(x, None, *rest) if first else LearnedShift.apply(x, *rest)

    assert torch.autograd.gradcheck(shift, inputs)
