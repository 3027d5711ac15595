"""python -m rwkv_lab.data: what it prints, and a user's mistakes in one line."""

import subprocess
import sys

import pytest

from rwkv_lab.cli.data import configs, main
from rwkv_lab.config.errors import UserError
from rwkv_lab.data import bench


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
    data, tokenizer = configs(["data=enwik8", "data.split=[10,5]", "tokenizer=bpe", "tokenizer.path=t.json"])
    assert (data.name, data.split, tokenizer.name, tokenizer.path) == ("enwik8", [10.0, 5.0], "bpe", "t.json")
    assert configs(["npy"])[1].name == "ids"


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["inform"], "inform is unknown.*info"),
        (["info"], "one corpus is to be named"),
        (["info", "builtin", "kjv"], "not 2"),
        (["info", "enwik9"], r"data=enwik9 does not exist \(did you mean 'enwik8'\?\)"),
        (["info", "builtin", "tokenizer=chars"], "tokenizer=chars does not exist"),
        (["info", "builtin", "data.pth=a"], "pth"),
        (["info", "builtin", "data.split=most"], "split"),
        (["info", "builtin", "seed=1"], "seed is unknown here"),
        (["bench", "lots"], "whole number of megabytes"),
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


def test_bench_prints_a_table():
    said = bench.table(1)
    assert all(f"| {name} |" in said for name in ("char", "byte", "random", "cube", "sequential"))
