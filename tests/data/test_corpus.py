"""From the config to tokens: where text is cut, what is counted, every corpus, and what a user may get wrong."""

import dataclasses
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkv_lab.config import registry
from rwkv_lab.config.errors import UserError
from rwkv_lab.data import load, require_length, stored_configs
from rwkv_lab.data.corpora.builtin import builtin_text
from rwkv_lab.data.tokenizers.char import CharTokenizer
from tests.data.configs import data_config, tokenizer_config

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
    data = data_config("text", path=str(tmp_path / "text.txt"), split=[1, 0], cache_dir=str(cache))
    corpus = load(data, tokenizer_config("char"), CharTokenizer("bc"))
    assert corpus.tokenizer == CharTokenizer("bc") and corpus.train.unknown == 2
    assert load(data, tokenizer_config("char")).tokenizer == CharTokenizer("abc")


def test_folder_and_glob_are_read_in_sorted_order(tmp_path, cache):
    for name, text in (("b.txt", "bb"), ("a.txt", "aé"), ("sub/c.txt", "cc"), ("no.md", "x")):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_text(text, encoding="utf-8")
    for path, text in ((tmp_path / "d", "aébbcc"), (tmp_path / "d" / "[ab].txt", "aébb")):
        data = data_config("text", path=str(path), split=[1, 0], cache_dir=str(cache))
        corpus = load(data, tokenizer_config("char"))
        assert corpus.tokenizer.decode(corpus.train.tokens) == text


def test_hashes_follow_content_not_names(tmp_path, cache):
    files = [tmp_path / name for name in ("a.txt", "b.txt")]
    for file in files:
        file.write_text("same")
    first, second = (
        data_config("text", path=str(file), split=[1, 0], cache_dir=str(cache)).file_hashes("data") for file in files
    )
    assert first == second and list(first) == ["data.path"]
    assert list(data_config("builtin").file_hashes("data")) == ["data.name"]


def test_builtin_is_held_out_by_a_tenth(cache):
    corpus = load(data_config("builtin", split=[0.9, 0.1], cache_dir=str(cache)), tokenizer_config("char"))
    total = corpus.train.bytes_between(0, len(corpus.train)) + corpus.val.bytes_between(0, len(corpus.val))
    assert total == len(builtin_text()) > 300_000
    assert 0.099 < corpus.val.bytes_between(0, len(corpus.val)) / total < 0.101


def test_kjv_is_the_same_text_on_every_machine():
    sha256 = "c98241f3cd2809b6e7d0e111095bf0391c8ed1829dfa51749cd5d35468a3cc4f"
    assert data_config("kjv").file_hashes("data") == {"data.name": sha256}


def test_kjv_needs_no_download(cache):
    corpus = load(data_config("kjv", split=[0.9, 0.1], cache_dir=str(cache)), tokenizer_config("char"))
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
    data = data_config("enwik8", path=str(file), split=[0.9, 0.05, 0.05], cache_dir=str(cache))
    corpus = load(data, tokenizer_config("byte"))
    assert [len(corpus.train), len(corpus.val), len(corpus.test)] == [900, 50, 50]
    assert "not comparable" in corpus.notes[0] and "1000 bytes" in corpus.notes[0]


def test_own_parts_for_a_known_corpus(tmp_path, cache):
    for name in ("train", "val"):
        (tmp_path / name).write_text(f"text of {name}")
    data = data_config(
        "simplebooks_2", train_path=str(tmp_path / "train"), val_path=str(tmp_path / "val"), cache_dir=str(cache)
    )
    corpus = load(data, tokenizer_config("byte"))
    assert bytes(corpus.val.tokens) == b"text of val" and corpus.test is None
    assert "not comparable" in corpus.notes[0]
    assert list(data.file_hashes("data")) == ["data.train_path", "data.val_path"]


def ids(tmp_path, values):
    np.save(tmp_path / "ids.npy", np.array(values))
    return str(tmp_path / "ids.npy")


