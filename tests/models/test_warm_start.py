"""Starting from trained weights: whose they are, which rows go where, and what is refused."""

import pytest
import torch

from rwkv_lab import models
from rwkv_lab.config.errors import UserError
from rwkv_lab.data.tokenizers.bpe import BpeTokenizer
from rwkv_lab.data.tokenizers.byte import ByteTokenizer
from rwkv_lab.data.tokenizers.char import CharTokenizer
from rwkv_lab.models.warm_start import matching_rows
from tests.in_process import make_here
from tests.models.test_convert import SMALL, moved

BPE = """{"version": "1.0", "model": {"type": "BPE", "vocab": {%s}, "merges": []}, "added_tokens": []}"""


def bpe(*tokens):
    return BpeTokenizer(BPE % ", ".join(f'"{token}": {i}' for i, token in enumerate(tokens)))


@pytest.mark.parametrize(
    ("theirs", "own", "rows"),
    [
        (CharTokenizer("abc"), CharTokenizer("bcd"), {0: 1, 1: 2, 3: 3}),  # the last id is everything else, in both
        (CharTokenizer("ab"), ByteTokenizer(), {97: 0, 98: 1}),
        (ByteTokenizer(), CharTokenizer("a\u00e9"), {0: 97}),  # two bytes are not one token
        (bpe("x", "y", "xy"), bpe("xy", "z", "y"), {0: 2, 2: 1}),
        (CharTokenizer("xy"), bpe("xy", "y", "q"), {1: 1}),
    ],
    ids=str,
)
def test_rows_of_the_same_tokens(theirs, own, rows):
    assert matching_rows(theirs, own) == rows


