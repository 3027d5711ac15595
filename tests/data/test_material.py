"""Real text: the beginning of enwik8, and SimpleBooks-2 by its two files."""

import pytest

from rwkv_lab.data import load
from tests.data.configs import data_config, tokenizer_config


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_beginning_of_enwik8(material, cache, tokenizer):
    file = material / "data" / "enwik8-first-4MB"
    data = data_config("enwik8", path=str(file), split=[0.9, 0.05, 0.05], cache_dir=str(cache))
    corpus = load(data, tokenizer_config(tokenizer))
    content = file.read_bytes()
    splits = (corpus.train, corpus.val, corpus.test)
    sizes = [split.bytes_between(0, len(split)) for split in splits]
    assert sum(sizes) == len(content) == 4_000_000
    assert abs(sizes[0] - 3_600_000) < 4 and abs(sizes[1] - 200_000) < 4
    start = content[sizes[0] : sizes[0] + sizes[1]].decode()
    assert start.startswith(corpus.tokenizer.decode(corpus.val.tokens[:200]))
    assert "not comparable" in corpus.notes[0]


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_simplebooks_2_by_its_two_files(material, cache, tokenizer):
    train, val = (material / "data" / f"simplebooks-2-{part}.txt" for part in ("valid", "test"))
    data = data_config("simplebooks_2", train_path=str(train), val_path=str(val), cache_dir=str(cache))
    corpus = load(data, tokenizer_config(tokenizer))
    assert corpus.tokenizer.decode(corpus.train.tokens) == train.read_text(encoding="utf-8")
    assert len(corpus.val) == val.stat().st_size and corpus.test is None