def test_token_ids_without_text(tmp_path, cache):
    data = data_config(
        "npy", path=ids(tmp_path, [3, 1, 4, 1, 5, 9, 2, 6, 5, 300]), split=[0.8, 0.2], cache_dir=str(cache)
    )
    corpus = load(data, tokenizer_config("ids"))
    assert corpus.tokenizer.vocab_size == 301 and corpus.train.tokens.tolist() == [3, 1, 4, 1, 5, 9, 2, 6]
    assert corpus.val.bytes_between(0, 2) == 0 and "val_bpb is not measured" in corpus.notes[-1]
    assert load(data, tokenizer_config("ids", vocab_size=1000)).tokenizer.vocab_size == 1000


def test_bytes_as_token_ids(tmp_path, cache):
    data = data_config("npy", path=ids(tmp_path, list(b"some text")), split=[4, 5], cache_dir=str(cache))
    corpus = load(data, tokenizer_config("byte"))
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
    data = data_config("text", **fields, split=[1, 0], cache_dir=str(cache))
    with pytest.raises(UserError, match=f"data.{key}={file}.*{said}") as mistake:
        load(data, tokenizer_config(tokenizer))
    assert "\n" not in str(mistake.value)


def test_binary_files_are_fine_as_bytes(load_text):
    content = bytes(range(256)) * 4
    assert bytes(load_text(content, "byte", (1, 0)).train.tokens) == content


@pytest.mark.parametrize(
    "values,said",
    [([-1, 2], "token id -1 at position 0"), ([0.5, 1], "float64"), ([[1, 2]], "one row"), ([], "one row")],
)
def test_bad_token_ids(tmp_path, cache, values, said):
    data = data_config("npy", path=ids(tmp_path, values), split=[1, 0], cache_dir=str(cache))
    with pytest.raises(UserError, match=f"data.path=.*{said}"):
        load(data, tokenizer_config("ids"))


