"""The cost of a token: states as large as after a context, and the table."""

import pytest
import torch

from benchmarks import decoding
from rwkv_lab import models
from rwkv_lab.config.errors import UserError
from rwkv_lab.inference.recurrent import RecurrentModel

SMALL = {"n_layer": 1, "n_embd": 16}


@pytest.mark.parametrize("name", decoding.MODELS)
def test_a_made_state_is_as_large_as_a_read_one(name):
    model = models.build(name, vocab_size=7, ctx_len=20, **SMALL)
    _, read = RecurrentModel(model).prefill(torch.zeros(1, 9, dtype=torch.long))
    made = decoding.state_of(model, 9)
    sizes = [[tensor.shape for tensor in decoding.tensors(tuple(state.blocks))] for state in (read, made)]
    assert sizes[0] == sizes[1] and made.position == read.position


def test_memory_grows_in_attention_alone(monkeypatch):
    monkeypatch.setattr(decoding, "VOCAB", 11)
    for name, grows in (("rwkv_v4", False), ("mha_rotary", True)):
        few, many = decoding.costs(name, SMALL, (4, 16), 1, "cpu")
        assert (many.state_bytes > few.state_bytes) == grows and few.parameters > 0
        assert decoding.table([few, many]).count("\n") == 3


def test_an_unknown_size_is_refused():
    with pytest.raises(UserError, match="v4_169m"):
        decoding.main(["--size", "huge"])


@pytest.mark.gpu
def test_on_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(decoding, "VOCAB", 11)
    decoding.main(["--size", "small", "--contexts", "128,256", "--device", "cuda"])
    assert capsys.readouterr().out.count("mha_rotary") == 2
