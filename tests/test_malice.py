"""Checkpoints and configurations made to run code run none."""

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from rwkv_lab.cli import convert
from rwkv_lab.config import hydra
from rwkv_lab.config.errors import UserError, main_guard
from rwkv_lab.training import checkpoint
from rwkv_lab.util.paths import write_json
from tests.in_process import Here, make_here, numbers


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file whose existence shows that code has run."""
    return tmp_path / "ran"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    return make_here(tmp_path, monkeypatch)


def test_the_pickle_is_evil(mark: Path) -> None:
    pickle.loads(pickle.dumps(Evil(mark)))
    assert mark.exists()


def test_checkpoint_with_a_pickle_inside(here: Here, mark: Path, capsys) -> None:
    here.kill_at(9)
    newest = sorted((here.folder() / "checkpoints").glob("*.json"))[-1]
    content = pickle.dumps(Evil(mark))
    newest.with_suffix(".safetensors").write_bytes(content)
    record = json.loads(newest.read_text()) | {"sha256": hashlib.sha256(content).hexdigest()}
    del record["record_sha256"]
    write_json(newest, record | {"record_sha256": checkpoint._record_hash(record)})
    assert here.run() == 0
    assert "checkpoint step-000000008 is damaged" in capsys.readouterr().err
    assert not mark.exists()
    assert len(numbers(here.folder())) == 5


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_weights_with_a_pickle_inside(here: Here, mark: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(UserError, match=name):
        here.run(f"model.init_from={tmp_path / name}")
    assert not mark.exists()


def test_original_checkpoint_with_a_pickle_inside(mark: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "original.pth").write_bytes(pickle.dumps({"emb.weight": Evil(mark)}))
    arguments = ["convert", str(tmp_path / "original.pth"), str(tmp_path / "ours.safetensors"), "--from", "original"]
    monkeypatch.setattr("sys.argv", arguments)
    assert main_guard(convert.main) == 2
    assert "original.pth" in capsys.readouterr().err
    assert not mark.exists()


@pytest.mark.parametrize("override", ["+model._target_=os.system", "++data._target_=os.system", "+_target_=os.system"])
def test_target_in_the_configuration(here: Here, override: str) -> None:
    with pytest.raises(UserError, match=r"_target_ is unknown"):
        here.run(override)


@pytest.mark.parametrize(
    "settings",
    [
        "callbacks: {evil: {_target_: os.system, command: touch MARK}}",
        "job_logging: {root: {handlers: []}, formatters: {evil: {(): os.system, command: touch MARK}}}",
        "launcher: {_target_: os.system}",
        "sweeper: {_target_: os.system}",
    ],
)
def test_study_that_names_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: str) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "evil.yaml").write_text(f"# @package _global_\nhydra:\n  {settings}\n")
    monkeypatch.setattr(hydra, "REPOSITORY", tmp_path)
    with pytest.raises(UserError, match=r"evil\.yaml sets hydra\.[a-z_.]+: a study sets hydra\.mode and"):
        hydra.check_studies()


def test_studies_here_are_allowed() -> None:
    hydra.check_studies()
