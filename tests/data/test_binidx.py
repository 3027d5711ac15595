"""Megatron's .bin and .idx files: written here byte by byte, read in place."""

import struct

import numpy as np
import pytest

from rwkv_lab.cli.data import main
from rwkv_lab.config.errors import UserError
from rwkv_lab.data import load
from tests.data.configs import data_config, tokenizer_config

CODES = {"u1": 1, "i1": 2, "i2": 3, "i4": 4, "i8": 5, "u2": 8}


def write(prefix, documents, dtype="u2", **changes):
    """A pair as Megatron's builder writes it: one sequence a document."""
    sizes = [len(document) for document in documents]
    prefix.with_suffix(".bin").write_bytes(np.concatenate(documents).astype(f"<{dtype}").tobytes())
    pointers = np.cumsum([0, *sizes])[:-1] * np.dtype(dtype).itemsize
    header = {"magic": b"MMIDIDX\0\0", "version": 1, "code": CODES.get(dtype, 7)} | changes
    prefix.with_suffix(".idx").write_bytes(
        header["magic"]
        + struct.pack("<QBQQ", header["version"], header["code"], len(sizes), len(sizes) + 1)
        + np.array(sizes, "<i4").tobytes()
        + np.array(pointers, "<i8").tobytes()
        + np.arange(len(sizes) + 1, dtype="<i8").tobytes()
    )
    return str(prefix)


def loaded(path, cache, split=(0.5, 0.5), tokenizer="ids", **fields):
    data = data_config("binidx", path=path, split=list(split), cache_dir=str(cache))
    return load(data, tokenizer_config(tokenizer, **fields))


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("ending", ["", ".bin", ".idx"])
def test_every_type_is_read_in_place_and_cut_between_documents(tmp_path, cache, dtype, ending):
    path = write(tmp_path / "tokens", [[1, 2, 3, 0], [4, 5, 6, 7, 0], [8, 9, 0]], dtype) + ending
    corpus = loaded(path, cache)
    assert corpus.train.tokens.tolist() == [1, 2, 3, 0, 4, 5, 6, 7, 0] and corpus.val.tokens.tolist() == [8, 9, 0]
    assert corpus.tokenizer.vocab_size == 10
    assert {file.name for file in corpus.folder.iterdir()} == {"meta.json", "tokenizer.json"}


def test_several_shards_follow_each_other(tmp_path, cache):
    (tmp_path / "shards").mkdir()
    write(tmp_path / "shards" / "b", [[4, 5]])
    write(tmp_path / "shards" / "a", [[1, 2], [3]])
    corpus = loaded(str(tmp_path / "shards"), cache, (0.9, 0.1))
    assert corpus.train.tokens.tolist() == [1, 2, 3, 4, 5] and corpus.val is None
    assert loaded(str(tmp_path / "shards"), cache, (3, 2)).val.tokens.tolist() == [4, 5]


def test_identity_follows_the_content_of_both_files(tmp_path, cache):
    hashes = []
    for name, documents, dtype in (("a", [[1], [2]], "u2"), ("b", [[1], [2]], "u2"), ("c", [[1, 2]], "u2")):
        path = write(tmp_path / name, documents, dtype)
        hashes.append(data_config("binidx", path=path, cache_dir=str(cache)).file_hashes("data")["data.path"])
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("damage", [{"magic": b"TNTIDX\0\0\0"}, {"version": 2}, {"code": 7}, "cut", "other", "alone"])
def test_damaged_pairs(tmp_path, cache, damage):
    path = write(tmp_path / "t", [[1, 2], [3]], **(damage if isinstance(damage, dict) else {}))
    index, data = tmp_path / "t.idx", tmp_path / "t.bin"
    if damage == "cut":
        index.write_bytes(index.read_bytes()[:-9])
    elif damage == "other":
        data.write_bytes(data.read_bytes()[:-2])
    elif damage == "alone":
        data.unlink()
    with pytest.raises(UserError, match=r"data\.path=.*t\.idx"):
        loaded(path, cache)


def test_export_and_back(tmp_path, cache, capsys):
    (tmp_path / "a.txt").write_text("abcab" * 200)
    out, more = tmp_path / "out" / "corpus", [f"data.path={tmp_path / 'a.txt'}", f"data.cache_dir={cache}"]
    assert main(["export", str(out), "text", *more]) == 0
    shown = capsys.readouterr().out
    assert f"{out}.train.bin" in shown and f"{out}.tokenizer.json" in shown
    data = data_config("binidx", train_path=f"{out}.train.bin", val_path=f"{out}.val", cache_dir=str(cache))
    corpus = load(data, tokenizer_config("run", path=f"{out}.tokenizer.json"))
    assert corpus.tokenizer.decode(corpus.train.tokens) == "abcab" * 180 and len(corpus.val) == 100
    assert corpus.train.bytes_between(0, 900) == 900
