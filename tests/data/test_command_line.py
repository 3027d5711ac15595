"""python -m rwkv_lab.data: what it prints, and a user's mistakes in one line."""

import shlex
import subprocess
import sys

import pytest

from rwkv_lab.cli.data import configs, main
from rwkv_lab.config.errors import UserError


def test_info_shows_the_corpus(tmp_path, cache, capsys):
    (tmp_path / "a.txt").write_text("abcab" * 200 + "€" * 10, encoding="utf-8")
    assert main(["info", "text", f"data.path={tmp_path / 'a.txt'}", f"data.cache_dir={cache}"]) == 0
    said = capsys.readouterr().out
    for part in ("927 tokens", "4: 'abc'", "unknown 10 (12.0482%)", "'abcab", "train.tokens", str(cache), "83 tokens"):
        assert part in said, part


def test_prepare_fills_the_cache(tmp_path, cache, capsys):
    (tmp_path / "a.txt").write_text("abcab" * 200)
    assert main(["prepare", "text", f"data.path={tmp_path / 'a.txt'}", f"data.cache_dir={cache}"]) == 0
    assert "text is ready" in capsys.readouterr().out
    assert len(list((cache / "tokens").iterdir())) == 1


def test_keys_are_those_of_run():
    data, tokenizer = configs(["data=enwik8", "data.split=[10,5]", "tokenizer=bpe", "tokenizer.path=t.json", "seed=3"])
    assert (data.name, data.split, tokenizer.name, tokenizer.path) == ("enwik8", [10.0, 5.0], "bpe", "t.json")
    assert configs(["npy", "data.path=a.npy"])[1].name == "ids"
    assert configs([])[0].name == "kjv"


@pytest.mark.parametrize("name", ["a #1: b.txt", "a b, ü=(1).txt", 'it\'s "x".txt'])
def test_the_quoting_that_a_mistake_shows_works(tmp_path, cache, capsys, name):
    (tmp_path / name).write_text("some text " * 100)
    more = ["tokenizer=byte", f"data.cache_dir={cache}"]
    with pytest.raises(UserError) as mistake:
        main(["info", "text", f"data.path={tmp_path / name}", *more])
    shown = shlex.split(str(mistake.value).rpartition("as in ")[2])
    assert main(["info", "text", *shown, *more]) == 0
    assert name in capsys.readouterr().out


def test_home_folder(tmp_path, cache, monkeypatch, capsys):
    (tmp_path / "ä b.txt").write_text("some text " * 100)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["info", "text", "data.path=~/ä b.txt", "tokenizer=byte", f"data.cache_dir={cache}"]) == 0
    assert "900 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    "file,command",
    [
        ("/a/b.txt", "data=text data.path=/a/b.txt"),
        ("b.npy", "data=npy tokenizer=ids data.path=b.npy"),
        ("/a b/ü.txt", """data=text 'data.path="/a b/ü.txt"'"""),
    ],
)
@pytest.mark.parametrize("word", ["data={}", "{}"])
def test_a_file_in_place_of_a_corpus(file, command, word):
    with pytest.raises(UserError) as mistake:
        main(["info", word.format(file)])
    assert command in str(mistake.value)


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["inform"], "inform is unknown.*info"),
        (["info", "builtin", "kjv"], "not 2"),
        (["info", "enwik9"], r"data=enwik9 does not exist \(did you mean 'enwik8'\?\)"),
        (["info", "builtin", "tokenizer=chars"], "tokenizer=chars does not exist"),
        (["info", "builtin", "data.pth=a"], "pth"),
        (["info", "builtin", "data.split=most"], "split"),
        (["info", "builtin", "data.path=a"], "data.path is unknown.*data=text"),
        (["info", "data.path=a,b"], r"data\.path=a,b is several values"),
    ],
)
def test_mistakes(arguments, said):
    with pytest.raises(UserError, match=said):
        main(arguments)


def test_a_mistake_is_one_line_and_exit_code_2():
    done = subprocess.run(
        [sys.executable, "-m", "rwkv_lab.data", "info", "text", "data.path=/nowhere/a.txt"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: data.path=/nowhere/a.txt does not exist: give an existing file, folder or glob\n"


def test_torch_is_not_imported():
    code = "import sys, rwkv_lab.data, rwkv_lab.cli.data, rwkv_lab.cli.evaluate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_bpe_tokenizer_is_trained_and_used(tmp_path, cache, capsys):
    pytest.importorskip("tokenizers")
    file, out = tmp_path / "a.txt", tmp_path / "tokenizer.json"
    file.write_text("the cat sat on the mat é\n" * 200)
    assert main(["train-bpe", str(out), "300", str(file)]) == 0
    more = [f"data.path={file}", f"tokenizer.path={out}", f"data.cache_dir={cache}"]
    assert main(["info", "text", "tokenizer=bpe", *more]) == 0
    assert "'the cat sat on the mat é" in capsys.readouterr().out
    for wrong in (["train-bpe"], ["train-bpe", str(out), "many", str(file)], ["train-bpe", str(out), "9", str(file)]):
        with pytest.raises(UserError, match="8192"):
            main(wrong)
