"""The commands that run a model: what they read, what they print, what they refuse."""

import io
import json

import numpy as np
import pytest
import torch

from rwkv_lab import models
from rwkv_lab.cli import embed, evaluate, generate
from rwkv_lab.config.errors import UserError
from rwkv_lab.data.tokenizers.byte import ByteTokenizer
from rwkv_lab.data.tokenizers.char import CharTokenizer
from rwkv_lab.data.tokenizers.ids import IdsTokenizer
from rwkv_lab.inference.recurrent import RecurrentModel
from rwkv_lab.inference.sampling import Session, streamed
from rwkv_lab.models import huggingface
from rwkv_lab.models.rwkv_lm_format import to_original
from rwkv_lab.training.evaluate import evaluate_text


def moved(vocab_size, name="rwkv_v4"):
    model = models.build(name, vocab_size=vocab_size, n_layer=2, n_embd=16, ctx_len=8)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def folder(tmp_path):
    """The same byte-level model as a run's files, as an original checkpoint, and as a folder for transformers."""
    model = moved(256)
    models.save(model, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_text(ByteTokenizer().to_json())
    (tmp_path / "original").mkdir()
    torch.save(to_original(model), tmp_path / "original" / "x.pth")
    huggingface.save(model, ByteTokenizer(), tmp_path / "hf")
    return tmp_path


def test_every_form_of_a_model_draws_the_same(folder, capsys):
    printed = []
    for words in ([folder], [folder / "hf"], [folder / "original" / "x.pth", "--tokenizer", folder / "tokenizer.json"]):
        generate.main([*map(str, words), "--length", "40", "--top-p", "0.9", "--temperature", "0"])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == printed[2]
    with pytest.raises(UserError, match="--tokenizer"):
        generate.main([str(folder / "original" / "x.pth")])


def test_a_prompt_from_standard_input(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("a long\nprompt"))
    generate.main([str(folder), "-", "--length", "5"])
    assert capsys.readouterr().out.startswith("a long\nprompt")
    for empty in ("", "-"):
        monkeypatch.setattr("sys.stdin", io.StringIO(""))
        with pytest.raises(UserError, match="prompt is empty"):
            generate.main([str(folder), empty])


def test_a_filter_without_effect_is_a_warning(folder, capsys):
    generate.main([str(folder), "a", "--length", "2", "--top-p-x", "0.01"])
    assert "--top-p-x" in capsys.readouterr().err
    generate.main([str(folder), "a", "--length", "2", "--top-p-x", "0.01", "--top-p", "0.5"])
    assert not capsys.readouterr().err


def test_a_chat_goes_on_from_line_to_line(folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    generate.main([str(folder), "--chat", "--length", "6", "--seed", "3"])
    printed = capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("two\n"))
    generate.main([str(folder), "--chat", "--length", "6", "--seed", "3"])
    assert not printed.endswith(capsys.readouterr().out)
    with pytest.raises(UserError, match="--chat"):
        generate.main([str(folder), "-", "--chat"])


def test_a_session_in_parts_is_the_same_text():
    model = moved(256)
    whole, parts = Session(model, temperature=0.0), Session(model, temperature=0.0)
    whole.read([1, 2, 3])
    drawn = list(whole.draw(9))
    parts.read([1])
    parts.read([2, 3])
    assert [*parts.draw(4), *parts.draw(5)] == drawn
    limited = Session(model, torch.Generator().manual_seed(1), vocab_size=5)
    limited.read([1])
    assert max(limited.draw(50)) < 5


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [
        (ByteTokenizer(), "é\u4f60\u597d \U0001f600!"),
        (CharTokenizer("ab é"), "ab é\u4f60\u4f60\u4f60\u4f60\u4f60\u4f60a"),
        (IdsTokenizer(30), "3 17 5"),
    ],
    ids=["byte", "char", "ids"],
)
def test_streamed_text_is_the_whole_text(tokenizer, text):
    ids = tokenizer.encode(text).tolist()
    assert "".join(streamed(tokenizer, [], ids)) == tokenizer.decode(ids)
    assert "".join(streamed(tokenizer, ids[:2], ids[2:])).strip() == tokenizer.decode(ids[2:]).strip()


def test_a_character_comes_whole():
    assert list(streamed(ByteTokenizer(), [], "é!".encode())) == ["é", "!"]
    broken = b"\x80\x80\x80" + "\u4f60!".encode()
    assert "".join(streamed(ByteTokenizer(), [], broken)) == "\ufffd" * 4 + "\u4f60!"


def test_any_model_on_any_text(folder, capsys):
    text = folder / "text.txt"
    text.write_text("some text for a test, " * 20)
    original = [str(folder / "original" / "x.pth"), "--tokenizer", str(folder / "tokenizer.json")]
    found = []
    for words in ([str(folder)], original, [str(folder / "hf")]):
        assert evaluate.main([*words, "--text", str(text), "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert {row["bytes"] for row in found} == {text.stat().st_size - 1}
    assert found[2]["loss"] == pytest.approx(found[0]["loss"], rel=1e-6)
    # The tensors do not show how long the warm-up of a stream has to be.
    assert found[1]["loss"] == pytest.approx(found[0]["loss"], rel=0.05)
    low = evaluate_text(moved(256), ByteTokenizer(), text, "cpu", "bf16").loss
    assert low != found[0]["loss"]
    assert low == pytest.approx(found[0]["loss"], rel=0.05)
    for wrong in (
        [str(folder)],
        [*original, "--text", "gone.txt"],
        [str(folder), "--text", str(text), "--split", "val"],
    ):
        with pytest.raises(UserError, match="--text"):
            evaluate.main(wrong)


@pytest.mark.parametrize("vectors", ["x", "ab", "both"])
def test_embeddings(folder, vectors):
    lines = ["one", "a longer line", "", "two", "é"]
    (folder / "lines.txt").write_text("\n".join(lines))
    words = [str(folder), str(folder / "lines.txt"), "--out", str(folder / "x.npy"), "--vectors", vectors]
    embed.main(words)
    written = np.load(folder / "x.npy")
    recurrent = RecurrentModel(models.load(folder))
    for line, row in zip(lines, written, strict=True):
        found = recurrent.embed(torch.tensor([list(line.encode() or b"\n")]))
        parts = [found.x[0]] * (vectors != "ab") + [found.a_over_b[0]] * (vectors != "x")
        np.testing.assert_allclose(row, torch.stack(parts, dim=1).flatten().numpy(), rtol=1e-4, atol=1e-5)
    embed.main([*words, "--layers", "last", "--normalise"])
    last = np.load(folder / "x.npy").reshape(len(lines), -1, 16)
    np.testing.assert_allclose(np.linalg.norm(last, axis=-1), 1, rtol=1e-5)
    for wrong in ("2", "x", "-1"):
        with pytest.raises(UserError, match="--layers"):
            embed.main([*words, f"--layers={wrong}"])


def test_texts_and_models_that_cannot_be_embedded(tmp_path):
    models.save(moved(256, "mha_rotary"), tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_text(ByteTokenizer().to_json())
    lines = tmp_path / "lines.txt"
    for content, out, words in (
        (b"", "x.npy", "no line"),
        (b"\xff", "x.npy", "cannot be read"),
        (b"one", "x.txt", r"\.npy"),
        (b"one", "gone/x.npy", "no folder"),
        (b"one", "x.npy", "no sentence embedding"),
    ):
        lines.write_bytes(content)
        with pytest.raises(UserError, match=words):
            embed.main([str(tmp_path), str(lines), "--out", str(tmp_path / out)])
