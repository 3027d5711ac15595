"""What a run writes for its tracker at every evaluation: gradient norms and half-lives by layer, samples."""

import math

import pytest
import torch

from rwkv_lab import models
from rwkv_lab.runs.metrics import OBSERVATIONS, read_observations
from rwkv_lab.tracking.none import NoneConfig
from rwkv_lab.training.observations import half_lives
from tests.in_process import make_here


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setattr(NoneConfig, "watches_weights", True, raising=False)
    monkeypatch.setattr(NoneConfig, "sample_tokens", 5, raising=False)
    return make_here(tmp_path, monkeypatch)


def test_a_line_at_every_evaluation(here):
    assert here.run() == 0
    lines = read_observations(here.folder() / OBSERVATIONS)
    columns = here.loaded().metrics()
    measured = columns["val_bpb"] == columns["val_bpb"]
    assert [line["step"] for line in lines] == columns["step"][measured].tolist()
    assert [line["tokens"] for line in lines] == columns["tokens"][measured].tolist()
    for line, norm, bpb in zip(lines, columns["grad_norm"][measured], columns["val_bpb"][measured], strict=True):
        assert math.sqrt(sum(value**2 for value in line["grad_norm"].values())) == pytest.approx(norm, rel=1e-5)
        assert line["grad_norm"].keys() == {"emb", "blocks.0", "ln_out", "head"}
        assert sum(line["half_life"]["blocks.0"]["counts"]) == 16
        assert line["sample"]["val_bpb"] == pytest.approx(bpb, rel=1e-8)
        assert line["sample"]["prompt"] == "\n" and len(line["sample"]["text"]) == 5


def test_nothing_of_it_changes_the_run_and_a_resumed_run_writes_the_same(here, monkeypatch):
    here.kill_at(8)
    assert here.run() == 0
    resumed = read_observations(here.folder() / OBSERVATIONS)
    weights = (here.folder() / "model.safetensors").read_bytes()
    assert here.run("rerun=true") == 0
    assert read_observations(here.folder() / OBSERVATIONS) == resumed
    monkeypatch.setattr(NoneConfig, "watches_weights", False)
    monkeypatch.setattr(NoneConfig, "sample_tokens", 0)
    assert here.run("rerun=true") == 0
    assert (here.folder() / "model.safetensors").read_bytes() == weights
    assert not (here.folder() / OBSERVATIONS).exists()


def test_half_lives():
    model = models.build("rwkv_v4", vocab_size=5, n_layer=2, n_embd=8, ctx_len=4)
    with torch.no_grad():
        for block, half_life in zip(model.blocks, (1.5, 100.0), strict=True):
            block.att.time_decay.fill_(math.log(math.log(2) / half_life))
        model.blocks[1].att.time_decay[0] = -50.0  # never
    found = half_lives(model)
    for part, half_life, count in (("blocks.0", 1.5, 8), ("blocks.1", 100.0, 7), ("blocks.1", 2.0**19.5, 1)):
        edges, counts = found[part]["edges"], found[part]["counts"]
        place = next(i for i, edge in enumerate(edges) if 2**edge > half_life) - 1
        assert counts[place] == count
    assert half_lives(models.build("mha_pro", vocab_size=5, n_layer=1, n_embd=8, ctx_len=4, n_head=2)) == {}
