"""Texts in JSON lines, plain and compressed."""

import gzip
import json

import pytest

from rwkv_lab.config.errors import UserError
from rwkv_lab.data import load
from tests.data.configs import data_config, tokenizer_config

LINES = [{"text": "first é", "id": 1}, {"text": "second\nline"}]


def packed(text, ending):
    if ending == ".zst":
        return pytest.importorskip("zstandard").compress(text.encode())
    return gzip.compress(text.encode()) if ending == ".gz" else text.encode()


def loaded(file, cache, **fields):
    fields = {"path": str(file) if file else None} | fields
    data = data_config("jsonl", **fields, split=[1, 0], cache_dir=str(cache))
    return load(data, tokenizer_config("byte"))


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_texts_are_joined(tmp_path, cache, ending):
    file = tmp_path / f"a.jsonl{ending}"
    file.write_bytes(packed("\n\n".join(map(json.dumps, LINES)) + "\n", ending))
    for path in (file, tmp_path):
        corpus = loaded(path, cache, separator="<end>")
        assert bytes(corpus.train.tokens).decode() == "first é<end>second\nline<end>"


def test_parts_and_another_field(tmp_path, cache):
    for name in ("train", "val"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"body": f"text of {name}"}))
    paths = {f"{name}_path": str(tmp_path / f"{name}.jsonl") for name in ("train", "val")}
    corpus = loaded(None, cache, field="body", **paths)
    assert bytes(corpus.train.tokens) == b"text of train\n" and bytes(corpus.val.tokens) == b"text of val\n"


def test_a_damaged_text_in_the_cache_is_made_again(tmp_path, cache):
    (tmp_path / "a.jsonl").write_text(json.dumps(LINES[0]))
    before = loaded(tmp_path / "a.jsonl", cache)
    (text,) = (cache / "texts").glob("*.txt")
    text.write_text(text.read_text().replace("f", "g"))
    assert loaded(tmp_path / "a.jsonl", cache).sha256 == before.sha256


@pytest.mark.parametrize(
    "content,part",
    [
        (b'{"text": "a"}\n{"body": "b"}', "line 2"),
        (b'{"text": 5}', "line 1"),
        (b"[1]", "line 1"),
        (b'{"text": "a"}\n{"text', "line 2"),
        (b'{"text": "\xff"}', "line 1"),
        (b"[" * 100_000, "line 1"),
    ],
)
def test_lines_without_a_text(tmp_path, cache, content, part):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=f"data.path=.*a.jsonl.*{part}"):
        loaded(tmp_path / "a.jsonl", cache)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_damaged_archives(tmp_path, cache, ending):
    file = tmp_path / f"a.jsonl{ending}"
    file.write_bytes(packed(json.dumps({"text": "a" * 1000}), ending)[:-6])
    with pytest.raises(UserError, match=r"data\.path=.*a\.jsonl"):
        loaded(file, cache)
