"""The recurrent form gives the numbers of the parallel one."""

import pytest
import torch

from rwkv_lab import models
from rwkv_lab.config.errors import UserError
from rwkv_lab.inference.recurrent import RecurrentModel

SCANS = ("rwkv_v2", "rwkv_v3", "rwkv_v4")
TRICKS = [
    {"head_qk_dim": 0},
    {"head_qk_dim": 7},
    {"head_qk_dim": 7, "head_qk": "max", "token_shift": "half"},
    {"ffn_pre": True, "token_shift": "none", "norm": "post"},
    {"norm": "pre", "token_shift": "half", "small_init_emb": True},
]


def moved(name, **fields):
    """A small model in float64, every parameter away from its initial value."""
    model = models.build(name, vocab_size=11, **({"n_layer": 2, "n_embd": 12, "ctx_len": 8} | fields)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def tokens(B, T, V=11):
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("fields", TRICKS, ids=str)
@pytest.mark.parametrize("name", SCANS)
def test_token_by_token_and_in_chunks(name, fields):
    """Also past ctx_len, where head-QK looks back ctx_len positions in both forms."""
    model = moved(name, **fields)
    recurrent, idx = RecurrentModel(model), tokens(3, 20)
    whole = model(idx)
    state, steps = None, []
    for token in idx.unbind(1):
        logits, state = recurrent.step(token, state)
        steps.append(logits)
    torch.testing.assert_close(torch.stack(steps, 1), whole, rtol=0, atol=1e-10)
    for sizes in ((20,), (1, 19), (13, 7), (5, 5, 1, 9)):
        state, parts = None, []
        for chunk in idx.split(sizes, dim=1):
            logits, state = recurrent.prefill(chunk, state)
            parts.append(logits)
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", SCANS)
def test_a_step_leaves_the_state_it_was_given(name):
    recurrent, idx = RecurrentModel(moved(name)), tokens(2, 5)
    _, state = recurrent.prefill(idx)
    first, _ = recurrent.step(idx[:, 0], state)
    recurrent.step(idx[:, 1], state)
    again, _ = recurrent.step(idx[:, 0], state)
    assert torch.equal(first, again)


def test_the_head_qk_history_is_cut_with_its_tokens():
    model = moved("rwkv_v4", head_qk_dim=5)
    _, state = RecurrentModel(model).prefill(tokens(2, 30))
    keys, seen = state.head_qk
    assert keys.shape == (2, 8, 5)
    assert torch.equal(seen, tokens(2, 30)[:, -8:])


def test_a_sentence_embedding_is_the_state_after_the_last_token():
    model = moved("rwkv_v3", ffn_pre=True, n_layer=3)
    idx = tokens(2, 6)
    inputs = {}
    for i in (1, 2):
        model.blocks[i].att.register_forward_hook(lambda _m, given, _o, i=i: inputs.update({i: given[0]}))
    embedding = RecurrentModel(model).embed(idx)
    assert embedding.x.shape == embedding.a_over_b.shape == (2, 2, 12)  # block 0 has no time mix
    torch.testing.assert_close(embedding.x[:, 1], inputs[2][:, -1])
    att = model.blocks[1].att
    with torch.no_grad():
        xk, xv, _ = att.shift(inputs[1])
        age = torch.arange(5, -1, -1, dtype=torch.float64).unsqueeze(-1)
        e = torch.exp(att.key(xk) - age * att.time_decay.exp())
        average = (e * att.value(xv)).sum(1) / e.sum(1)
    torch.testing.assert_close(embedding.a_over_b[:, 0], average)


@pytest.mark.parametrize("name", ["rwkv_v1", "mha_rotary", "mha_shift", "mha_pro"])
def test_attention_has_no_recurrent_form(name):
    with pytest.raises(UserError, match="no recurrent form"):
        RecurrentModel(models.build(name, vocab_size=11, n_layer=1, n_embd=8, ctx_len=4))


@pytest.mark.parametrize("name", SCANS)
def test_scans_run_beyond_ctx_len(name):
    assert moved(name)(tokens(1, 40)).shape == (1, 40, 11)


@pytest.mark.parametrize("name", ["rwkv_v1", "mha_rotary", "mha_shift", "mha_pro"])
def test_per_position_parameters_refuse_longer_texts(name):
    model = moved(name)
    assert model(tokens(1, 8)).shape == (1, 8, 11)
    with pytest.raises(UserError, match="ctx_len = 8"):
        model(tokens(1, 9))


@pytest.mark.parametrize("name", ["mha_rotary", "mha_shift"])
def test_attention_without_them_runs_beyond_ctx_len(name):
    assert moved(name, time_out=False)(tokens(1, 40)).shape == (1, 40, 11)


@pytest.mark.parametrize("name", ["rwkv_v1", "mha_pro"])
def test_time_weights_refuse_longer_texts_without_time_out_too(name):
    with pytest.raises(UserError, match="ctx_len = 8"):
        moved(name, time_out=False)(tokens(1, 9))