def stored(folder, characters, name="rwkv_v4", **fields):
    """A folder like a run's: weights and tokenizer."""
    tokenizer = CharTokenizer(characters)
    model = moved(name, **fields)
    models.save(model, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text(tokenizer.to_json())
    return model, tokenizer


THERE, HERE = "abcdefghijklmnopqr", "bcdefghijklmnopqrs"  # as many characters, but not the same


@pytest.mark.parametrize("name", ["rwkv_v4", "mha_rotary"])
def test_the_same_number_of_other_tokens(tmp_path, name):
    source, theirs = stored(tmp_path, THERE, name)
    fields = SMALL | {"init_from": str(tmp_path)}
    same = models.build(name, vocab_size=19, tokenizer=theirs, **fields)
    assert torch.equal(same.emb.weight, source.emb.weight)
    with pytest.raises(UserError) as caught:
        models.build(name, vocab_size=19, tokenizer=CharTokenizer(HERE), **fields)
    assert all(way in str(caught.value) for way in ("tokenizer=run tokenizer.path=", "model.init_vocab=match"))
    assert "\n" not in str(caught.value)

    matched = models.build(name, vocab_size=19, tokenizer=CharTokenizer(HERE), init_vocab="match", **fields)
    fresh = models.build(name, vocab_size=19, **SMALL)
    for part in ("emb", "head"):
        got, was, new = (getattr(model, part).weight for model in (matched, source, fresh))
        assert torch.equal(got[:17], was[1:18])
        assert torch.equal(got[17], new[17])
        assert torch.equal(got[18], was[18])
    assert torch.equal(matched.ln_out.bias, source.ln_out.bias)


def test_a_larger_vocabulary_matched(tmp_path):
    source, _ = stored(tmp_path, THERE)
    tokenizer = CharTokenizer("!" + THERE + "\u00e9")
    fields = SMALL | {"init_from": str(tmp_path), "init_vocab": "match"}
    larger = models.build("rwkv_v4", vocab_size=21, tokenizer=tokenizer, **fields)
    assert torch.equal(larger.head.weight[1:19], source.head.weight[:18])
    note = models.check_init(larger.config, tokenizer)
    assert "19 of 21" in note
    assert "2 new" in note
    with pytest.raises(UserError, match="tokenizer"):
        models.build("rwkv_v4", vocab_size=21, **fields)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        models.build("rwkv_v4", vocab_size=21, tokenizer=tokenizer, **fields)


def test_a_run_on_another_text(tmp_path, monkeypatch, capsys):
    """A refused run leaves no directory; a run is named by path, STUDY/NAME, the start of its name, or its id."""
    here = make_here(tmp_path, monkeypatch)
    assert here.run("trainer.steps=2", study="first") == 0
    first = here.folder("first")
    text = here.text.read_text()
    here.text.write_text(text.replace("p", "q"))
    for name in (str(first), f"first/{first.name}", first.name, first.name.rpartition("-")[2]):
        with pytest.raises(UserError, match=r"model\.init_vocab=match"):
            here.run("trainer.steps=2", f"model.init_from={name}", f"runs_dir={here.runs}", study="refused")
    for mistake in ("model.n_embd=8", "model.token_shift=none", "model=rwkv_v2"):
        with pytest.raises(UserError, match=r"model\.safetensors"):
            here.run("trainer.steps=2", f"model.init_from={first}", "model.init_vocab=match", mistake, study="refused")
    with pytest.raises(UserError, match=r"model\.time_vectors_from"):
        here.run("model=rwkv_v2", f"model.time_vectors_from={first}", study="refused")
    assert not (here.runs / "refused").exists()
    overrides = ("trainer.steps=2", f"model.init_from={first}", "model.init_vocab=match")
    capsys.readouterr()
    assert here.run(*overrides, study="matched") == 0
    assert "1 new one is initialised" in capsys.readouterr().out
    overrides = ("trainer.steps=2", f"model.init_from={first}", "tokenizer=run", f"tokenizer.path={first}")
    assert here.run(*overrides, study="reused") == 0
    assert (here.folder("reused") / "tokenizer.json").read_text() == (first / "tokenizer.json").read_text()
    here.text.write_text(text)
    assert here.run("trainer.steps=2", f"model.init_from={first}", study="same") == 0


def test_initialise_from(tmp_path):
    source = moved("rwkv_v4")
    models.save(source, tmp_path / "model.safetensors")
    longer = models.build("rwkv_v4", vocab_size=19, **(SMALL | {"ctx_len": 48}), init_from=str(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(longer.parameters(), source.parameters(), strict=True))
    with pytest.raises(UserError, match="sizes and tricks must agree"):
        models.build("rwkv_v4", vocab_size=20, **SMALL, init_from=str(tmp_path))
    with pytest.raises(UserError, match="missing"):
        models.build("rwkv_v3", vocab_size=19, **SMALL, token_shift="none", init_from=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "fields", "longer"), [("mha_rotary", {"time_out": False}, True), ("rwkv_v1", {}, False)]
)
def test_initialise_from_a_shorter_context(tmp_path, name, fields, longer):
    models.save(moved(name, **fields), tmp_path / "m.safetensors")
    target = models.build(name, vocab_size=19, **(SMALL | {"ctx_len": 48}), **fields)
    if longer:
        models.initialise_from(target, tmp_path / "m.safetensors")
    else:
        with pytest.raises(UserError, match="ctx_len, which this parameter depends on"):
            models.initialise_from(target, tmp_path / "m.safetensors")


def test_time_vectors_of_a_smaller_model(tmp_path):
    """Sorted, smoothed, stretched: an ascending source comes out as the same curve at the new size."""
    small = models.build("rwkv_v4", vocab_size=5, n_layer=2, n_embd=8, ctx_len=4)
    shuffled = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for i, block in enumerate(small.blocks):
            block.att.time_decay.copy_(torch.arange(8.0)[shuffled] + 10 * i)
    models.save(small, tmp_path / "m.safetensors")
    source = str(tmp_path / "m.safetensors")
    large = models.build("rwkv_v4", vocab_size=9, n_layer=3, n_embd=15, ctx_len=4, time_vectors_from=source)
    for i, block in enumerate(large.blocks):
        torch.testing.assert_close(block.att.time_decay, torch.arange(15) / 2 + 5.0 * i)
    plain = models.build("rwkv_v4", vocab_size=9, n_layer=3, n_embd=15, ctx_len=4)
    assert torch.equal(large.blocks[1].att.value.weight, plain.blocks[1].att.value.weight)
    with pytest.raises(UserError, match="version and token shift must agree"):
        models.build("rwkv_v2", vocab_size=9, n_layer=3, n_embd=15, ctx_len=4, time_vectors_from=source)
