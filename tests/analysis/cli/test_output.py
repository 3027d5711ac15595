"""Results that cannot be written: one sentence that names the path; figures that fail: one warning, results stay."""

import errno
import json
import os
from pathlib import Path

import pytest

from analysis.cli import _output, main
from rwkv_lab.config.errors import UserError
from rwkv_lab.util import io


@pytest.fixture(scope="module")
def log(run_of, tmp_path_factory) -> Path:
    curve = run_of("vplus", "wsd", noise=0.003)
    rows = [f"{s},{curve.lr[s]},{x}" for s, x in zip(curve.step, curve.loss, strict=True)]
    file = tmp_path_factory.mktemp("logs") / "wsd.csv"
    file.write_text("step,lr,loss\n" + "\n".join(rows) + "\n")
    return file


@pytest.fixture(scope="module")
def fitted(log, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out")
    assert main(["fit", str(log), "--law", "vplus", "--out", str(out)]) == 0
    return out


def arguments(command: str, log: Path, fitted: Path) -> list[str]:
    return {
        "fit": ["fit", str(log), "--law", "vplus"],
        "predict": ["predict", str(fitted), "--schedule", "linear", "--steps", "500"],
        "optimal": ["optimal", str(fitted), "--steps", "500", "--kind", "linear"],
    }[command]


COMMANDS = ("fit", "predict", "optimal")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", ["file", "below a file", "/proc/nowhere", "/dev/full"])
def test_a_place_that_cannot_be_written(log, fitted, tmp_path, command, place):
    (tmp_path / "file").write_text("mine")
    out = {"file": tmp_path / "file", "below a file": tmp_path / "file" / "below"}.get(place, Path(place))
    with pytest.raises(UserError) as raised:
        main([*arguments(command, log, fitted), "--out", str(out)])
    assert str(out) in str(raised.value) and "\n" not in str(raised.value)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_disk_that_becomes_full(log, fitted, tmp_path, monkeypatch, command):
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(io, "sync", full)
    with pytest.raises(UserError, match="No space left on device") as raised:
        main([*arguments(command, log, fitted), "--out", str(tmp_path)])
    assert str(tmp_path) in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_figures_that_fail_are_a_warning(log, fitted, tmp_path, monkeypatch, capsys, command):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the font is damaged")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", broken)
    assert main([*arguments(command, log, fitted), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().err.count("warning:") == 1
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written and not [name for name in written if name.endswith((".png", ".svg", ".partial"))]


def test_a_fit_is_on_the_disk_before_anything_is_printed_or_searched(log, tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("the search failed")

    monkeypatch.setattr("analysis.cli._tables.print_fit", broken)
    with pytest.raises(RuntimeError):
        main(["fit", str(log), "--law", "vplus", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "fit.json").read_text())["members"]


def test_nothing_spins_without_a_terminal(capsys):
    with _output.busy("fitting"):
        pass
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
