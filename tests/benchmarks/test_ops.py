"""The benchmark: its contenders compute the same, its turns alternate, its table says what was timed."""

import pytest
import torch

from benchmarks import baselines, ops, timing
from rwkv_lab.config.errors import main_guard
from rwkv_lab.ops import wkv
from rwkv_lab.ops.memory import keep_freed_memory


@pytest.mark.parametrize("way", [baselines.by_convolution, baselines.by_fft, baselines.by_loop])
def test_contenders_compute_the_same(way):
    generator = torch.Generator().manual_seed(0)
    shapes = [(7,), (7,), (2, 33, 7), (2, 33, 7)]
    w, *rest = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    inputs = (-w.exp(), *rest)
    expected, _ = wkv(*inputs, None, baselines.EPS, baselines.K_MAX)
    torch.testing.assert_close(way(*inputs), expected, rtol=1e-9, atol=1e-9)


def test_turns_alternate_and_the_median_counts():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    clocked = iter([5.0, 1.0, 3.0, 9.0, 4.0, 2.0])

    def clock(run):
        run()
        return next(clocked)

    assert timing.interleave(runs, 3, clock) == {"a": 4.0, "b": 2.0}
    assert order == ["a", "b"] + ["a", "b"] * 3


def test_table_compares_with_the_first_of_a_shape():
    rows = [
        timing.Row("wkv", "2x3x4", "float32", "native", 1.0, 1.0, 0.5),
        timing.Row("wkv", "2x3x4", "float32", "conv1d", 100.0, 160.0, None),
        timing.Row("wkv", "9x9x9", "float32", "native", 3.0, 4.0, None),
    ]
    lines = timing.table(rows).splitlines()
    assert [line.split("|")[-2].strip() for line in lines[2:]] == ["1", "130.0x", "1"]
    assert "50%" in lines[2]


def test_small_run_of_both_kinds():
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.rand(*s, generator=generator) for s in [(2, 8), (2, 1, 8), (2, 8, 1), (1, 8, 2, 3)]]
    rows = ops.time_contenders("toeplitz", {"whole": baselines.materialised_mix}, inputs, 1, 1e9, timing.wall_clock)
    assert [(row.shape, row.dtype, row.contender) for row in rows] == [("1x8x2x3", "float32", "whole")]
    assert rows[0].forward > 0


def test_command_line_mistakes(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench", "--turns", "0"])
    assert main_guard(ops.main) == 2
    assert "--turns 0" in capsys.readouterr().err


def test_memory_setting_says_whether_it_took():
    import platform

    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
