"""The benchmark of training steps: both routes train the same model, every model runs, mistakes are one sentence."""

import pytest
import torch

from benchmarks import training
from benchmarks.baselines import take_earlier_route
from rwkv_lab import models
from rwkv_lab.config.errors import main_guard
from rwkv_lab.config.registry import names


@pytest.mark.parametrize("name", names("model"))
def test_the_earlier_route_computes_the_same(name):
    model = models.build(name, vocab_size=11, n_layer=2, n_embd=16, ctx_len=100).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    idx = torch.randint(11, (2, 100), generator=torch.Generator().manual_seed(0))
    expected = model(idx)
    if not take_earlier_route(model):
        pytest.skip(f"{name} has always computed what it computes now")
    found = model(idx)
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", names("model"))
def test_a_step_changes_the_weights(name):
    model = models.build(name, vocab_size=training.VOCABULARY, n_layer=1, n_embd=16, ctx_len=8)
    before = model.head.weight.clone()
    training.training_step(model, 2, 8, "fp32", "cpu")()
    assert not torch.equal(model.head.weight, before)


def test_the_table_has_both_routes_where_there_were_two(monkeypatch, capsys):
    small = ["--sizes", "1x16", "--ctx", "8", "--turns", "1", "--models", "rwkv_v3,mha_rotary"]
    monkeypatch.setattr("sys.argv", ["bench", *small, "--threads", str(torch.get_num_threads())])
    assert training.main() == 0
    scan, attention = capsys.readouterr().out.splitlines()[-2:]
    assert scan.startswith("| rwkv_v3 | L1 D16 | 8 | fp32 | ") and scan.endswith("x |")
    assert attention.startswith("| mha_rotary | L1 D16 | 8 | fp32 | ") and attention.endswith("|  |  |")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--models", "rwkv_v5"], "rwkv_v5 is not a model (did you mean"),
        (["--sizes", "4-128"], "4-128 is no size; write LAYERSxCHANNELS"),
        (["--precision", "fp8"], "fp8 is not one of fp32, bf16"),
        (["--ctx", "1"], "--ctx 1: context lengths"),
        (["--turns", "0"], "--turns and --batch are at least 1"),
    ],
)
def test_mistakes(monkeypatch, capsys, arguments, sentence):
    monkeypatch.setattr("sys.argv", ["bench", *arguments])
    assert main_guard(training.main) == 2
    assert sentence in capsys.readouterr().err
