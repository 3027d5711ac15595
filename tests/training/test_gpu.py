"""Whole runs on every device: training, stopping and resuming, the same run twice, one process under ddp."""

import json

import pytest
import torch

from rwkv_lab.config.registry import names
from tests.in_process import STEPS, make_here, numbers
from tests.lab import TINY, Lab

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
PRECISIONS = ["fp32", "bf16", pytest.param("tf32", marks=pytest.mark.gpu)]


@pytest.fixture
def here(tmp_path, monkeypatch):
    yield make_here(tmp_path, monkeypatch)
    torch.use_deterministic_algorithms(False)


def closely(found: dict, expected: dict) -> None:
    for key in ("train_loss", "val_loss"):
        assert found["result"][key] == pytest.approx(expected["result"][key], rel=2e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("model", names("model"))
def test_every_model_trains(here, model, precision):
    overrides = (f"model={model}", f"trainer.precision={precision}", "model.head_qk_dim=8", "ops=auto")
    assert here.run("trainer.device=cuda", *overrides) == 0
    found = numbers(here.folder())
    assert here.loaded().manifest["hardware"]["device"] == "cuda"
    assert here.run("trainer.device=cpu", *overrides[:1], "trainer.precision=fp32", *overrides[2:]) == 0
    assert found["result"]["train_loss"] == pytest.approx(numbers(here.folder())["result"]["train_loss"], rel=2e-2)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_stopped_and_resumed(here, device, optimizer):
    settings = (f"trainer.device={device}", f"optimizer={optimizer}", "trainer.precision=fp32")
    assert here.run(*settings, study="whole") == 0
    here.kill_at(STEPS // 2 + 1, *settings)
    assert here.run(*settings) == 0
    assert here.loaded().manifest["status"] == "complete"
    closely(numbers(here.folder()), numbers(here.folder("whole")))


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_deterministic_runs_are_bit_equal(here, device):
    settings = (f"trainer.device={device}", "trainer.deterministic=true", "model.head_qk_dim=8")
    for study in ("one", "other"):
        assert here.run(*settings, study=study) == 0
    assert numbers(here.folder("one")) == numbers(here.folder("other"))


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_ddp_with_one_process(lab: Lab, device):
    study = f"one_process_on_{device}"
    done = lab.run(
        *TINY, "trainer=ddp", "trainer.processes=1", f"trainer.device={device}", "trainer.steps=5", f"study={study}"
    )
    assert "barrier" not in done.stderr
    manifest = json.loads((lab.only_run(study) / "run.json").read_text())
    assert (manifest["status"], manifest["world_size"], manifest["hardware"]["device"]) == ("complete", 1, device)
