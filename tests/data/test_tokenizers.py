"""Text to tokens and back, whole and streamed; the bytes behind every token."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkv_lab.config.errors import UserError
from rwkv_lab.data import from_json, sources, unknown_in
from rwkv_lab.data.sources import Segment
from rwkv_lab.data.tokenizers import bpe
from rwkv_lab.data.tokenizers.bpe import BpeTokenizer, read_bpe
from rwkv_lab.data.tokenizers.byte import ByteTokenizer
from rwkv_lab.data.tokenizers.char import CharTokenizer, char_vocabulary
from rwkv_lab.data.tokenizers.ids import IdsTokenizer
from rwkv_lab.util import hashing

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200)
ONCE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)


def segment(path, content):
    path.write_bytes(content)
    return Segment(path, 0, len(content), "data.path", hashing.file_sha256(path))


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """A small byte-level BPE tokenizer with one special and one plain added token."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=398, show_progress=False, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and the dog ate the café's bread\n" * 20], trainer)
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens(["    "])
    file = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


@given(TEXT)
def test_bytes_are_the_text(text):
    tokenizer = ByteTokenizer()
    assert tokenizer.encode(text).tolist() == list(text.encode())
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(TEXT)
def test_characters_of_the_vocabulary_come_back(text):
    tokenizer = CharTokenizer("".join(sorted(set(text))))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.unknown_id not in ids and tokenizer.vocab_size == len(set(text)) + 1


def test_unknown_characters_have_an_id_of_their_own():
    tokenizer = CharTokenizer("abc")
    assert tokenizer.encode("aéc𝄞").tolist() == [0, 3, 2, 3]
    assert tokenizer.decode([0, 3, 2]) == "a\N{REPLACEMENT CHARACTER}c"


def test_unknown_characters_of_a_prompt_are_reported():
    said = unknown_in(CharTokenizer("abc"), "aéc𝄞é")
    assert said is not None and "'é𝄞' (3 in all)" in said
    assert unknown_in(CharTokenizer("abc"), "abba") is None and unknown_in(ByteTokenizer(), "é") is None


@pytest.mark.parametrize("make", [ByteTokenizer, lambda: CharTokenizer('a"\n é𝄞'), lambda: IdsTokenizer(7)])
def test_stored_with_a_run_and_read_again(make):
    tokenizer = make()
    again = from_json(tokenizer.to_json())
    assert again == tokenizer and again.vocab_size == tokenizer.vocab_size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"kind": "pickle"}',
        '{"kind": "ids"}',
        '{"kind": "run"}',
        '{"kind": "char", "characters": 5}',
        "[" * 100000,
    ],
)
def test_a_stored_tokenizer_that_is_none(text):
    with pytest.raises(UserError, match="stored tokenizer"):
        from_json(text)


@ONCE
@given(TEXT, st.integers(1, 9))
def test_streaming_does_not_see_the_blocks(tmp_path, text, block):
    """Characters cut by the end of a block are put together again, and lengths are those of UTF-8."""
    source = [segment(tmp_path / "text", text.encode())]
    assert "".join(sources.text_blocks(source, block)) == text
    assert b"".join(sources.byte_blocks(source, block)) == text.encode()
    tokenizer = char_vocabulary(source)
    assert tokenizer.characters == "".join(sorted(set(text)))
    for ids, sizes in tokenizer.stream(source):
        assert ids.tolist() == tokenizer.encode(text).tolist()
        expected = [len(character.encode()) for character in text]
        assert (sizes.tolist() if sizes is not None else [1] * len(ids)) == expected


def test_bpe_stored_and_read_again(byte_level):
    tokenizer = read_bpe(str(byte_level))
    again = from_json(tokenizer.to_json())
    text = "the cat's café <|end|>    ok 𝄞"
    assert tokenizer.vocab_size == tokenizer._inner.get_vocab_size() > 256
    assert again.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert again.decode(tokenizer.encode("the café 𝄞")) == "the café 𝄞"


