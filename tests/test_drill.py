"""A small drill: power cuts and damaged files; and that the drill finds what was not flushed."""

import os
import random
from pathlib import Path

import pytest

from rwkv_lab.util import io
from tests.damage import DAMAGES, damage
from tests.power import Disk
from tests.trials import Answer, damaged_files, power_cuts


def test_power_cuts(tmp_path: Path) -> None:
    assert power_cuts(tmp_path / "trial", 3, seed=1) == []


def test_damaged_files(tmp_path: Path) -> None:
    assert damaged_files(tmp_path / "trial", 6, seed=2) == []


def cuts(disk: Disk, folder: Path) -> list[Path]:
    """What is left after many cuts at one moment."""
    folder.mkdir()
    for seed in range(30):
        disk.cut(folder / f"{seed}", random.Random(seed))
    return sorted(folder.iterdir())


def test_a_cut_keeps_what_was_flushed_and_loses_what_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    disk = Disk(root, monkeypatch)
    io.write_atomic(root / "flushed", b"content")
    (root / "written").write_bytes(b"content")
    os.replace(root / "written", root / "renamed")
    left = cuts(disk, tmp_path / "cuts")
    disk.close()
    assert {(path / "flushed").read_bytes() for path in left} == {b"content"}
    found = {file.read_bytes() if (file := path / "renamed").exists() else None for path in left}
    assert found == {None, b"", bytes(7), b"content"}


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_changes_a_file(tmp_path: Path, how: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"some content")
    assert damage(file, how, random.Random(1)) and file.read_bytes() != b"some content"
    file.write_bytes(b"")
    assert not damage(file, how, random.Random(1))


@pytest.mark.parametrize(
    ("answer", "silent"),
    [
        (Answer(0, 1, ""), False),
        (Answer(0, 2, "warning: the cache is damaged\n"), False),
        (Answer(2, None, "error: the file is damaged\n"), False),
        (Answer(0, 2, ""), True),
        (Answer(1, None, "Traceback (most recent call last):\nKeyError: 1\n"), True),
        (Answer(-11, None, ""), True),
    ],
)
def test_faults_are_tracebacks_and_silent_differences(answer: Answer, silent: bool) -> None:
    assert bool(answer.fault(expected=1)) == silent
