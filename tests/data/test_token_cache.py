"""The cache of tokens: built once, whole or not at all, with memory that does not grow with the corpus."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from rwkv_lab.config.errors import UserError
from rwkv_lab.data import load, token_cache
from tests.data.configs import data_config, tokenizer_config

LOAD = """
from rwkv_lab.data import load, token_cache
from rwkv_lab.data.corpora.text import TextConfig
from rwkv_lab.data.tokenizers.char import CharConfig
def run():
    return load(TextConfig(path={path!r}, cache_dir={cache!r}), CharConfig())
"""


@pytest.fixture
def script(tmp_path, cache):
    """Starts Python on code that may call run(), which loads a text of 200 kB with the test's cache."""
    file = tmp_path / "text.txt"
    file.write_text("some words and a few more é\n" * 7000, encoding="utf-8")

    def start(code):
        prepared = LOAD.format(path=str(file), cache=str(cache)) + textwrap.dedent(code)
        return subprocess.Popen([sys.executable, "-c", prepared], stdout=subprocess.PIPE, text=True)

    return start


@pytest.fixture
def again(tmp_path, cache):
    data = data_config("text", path=str(tmp_path / "text.txt"), split=[0.9, 0.1], cache_dir=str(cache))
    return lambda tokenizer="char": load(data, tokenizer_config(tokenizer))


def test_two_processes_tokenise_once(script, tmp_path, cache):
    slow = """
        import time
        write = token_cache.Part.write
        def counted(self, *rest):
            print(self.name, flush=True); time.sleep(0.3)
            return write(self, *rest)
        token_cache.Part.write = counted
        run()
    """
    racing = [script(slow) for _ in range(2)]
    said = [process.communicate(timeout=60)[0].split() for process in racing]
    assert [process.returncode for process in racing] == [0, 0]
    assert sorted(said) == [[], ["train", "val"]]


def test_a_killed_process_leaves_nothing_in_the_way(script, again, cache):
    killed = script("""
        import os, signal
        write = token_cache.Part.write
        def dying(self, *rest):
            if self.name == "val":
                os.kill(os.getpid(), signal.SIGKILL)
            return write(self, *rest)
        token_cache.Part.write = dying
        run()
    """)
    assert killed.wait(60) == -signal.SIGKILL
    assert [folder.suffix for folder in (cache / "tokens").iterdir()] == [".partial"]
    corpus = again()
    assert corpus.tokenizer.decode(corpus.train.tokens[:10]) == "some words"
    assert [folder for folder in (cache / "tokens").iterdir()] == [corpus.folder]


def test_tokens_outlive_their_cache_being_rebuilt(load_text):
    corpus = load_text(b"some text " * 100)
    before = corpus.train.tokens[:].tolist()
    (corpus.folder / "val.tokens").unlink()
    rebuilt = load_text(b"some text " * 100)
    assert rebuilt.train.tokens.tolist() == before == corpus.train.tokens.tolist()
    assert len(rebuilt.val) == 100


@pytest.mark.parametrize("damage", ["truncated", "garbled meta", "older format"])
def test_damaged_entries_are_made_again(load_text, damage):
    corpus = load_text(b"some text " * 100)
    meta = corpus.folder / "meta.json"
    if damage == "truncated":
        tokens = (corpus.folder / "train.tokens").read_bytes()
        (corpus.folder / "train.tokens").unlink()
        (corpus.folder / "train.tokens").write_bytes(tokens[:-1])
    elif damage == "garbled meta":
        meta.write_text("{")
    else:
        meta.write_text(json.dumps(json.loads(meta.read_text()) | {"format": 0}))
    assert len(load_text(b"some text " * 100).train) == 900
    assert json.loads(meta.read_text())["format"] == token_cache.FORMAT


TEXT = "some text and é " * 100


@pytest.mark.parametrize("damage", ["one bit", "zeros", "empty", "missing"])
def test_a_damaged_file_of_an_entry_is_named_and_made_again(load_text, capsys, damage):
    corpus = load_text(TEXT.encode())
    whole = {file.name: file.read_bytes() for file in corpus.folder.iterdir()}
    assert {"tokenizer.json", "meta.json", "train.tokens", "train.lengths", "val.tokens", "val.lengths"} == set(whole)
    for name, content in whole.items():
        file = corpus.folder / name
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        file.unlink()
        if damage != "missing":
            file.write_bytes({"one bit": flipped, "zeros": bytes(len(content)), "empty": b""}[damage])
        again = load_text(TEXT.encode())
        assert {file.name: file.read_bytes() for file in again.folder.iterdir()} == whole
        if (name, damage) != ("meta.json", "missing"):
            assert str(file) in capsys.readouterr().err


