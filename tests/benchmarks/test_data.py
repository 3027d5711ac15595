"""The text that the data benchmark reads."""

import pytest

from benchmarks import data
from rwkv_lab.config.errors import main_guard


def test_synthetic_text_is_text_of_the_size_asked_for(tmp_path):
    data.synthetic_text(tmp_path / "a", 2)
    assert len((tmp_path / "a").read_bytes()) == 2_000_000
    assert "é" in (tmp_path / "a").read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", [["0"], ["x"], ["1", "2"], ["²"]])
def test_mistakes(arguments, capsys):
    assert main_guard(lambda: data.main(arguments)) == 2
    assert "MEGABYTES" in capsys.readouterr().err


def test_bench_prints_a_table():
    said = data.table(1)
    assert all(f"| {name} |" in said for name in ("char", "byte", "random", "cube", "sequential"))
