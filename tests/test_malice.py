"""Checkpoints and configurations made to run code run none."""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rwkv_lab.cli import convert
from rwkv_lab.config import hydra, overrides
from rwkv_lab.config.errors import UserError, main_guard
from rwkv_lab.training import checkpoint
from rwkv_lab.util.io import write_json
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


def test_original_checkpoint_with_a_pickle_inside(mark: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "original.pth").write_bytes(pickle.dumps({"emb.weight": Evil(mark)}))
    arguments = [str(tmp_path / "original.pth"), str(tmp_path / "ours.safetensors"), "--from", "original"]
    assert main_guard(lambda: convert.main(arguments)) == 2
    assert "original.pth" in capsys.readouterr().err
    assert not mark.exists()


@pytest.mark.parametrize("override", ["+model._target_=os.system", "++data._target_=os.system", "+_target_=os.system"])
def test_target_in_the_configuration(here: Here, override: str) -> None:
    with pytest.raises(UserError, match="_target_"):
        here.run(override)


EVIL = "{_target_: os.mkdir, path: MARK}"
STUDIES = {
    "callback": f"# @package _global_\nhydra: {{callbacks: {{evil: {EVIL}}}}}\n",
    "package": "# @package hydra.callbacks.evil\n_target_: os.mkdir\npath: MARK\n",
    "subfolder": "# @package _global_\ndefaults: [/experiments/below/callback]\n",
    "moved": "# @package _global_\ndefaults: [/experiments/below/plain@hydra.callbacks.evil]\n",
    "launcher": f"# @package _global_\nhydra: {{launcher: {EVIL}}}\n",
    "override": "# @package _global_\ndefaults: [override /hydra/launcher: cores]\n",
    "logging": "# @package _global_\nhydra: {job_logging: {formatters: {evil: {(): os.mkdir, path: MARK}}}}\n",
    "sweeper": f"# @package _global_\nhydra: {{sweeper: {EVIL}}}\n",
    "swept": "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {+hydra.callbacks.evil: MARK}}}\n",
}


@pytest.mark.parametrize("form", STUDIES)
def test_study_that_names_code(tmp_path: Path, mark: Path, monkeypatch, repository: Path, form: str) -> None:
    shutil.copytree(repository / "conf", tmp_path / "conf")
    below = tmp_path / "experiments" / "below"
    below.mkdir(parents=True)
    for folder, name in ((below.parent, form), (below, "callback")):
        (folder / f"{name}.yaml").write_text(STUDIES[name].replace("MARK", str(mark)))
    (below / "plain.yaml").write_text(f"_target_: os.mkdir\npath: {mark}\n")
    monkeypatch.setattr(hydra, "REPOSITORY", tmp_path)
    monkeypatch.setattr(overrides, "REPOSITORY", tmp_path)
    hydra.prepare()
    with pytest.raises(UserError, match="hydra"):
        hydra.check_study(overrides.read([f"experiments={form}"], multirun=False))
    assert not mark.exists()


def test_studies_here_are_allowed(repository: Path) -> None:
    hydra.prepare()
    for study in overrides.options("experiments"):
        hydra.check_study(overrides.read([f"experiments={study}"], multirun=False))