@pytest.mark.parametrize("piece,short", [(7, 7), (64, 1 << 12), (1 << 16, 16), (1 << 16, 1 << 12)])
def test_bpe_streamed_is_bpe_of_the_whole(byte_level, tmp_path, monkeypatch, piece, short):
    """Cutting before the space between two words does not change byte-level tokens, whatever the size of a piece."""
    monkeypatch.setattr(bpe, "PIECE", piece)
    monkeypatch.setattr(bpe, "SHORT_PIECE", short)
    monkeypatch.setattr(bpe, "BLOCK", 100)
    text = "the cat sat on the mat,    and the dog ate\n\nthe café's bread " * 30
    tokenizer = read_bpe(str(byte_level))
    streamed = list(tokenizer.stream([segment(tmp_path / "text", text.encode())]))
    ids = np.concatenate([ids for ids, _ in streamed])
    if piece > 10:
        assert ids.tolist() == tokenizer.encode(text).tolist()
    assert tokenizer.decode(ids) == text
    sizes = np.concatenate([sizes for _, sizes in streamed])
    assert len(sizes) == len(ids) and sizes.sum() == len(text.encode())


@ONCE
@given(text=TEXT)
def test_bpe_bytes_add_up_to_the_text(byte_level, tmp_path, text):
    """Also where a character is several tokens, or text is dropped by the tokenizer."""
    tokenizer = read_bpe(str(byte_level))
    content = json.loads(tokenizer.content)
    content |= {"normalizer": {"type": "Replace", "pattern": {"Regex": "[ a-e]"}, "content": ""}, "added_tokens": []}
    for candidate in (tokenizer, BpeTokenizer(json.dumps(content))):
        blocks = list(candidate.stream([segment(tmp_path / "text", text.encode())]))
        ids = sum(len(ids) for ids, _ in blocks)
        total = sum(int(sizes.sum()) for _, sizes in blocks)
        assert total == (len(text.encode()) if ids else 0)


def test_bytes_of_each_id_of_a_byte_level_vocabulary(byte_level):
    tokenizer = read_bpe(str(byte_level))
    table = tokenizer.bytes_of_ids()
    text = "the café's bread 𝄞"
    assert table is not None and table[tokenizer.encode(text)].sum() == len(text.encode())
    assert [table[tokenizer._inner.token_to_id(token)] for token in ("<|end|>", "    ")] == [0, 4]


def test_ids_without_text():
    tokenizer = IdsTokenizer(10)
    assert tokenizer.encode("3 9").tolist() == [3, 9] and tokenizer.decode([3, 9]) == "3 9"
    for prompt in ("a b", "10", "-1"):
        with pytest.raises(UserError):
            tokenizer.encode(prompt)


STARTS = [
    (ByteTokenizer(), "\n"),
    (CharTokenizer("\nab"), "\n"),
    (CharTokenizer("ab"), "a"),
    (IdsTokenizer(7), "0"),
]


@pytest.mark.parametrize("tokenizer,start", STARTS)
def test_a_sample_starts_from_an_id_of_the_vocabulary(tokenizer, start):
    assert tokenizer.decode(tokenizer.start()) == start


def test_a_sample_starts_where_a_line_break_is_nothing(byte_level):
    content = json.loads(read_bpe(str(byte_level)).content)
    content["normalizer"] = {"type": "Replace", "pattern": {"Regex": r"\s"}, "content": ""}
    tokenizer = BpeTokenizer(json.dumps(content))
    assert len(tokenizer.encode("\n")) == 0 and len(tokenizer.start()) > 0
    assert all(0 <= i < tokenizer.vocab_size for i in tokenizer.start())


@pytest.mark.parametrize("make", [lambda text: ByteTokenizer(), lambda text: CharTokenizer("".join(sorted(set(text))))])
def test_bytes_of_ids_are_those_of_the_text(make):
    text = "the café 𝄞"
    tokenizer = make(text)
    table = tokenizer.bytes_of_ids()
    lengths = np.full(tokenizer.vocab_size, table) if isinstance(table, int) else table
    assert lengths[tokenizer.encode(text)].sum() == len(text.encode())