def test_pickled_arrays_are_not_opened(tmp_path, cache):
    np.save(tmp_path / "ids.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    data = data_config("npy", path=str(tmp_path / "ids.npy"), split=[1, 0], cache_dir=str(cache))
    with pytest.raises(UserError, match=r"not a readable \.npy file"):
        load(data, tokenizer_config("ids"))


def test_token_ids_outside_the_tokenizer(tmp_path, cache):
    data = data_config("npy", path=ids(tmp_path, [1, 256]), split=[1, 0], cache_dir=str(cache))
    with pytest.raises(UserError, match="token id 256 at position 1: the tokenizer has 0 to 255"):
        load(data, tokenizer_config("byte"))


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


IMPOSSIBLE = [
    ({"order": "shuffled"}, {}, "data.order", ["random", "cube", "sequential"]),
    ({"name": "text"}, {}, "data.path", ["data.train_path"]),
    ({"name": "text", "path": "a", "val_path": "b"}, {}, "data.path", ["data.val_path"]),
    ({"name": "text", "train_path": "a"}, {}, "data.val_path", ["data.train_path"]),
    ({"name": "text", "val_path": "a"}, {}, "data.train_path", ["data.val_path"]),
    ({"split": None}, {}, "data.split", ["[0.9,0.1]"]),
    ({"split": [0.9]}, {}, "data.split", ["[train,val]"]),
    ({"split": [0.9, 0.2]}, {}, "data.split", ["1.1", "[0.9,0.1]"]),
    ({"split": [0.0, 0.5]}, {}, "data.split", ["[0.9,0.1]"]),
    ({"split": [-1.0, 0.5]}, {}, "data.split", ["[0.9,0.1]"]),
    ({"split": [float("nan"), 0.5]}, {}, "data.split", []),
    ({"split": [0.5, 100]}, {}, "data.split", ["fractions"]),
    ({}, {"name": "bpe"}, "tokenizer.path", ["tokenizer.json"]),
    ({}, {"name": "run"}, "tokenizer.path", ["RUN"]),
    ({}, {"name": "ids"}, "tokenizer=ids", ["data=kjv", "byte", "char"]),
    ({"name": "npy", "path": "a"}, {}, "tokenizer=char", ["data=npy", "byte", "ids"]),
    ({"name": "npy", "path": "a"}, {"name": "ids", "vocab_size": 0}, "tokenizer.vocab_size", ["at least 1"]),
]


@pytest.mark.parametrize("data,tokenizer,key,allowed", IMPOSSIBLE)
def test_impossible_configs(cache, data, tokenizer, key, allowed):
    with pytest.raises(UserError) as mistake:
        load(data_config(**({"name": "kjv", "cache_dir": str(cache)} | data)), tokenizer_config(**tokenizer))
    assert str(mistake.value).startswith(key) and all(part in str(mistake.value) for part in allowed)


@pytest.mark.parametrize("group", ["data", "tokenizer"])
def test_every_name_has_its_file_in_conf(repository, group):
    assert sorted(file.stem for file in (repository / "conf" / group).glob("*.yaml")) == registry.names(group)


@pytest.mark.parametrize("name", registry.names("data"))
def test_only_the_cache_folder_is_no_part_of_a_runs_identity(name):
    fields = dataclasses.fields(registry.get("data", name))
    assert [field.name for field in fields if not field.metadata.get("identity", True)] == ["cache_dir"]


def test_configs_of_an_earlier_version_are_read():
    unset = {"path": None, "train_path": None, "vocab_size": None}
    data, tokenizer = stored_configs(
        {"data": {"name": "kjv", "split": [0.8, 0.2], **unset}, "tokenizer": {"name": "char", **unset}}
    )
    assert (data, tokenizer) == (data_config("kjv", split=[0.8, 0.2]), tokenizer_config("char"))
    with pytest.raises(UserError, match=r"data\.path"):
        stored_configs({"data": {"name": "kjv", "path": "a"}, "tokenizer": {"name": "char"}})


def stray(tmp_path, cache, values, dtype, **fields):
    np.save(tmp_path / "ids.npy", np.array(values, dtype))
    data = data_config("npy", path=str(tmp_path / "ids.npy"), split=[0.5, 0.5], cache_dir=str(cache))
    return load(data, tokenizer_config("ids", **fields))


@pytest.mark.parametrize("dtype,value", [("uint32", 2**32 - 1), ("uint16", 65535), ("int64", 2**62), ("int64", 10**6)])
def test_a_stray_id_is_named_with_its_place(tmp_path, cache, dtype, value):
    with pytest.raises(UserError) as mistake:
        stray(tmp_path, cache, [7, 1, 2, value, 9, 3], dtype)
    for part in (f"token id {value} ", "position 3", "no other above 9", "tokenizer.vocab_size", "ids.npy"):
        assert part in str(mistake.value), part


def test_a_separator_is_kept_where_it_is_meant(tmp_path, cache):
    corpus = stray(tmp_path, cache, [7, 1, 2, 65535, 9, 3], "uint16", vocab_size=65536)
    assert corpus.tokenizer.vocab_size == 65536 and corpus.val.tokens.tolist() == [65535, 9, 3]


def test_ids_far_above_the_rest_are_noted(tmp_path, cache):
    notes = stray(tmp_path, cache, [7, 1, 2, 40000, 9, 3], "uint16").notes
    assert all(part in notes[0] for part in ("token id 40000 at position 3", "above 9", "tokenizer.vocab_size"))
    every = stray(tmp_path, cache, list(range(3, 300)), "uint16").notes
    assert every == ["val_bpb is not measured: the token ids came without text"]


def test_home_folder(tmp_path, cache, monkeypatch):
    (tmp_path / "a.txt").write_text("some text " * 10)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load(data_config("text", path="~/a.txt", cache_dir="~/c"), tokenizer_config("byte")).train) == 90
    assert (tmp_path / "c" / "tokens").is_dir()


def test_a_home_folder_that_is_not_known(monkeypatch):
    def unknown(path):
        if str(path).startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return path

    monkeypatch.setattr("pathlib.Path.expanduser", unknown)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: unknown("~/.cache"))
    cases = [
        ({"path": "~/a.txt", "cache_dir": "c"}, "data.path"),
        ({"path": "a", "cache_dir": "~/c"}, "data.cache_dir"),
        ({"path": "a"}, "data.cache_dir"),
    ]
    for fields, key in cases:
        with pytest.raises(UserError, match=key):
            load(data_config("text", **fields), tokenizer_config("byte"))
