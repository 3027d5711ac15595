"""Runs of version 0.1.0 keep their identity, and are found, resumed, compared and fitted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rwkv_lab.config.run_hash import identity
from rwkv_lab.ops import resolve_backend
from rwkv_lab.runs import load
from rwkv_lab.runs.manifest import write_manifest
from rwkv_lab.training.run import run_here
from tests.composing import checked, compose, hydra_context
from tests.in_process import make_here

CASES = Path(__file__).parent / "cases"
NAME = "rwkv_v4-text-s1-4de60986"


def test_ids() -> None:
    cases = json.loads((Path(__file__).parent / "config" / "cases" / "run_ids.json").read_text())
    with hydra_context():
        now = [[overrides, identity(checked(*overrides), {})] for overrides, _ in cases]
    assert now == cases


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path) -> tuple[Callable[[], int], Path]:
    """Return a function that gives the earlier run's command again, and its directory, a copy in the test's runs/."""
    folder = make_here(tmp_path, monkeypatch).runs / "before" / NAME
    shutil.copytree(CASES / "run_of_0.1.0" / NAME, folder)
    monkeypatch.chdir(repository)
    overrides = load(folder).manifest["overrides"]
    with hydra_context():
        composed = compose(*overrides, f"runs_dir={folder.parent.parent}")
    return lambda: run_here(composed, overrides).exit_code, folder


def test_a_complete_run_is_found(earlier, capsys) -> None:
    run, folder = earlier
    before = (folder / "run.json").read_bytes()
    assert run() == 0
    assert (folder / "run.json").read_bytes() == before
    assert NAME in capsys.readouterr().out


def test_an_interrupted_run_goes_on(earlier) -> None:
    run, folder = earlier
    losses = load(folder).metrics()["train_loss"]
    loss = load(folder).manifest["result"]["val_loss"]
    for leftover in ("checkpoints/step-000000008.json", "checkpoints/step-000000008.safetensors", "model.safetensors"):
        (folder / leftover).unlink()
    manifest = json.loads((folder / "run.json").read_text())
    manifest["resolved"]["ops_backend"] = resolve_backend("auto", torch.device("cpu"))
    write_manifest(folder, {**manifest, "status": "running", "result": None, "ended": None})
    assert run() == 0
    resumed = load(folder)
    assert resumed.status == "complete"
    assert np.allclose(resumed.metrics()["train_loss"], losses, rtol=1e-4)
    assert resumed.manifest["result"]["val_loss"] == pytest.approx(loss, rel=1e-4)


def test_it_is_compared_and_fitted(earlier, capsys) -> None:
    from analysis.__main__ import main

    _, folder = earlier
    assert main(["compare", str(folder.parent), "--out", str(folder.parent.parent / "page")]) == 0
    assert NAME[:7] in capsys.readouterr().out
    assert main(["weights", str(folder), "--out", str(folder.parent.parent / "weights")]) == 0
