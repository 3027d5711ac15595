"""Loss and bits per byte of held-out text: right whatever the tokenizer, every token counted once."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from rwkv_lab import models
from rwkv_lab.cli.evaluate import main
from rwkv_lab.config.errors import UserError
from rwkv_lab.data.token_cache import Split
from rwkv_lab.training.evaluate import bits_per_byte, evaluate_fixed, evaluate_full, evaluate_sliding

VOCAB = 20
EXAMPLES = settings(max_examples=40, deadline=None)


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: more threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Uniform(torch.nn.Module):
    """Says nothing of the next token."""

    recurrent = False

    def __init__(self, vocab_size):
        super().__init__()
        self.vocab_size = vocab_size

    def forward(self, idx):
        return torch.zeros(*idx.shape, self.vocab_size)


def split_of(n, seed=0, vocab=VOCAB):
    draw = np.random.default_rng(seed)
    return Split(draw.integers(0, vocab, n).astype(np.uint8), draw.integers(1, 5, n).astype(np.uint8))


def small(name, **fields):
    fields = {"n_layer": 2, "n_embd": 16, "ctx_len": 8} | fields
    model = models.build(name, vocab_size=VOCAB, seed=1, backend="reference", **fields)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.3)
    return model


def losses_of_the_parallel_form(model, split):
    """Loss of every token but the first, from one pass over the whole text."""
    tokens = torch.from_numpy(split.tokens.astype(np.int64))
    with torch.no_grad():
        return cross_entropy(model(tokens[None, :-1])[0], tokens[1:], reduction="none").double()


@EXAMPLES
@given(st.integers(2, 400), st.integers(1, 50), st.integers(1, 9), st.integers(2, 200), st.integers(1, 500))
def test_a_uniform_model_needs_log2_of_the_vocabulary_a_token(n, ctx_len, batch_size, vocab, n_tokens):
    split, model = split_of(n, vocab=vocab), Uniform(vocab)
    for found in (
        evaluate_sliding(model, split, ctx_len, batch_size),
        evaluate_fixed(model, split, ctx_len, n_tokens, batch_size),
    ):
        assert found.loss == pytest.approx(math.log(vocab), rel=1e-6)
        assert found.bpb == pytest.approx(math.log2(vocab) * found.tokens / found.bytes, rel=1e-6)
        assert found.bytes == split.lengths[1 : found.tokens + 1].sum()


@EXAMPLES
@given(st.integers(2, 400), st.integers(1, 50), st.integers(1, 500))
def test_fixed_part_is_contiguous_and_no_longer_than_asked(n, ctx_len, n_tokens):
    found = evaluate_fixed(Uniform(VOCAB), split_of(n), ctx_len, n_tokens, 4)
    length = min(ctx_len, n - 1)
    assert found.tokens % length == 0 and found.tokens <= max(n_tokens, length)
    assert found.tokens + length > min(n_tokens, n - 1)


@EXAMPLES
@given(st.integers(2, 400), st.integers(1, 50), st.integers(1, 9))
def test_sliding_windows_count_every_token_once(n, ctx_len, batch_size):
    found = evaluate_sliding(Uniform(VOCAB), split_of(n), ctx_len, batch_size)
    assert found.tokens == n - 1
    assert found.loss == pytest.approx(math.log(VOCAB), rel=1e-6)


@settings(max_examples=3, deadline=None)
@given(st.integers(2, 30), st.integers(1, 9))
def test_sliding_windows_give_each_token_the_context_they_promise(n, batch_size):
    model, split = small("mha_rotary"), split_of(n)
    tokens = torch.from_numpy(split.tokens.astype(np.int64))
    expected = 0.0
    for i in range(1, n):
        # windows of 8 begin at multiples of 4, the last one where the text ends; each predicts what no earlier one did
        start = max(0, (i - 5) // 4 * 4) if i > 8 else 0
        start = min(start, max(0, n - 1 - 8))
        with torch.no_grad():
            logits = model(tokens[None, start:i])[0, -1:]
        expected += cross_entropy(logits, tokens[i : i + 1]).item()
    found = evaluate_full(model, split, 8, batch_size)
    assert found.loss == pytest.approx(expected / (n - 1), rel=1e-5)
    assert found.method.startswith("sliding")


@pytest.mark.parametrize("name", ["rwkv_v2", "rwkv_v3", "rwkv_v4"])
def test_carried_state_is_one_pass_over_the_text(name):
    model, split = small(name), split_of(120)
    expected = losses_of_the_parallel_form(model, split)
    found = evaluate_full(model, split, 8, 1)
    assert found.method == "recurrent state carried"
    assert found.loss == pytest.approx(expected.mean().item(), rel=1e-5)
    assert (found.tokens, found.bytes) == (119, split.lengths[1:].sum())


@settings(max_examples=8, deadline=None)
@given(st.integers(130, 500), st.integers(1, 9))
def test_streams_count_every_token_once(n, batch_size):
    """With a uniform output head the mean is ln V only if each of the n - 1 tokens counts exactly once."""
    model, split = small("rwkv_v4"), split_of(n)
    with torch.no_grad():
        model.head.weight.zero_()
    found = evaluate_full(model, split, 8, batch_size)
    assert found.tokens == n - 1 and found.loss == pytest.approx(math.log(VOCAB), rel=1e-6)


def test_streams_differ_from_one_pass_only_by_what_precedes_their_beginning():
    model, split = small("rwkv_v4"), split_of(2000)
    expected = losses_of_the_parallel_form(model, split).mean().item()
    found = evaluate_full(model, split, 8, 16)
    assert "15 parallel streams, 8-token warm-up each" in found.method
    assert found.loss == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("name", ["rwkv_v4", "mha_rotary"])
def test_full_evaluation_of_a_beginning_is_that_of_a_shorter_text(name):
    model, split = small(name), split_of(150)
    beginning = Split(split.tokens[:71], split.lengths[:71])
    found, expected = evaluate_full(model, split, 8, 4, n_tokens=70), evaluate_full(model, beginning, 8, 4)
    assert found[:4] == expected[:4] and found.method == f"first 70 tokens, {expected.method}"
    assert evaluate_full(model, split, 8, 4, n_tokens=149) == evaluate_full(model, split, 8, 4)


def test_head_qk_sees_no_more_than_the_last_ctx_len_tokens():
    model, split = small("rwkv_v4", head_qk_dim=4), split_of(200)
    assert math.isfinite(evaluate_full(model, split, 8, 4).loss)


def test_memory_for_logits_bounds_the_batch_not_the_result(monkeypatch):
    split = split_of(300)
    for name in ("rwkv_v4", "mha_rotary"):
        model = small(name)
        whole = evaluate_full(model, split, 8, 16)
        with monkeypatch.context() as patch:
            patch.setattr("rwkv_lab.training.evaluate.LOGITS", 100)
            parts = evaluate_full(model, split, 8, 16)
        assert parts.loss == pytest.approx(whole.loss, rel=1e-6) and parts.tokens == whole.tokens


def test_training_goes_on_as_before():
    model = small("rwkv_v4").train()
    evaluate_full(model, split_of(50), 8, 4)
    assert model.training
    model.eval()
    evaluate_fixed(model, split_of(50), 8, 16, 4)
    assert not model.training


def test_tokens_without_text_have_no_bits_per_byte():
    split = Split(np.zeros(50, np.uint8), 0)
    assert math.isnan(evaluate_fixed(Uniform(VOCAB), split, 8, 16, 4).bpb)
    assert bits_per_byte(math.log(2), 8, 4) == 2.0


def test_text_too_short_to_measure():
    with pytest.raises(UserError, match="at least 2"):
        evaluate_fixed(Uniform(VOCAB), split_of(1), 8, 16, 4)


def run_directory(folder, text, split):
    """A complete run as training leaves it, of an untrained model."""
    from rwkv_lab.config import registry
    from rwkv_lab.data import load

    data = {"name": "text", "path": str(text), "split": split, "cache_dir": str(folder / "cache")}
    corpus = load(registry.get("data", data["name"])(**data), registry.get("tokenizer", "byte")())
    folder.mkdir(exist_ok=True)
    model = models.build("rwkv_v4", vocab_size=256, n_layer=1, n_embd=16, ctx_len=8)
    models.save(model, folder / "model.safetensors")
    config = {"model": {"name": "rwkv_v4", "ctx_len": 8}, "data": data, "tokenizer": {"name": "byte"}}
    (folder / "config.yaml").write_text(json.dumps(config))
    manifest = {
        "format": 1,
        "data": {"sha256": corpus.sha256},
        "resolved": {"precision": "fp32", "ops_backend": "reference"},
    }
    (folder / "run.json").write_text(json.dumps(manifest))
    (folder / "tokenizer.json").write_text(corpus.tokenizer.to_json())
    return model, corpus


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "rwkv_lab.evaluate", *map(str, arguments)], capture_output=True, text=True
    )


def test_command_line_on_the_test_split(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("some text for a test, " * 100)
    model, corpus = run_directory(tmp_path / "run", text, [0.8, 0.1, 0.1])
    arguments = [str(tmp_path / "run"), "--split", "test", "--device", "cpu"]
    assert main([*arguments, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    expected = evaluate_full(model, corpus.test, 8, 16)
    assert said["split"] == "test" and said["tokens"] == 219
    assert said["bpb"] == pytest.approx(expected.bpb, rel=1e-5)
    assert main(arguments) == 0
    assert f"{expected.bpb:.4f} bits per byte\nover 219 tokens" in capsys.readouterr().out
    text.write_text("another text altogether " * 100)
    with pytest.raises(UserError, match="changed since it was trained"):
        main(arguments)


def test_command_line_without_a_test_split(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("some text for a test, " * 100)
    run_directory(tmp_path / "run", text, [0.9, 0.1])
    done = command(tmp_path / "run", "--split", "test")
    assert done.returncode == 2
    assert done.stderr.startswith("error: data=text of run has no test text") and done.stderr.count("\n") == 1
