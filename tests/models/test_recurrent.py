"""The recurrent form gives the numbers of the parallel one."""

import pytest
import torch

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.registry import get, members
from rwkv_lab.inference.recurrent import RecurrentModel
from rwkv_lab.models.blocks.attention import Attention
from rwkv_lab.models.blocks.channel_mix import ChannelMix, GatedMish, GeGLU
from rwkv_lab.models.blocks.wkv_mix import WKVMix
from rwkv_lab.models.lm import LM, Block
from tests.models.contract import moved, require_recurrent_equals_parallel, tokens

RECURRENT = [name for name, owner in members("model").items() if owner.recurrent]
WINDOWED = [name for name in members("model") if name not in RECURRENT]
# every trick and every field of a model that changes its sublayers; a field another model lacks is left out
TRICKS = [
    {"head_qk_dim": 0},
    {"head_qk_dim": 7},
    {"head_qk_dim": 7, "head_qk": "max", "token_shift": "half"},
    {"token_shift": "learned", "small_init_emb": True, "l2_wrap": True},
    {"ffn_pre": True, "token_shift": "none", "norm": "post"},
    {"norm": "pre", "token_shift": "half", "small_init_emb": True},
    {"emb_init": "unit", "emb_norm": True, "time_out": False},
    {"tiny_attention": 4, "tiny_attention_heads": 2, "n_head": 2, "n_attn": 8},
]


@pytest.mark.parametrize("fields", TRICKS, ids=str)
@pytest.mark.parametrize("name", members("model"))
def test_recurrent_equals_parallel(name, fields):
    """Recurrent models also past ctx_len, where head-QK looks back ctx_len positions in both forms."""
    require_recurrent_equals_parallel(moved(name, **fields), 20 if name in RECURRENT else 8)


@pytest.mark.parametrize("name", members("model"))
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision(name, autocast):
    """bfloat16 weights, or autocast over float32 ones, stay near float32 in both forms."""
    model = moved(name, head_qk_dim=5).float()
    idx = tokens(2, 8)
    exact = model(idx)
    if not autocast:
        model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        whole = model(idx)
        steps, state = [], None
        for token in idx.unbind(1):
            logits, state = RecurrentModel(model).step(token, state)
            steps.append(logits)
    for got in (whole, torch.stack(steps, 1)):
        assert (got.float() - exact).square().mean() < 1e-2 * exact.square().mean()


@pytest.mark.parametrize("name", WINDOWED)
def test_a_full_window_is_halved_and_read_again(name):
    """After 8 of 8 tokens the last 4 are the beginning; logits are the parallel form's from there."""
    model = moved(name, head_qk_dim=5)
    idx = tokens(2, 11)
    steps, state = [], None
    for token in idx.unbind(1):
        logits, state = RecurrentModel(model).step(token, state)
        steps.append(logits)
    torch.testing.assert_close(torch.stack(steps[8:], 1), model(idx[:, 4:])[:, 4:], rtol=0, atol=1e-10)
    whole, _ = RecurrentModel(model).prefill(idx)
    torch.testing.assert_close(whole, torch.stack(steps, 1), rtol=0, atol=1e-10)


def test_a_window_of_one_token():
    model = moved("mha_rotary", ctx_len=1)
    got, _ = RecurrentModel(model).prefill(tokens(1, 3))
    torch.testing.assert_close(got[:, 2:], model(tokens(1, 3)[:, 2:]))


def test_a_model_of_both_kinds_of_memory():
    config = get("model", "mha_rotary")(n_layer=2, n_embd=12, ctx_len=8)
    blocks = [
        Block(config, 0, WKVMix(12, "learned", backend="reference"), ChannelMix(12, "half")),
        Block(config, 1, Attention(12, 12, 2, "learned"), GeGLU(12, 24, "half")),
    ]
    model = LM(config, 11, blocks).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    require_recurrent_equals_parallel(model, 8)
    assert RecurrentModel(model).embed(tokens(2, 5)).a_over_b.shape == (2, 1, 12)


class Forgetful(torch.nn.Module):
    """A sublayer without a memory."""

    def forward(self, x, state):
        return x, ()


class Sum(torch.nn.Module):
    """A sublayer whose state is not a WKV mix's."""

    memory = "constant"

    def forward(self, x, state):
        y = x.cumsum(1) + (0 if state is None else state[0].unsqueeze(1))
        return y, (y[:, -1],)


@pytest.mark.parametrize("ffn", [Forgetful(), Attention(12, 12, 2, "none")], ids=["none", "growing"])
def test_a_recurrent_model_refuses_sublayers_that_carry_no_constant_state(ffn):
    config = get("model", "rwkv_v4")(n_layer=1, n_embd=12)
    with pytest.raises(UserError, match=type(ffn).__name__):
        LM(config, 11, [Block(config, 0, Sum(), ffn)])


def test_a_model_without_states_has_no_recurrent_form():
    config = get("model", "mha_rotary")(n_layer=1, n_embd=12)
    with pytest.raises(UserError, match="mha_rotary"):
        RecurrentModel(LM(config, 11, [Block(config, 0, Sum(), Forgetful())]))


@pytest.mark.parametrize("ffn", [GeGLU, GatedMish], ids=lambda kind: kind.__name__)
def test_any_channel_mix_in_a_recurrent_model(ffn):
    config = get("model", "rwkv_v4")(n_layer=1, n_embd=12)
    torch.manual_seed(1)
    model = LM(config, 11, [Block(config, 0, Sum(), ffn(12, 24, "half"))]).double()
    require_recurrent_equals_parallel(model, 9)
    with pytest.raises(UserError, match="embedding"):
        RecurrentModel(model).embed(tokens(1, 3))


@pytest.mark.parametrize("name", RECURRENT)
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


@pytest.mark.parametrize("name", RECURRENT)
def test_scans_run_beyond_ctx_len(name):
    assert moved(name)(tokens(1, 40)).shape == (1, 40, 11)


@pytest.mark.parametrize("name", WINDOWED)
def test_per_position_parameters_refuse_longer_texts(name):
    model = moved(name)
    assert model(tokens(1, 8)).shape == (1, 8, 11)
    with pytest.raises(UserError, match="ctx_len=8"):
        model(tokens(1, 9))


@pytest.mark.parametrize("name", ["mha_rotary", "mha_shift"])
def test_attention_without_them_runs_beyond_ctx_len(name):
    assert moved(name, time_out=False)(tokens(1, 40)).shape == (1, 40, 11)


@pytest.mark.parametrize("name", ["rwkv_v1", "mha_pro"])
def test_time_weights_refuse_longer_texts_without_time_out_too(name):
    with pytest.raises(UserError, match="ctx_len=8"):
        moved(name, time_out=False)(tokens(1, 9))