def test_everything_is_on_the_disk_before_an_entry_counts(load_text, monkeypatch):
    """A file that is renamed into place, or lies in a folder that is, has been flushed before, and its folder after."""
    flushed, events = set(), []
    fsync, rename = os.fsync, os.rename

    def noted(number):
        flushed.add(os.readlink(f"/proc/self/fd/{number}"))
        return fsync(number)

    def renamed(self, target):
        inside = {str(file) for file in self.rglob("*")} | {str(self)}
        events.append((inside - flushed, str(target)))
        flushed.discard(str(target.parent))
        rename(self, target)
        return target

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr("pathlib.Path.rename", renamed)
    corpus = load_text(TEXT.encode())
    assert events == [(set(), str(corpus.folder))]
    assert str(corpus.folder.parent) in flushed


def test_text_of_a_package_is_written_again_where_it_is_damaged(cache):
    data = data_config("builtin", cache_dir=str(cache))
    before = load(data, tokenizer_config("byte"))
    (file,) = (cache / "texts").iterdir()
    content = file.read_bytes()
    file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert load(data, tokenizer_config("byte")).sha256 == before.sha256 and file.read_bytes() == content


def test_changed_text_gets_tokens_of_its_own(load_text):
    first, second = load_text(b"some text " * 100), load_text(b"same text " * 100)
    assert first.folder != second.folder
    assert load_text(b"some text " * 100).folder == first.folder


def test_text_that_changes_while_it_is_read(load_text, tmp_path, monkeypatch):
    write = token_cache.Part.write

    def meddling(self, *rest):
        (tmp_path / "text.txt").write_bytes(b"other text, longer than before " * 100)
        return write(self, *rest)

    monkeypatch.setattr(token_cache.Part, "write", meddling)
    with pytest.raises(UserError, match=r"data\.path=.*changed while it was read"):
        load_text(b"some text " * 100)


def test_full_disk_is_said_and_leaves_nothing(load_text, cache, monkeypatch):
    def full(self, *rest):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(token_cache.Part, "write", full)
        with pytest.raises(UserError, match=f"data.cache_dir={cache} cannot be written: No space left"):
            load_text(b"some text " * 100)
    assert list((cache / "tokens").iterdir()) == []
    assert len(load_text(b"some text " * 100).train) == 900


def test_cache_that_is_a_file(load_text, cache):
    cache.write_text("in the way")
    with pytest.raises(UserError, match=r"data\.cache_dir="):
        load_text(b"some text " * 100)


@pytest.mark.slow
def test_memory_stays_flat_on_a_memory_mapped_gigabyte(tmp_path):
    """Reading batches all over a file of 1 GB (with holes) leaves the process's own memory as it was."""
    file = tmp_path / "large.tokens"
    with open(file, "wb") as tokens:
        tokens.truncate(10**9)
    grown = run_python(f"""
        import numpy as np
        from rwkv_lab.data import sampling
        def own():
            return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("RssAnon")))
        tokens = np.memmap({str(file)!r}, np.uint8, mode="r")
        sizes = []
        for batch in range(120):
            starts = sampling.offsets("random", len(tokens), 256, 1, batch * 32, 32)
            x, y = sampling.gather(tokens, starts, 256)
            sizes.append(own())
        print((sizes[-1] - sizes[20]) / 1024)
    """)
    assert float(grown) < 4


@pytest.mark.slow
def test_memory_of_tokenising_does_not_grow_with_the_text(tmp_path, cache):
    """Peak of a process that tokenises 32 MB against one that tokenises 8 MB, in MB."""
    peaks = [
        float(
            run_python(f"""
                import resource
                from pathlib import Path
                from benchmarks.data import synthetic_text
                from rwkv_lab.data import load
                from rwkv_lab.data.corpora.text import TextConfig
                from rwkv_lab.data.tokenizers.char import CharConfig
                text = Path({str(tmp_path)!r}) / "text{megabytes}"
                synthetic_text(text, {megabytes})
                load(TextConfig(path=str(text), split=[1, 0], cache_dir={str(cache)!r}), CharConfig())
                print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
            """)
        )
        for megabytes in (8, 32)
    ]
    assert peaks[1] - peaks[0] < 12


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True
    ).stdout


def test_split_without_lengths():
    tokens = np.zeros(10, np.uint8)
    assert token_cache.Split(tokens, 1).bytes_between(2, 7) == 5
    assert token_cache.Split(tokens, 0).bytes_between(2, 7) == 0
