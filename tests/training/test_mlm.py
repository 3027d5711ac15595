"""Masked-language modelling: what is hidden, both directions in every model, resuming, filling in, refusals."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from rwkv_lab import models
from rwkv_lab.cli import evaluate, fill, generate, main
from rwkv_lab.config import registry
from rwkv_lab.config.errors import UserError
from rwkv_lab.inference.recurrent import RecurrentModel
from rwkv_lab.training.objectives.mlm import KEPT, MASKED, MLMConfig, corrupted
from tests.in_process import Here, make_here, numbers
from tests.models.contract import moved, tokens

ABLE = [name for name, member in registry.members("model").items() if member.reads_both_ways]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    return make_here(tmp_path, monkeypatch)


def test_what_is_hidden_is_a_function_of_seed_and_sequence_number():
    objective = MLMConfig()
    rows = np.arange(6 * 41).reshape(6, 41)
    whole = objective.batch(rows, 10**12, 3)
    for i in range(6):
        for part, array in zip(objective.batch(rows[i : i + 1], 10**12 + i, 3), whole, strict=True):
            np.testing.assert_array_equal(part[0], array[i])
    assert (objective.batch(rows, 10**12, 4)[1] != whole[1]).any()
    assert (objective.batch(rows, 10**12 + 6, 3)[1] != whole[1]).any()


def test_shares_of_hidden_tokens():
    objective = MLMConfig()
    weights, replacements = objective.hidden(400, 100, 0, 1)
    assert (weights.sum(1) == 15).all()
    np.testing.assert_allclose(weights.mean(0), 0.15, atol=0.09)  # 5 standard deviations of 400 draws
    assert (replacements[weights == 0] == KEPT).all()
    told = replacements[weights > 0]
    for share, found in ((0.8, told == MASKED), (0.1, told >= 0), (0.1, told == KEPT)):
        assert abs(found.mean() - share) < 0.026
    read = corrupted(torch.full((400, 100), 3), torch.from_numpy(replacements), 8).numpy()
    assert (read[weights == 0] == 3).all() and (read[replacements == MASKED] == 7).all()
    assert set(read[replacements >= 0].tolist()) == set(range(7))


def test_a_short_sequence_has_one_hidden_token():
    assert (MLMConfig().hidden(5, 2, 0, 1)[0].sum(1) == 1).all()


@pytest.mark.parametrize("name", ABLE)
@pytest.mark.parametrize("shift", ["none", "half"])
def test_every_position_sees_all_others(name, shift):
    model = moved(name, bidirectional=True, head_qk_dim=0, token_shift=shift, n_layer=1, tiny_attention=4)
    embedded = model.emb(tokens(1, 8)).detach().requires_grad_()
    model.emb = torch.nn.Identity()
    logits = model(embedded)
    for t in range(8):
        (reach,) = torch.autograd.grad(logits[0, t].sum(), embedded, retain_graph=True)
        assert (reach[0].abs().sum(-1) > 0).all(), t


@pytest.mark.parametrize("name", ABLE)
def test_without_a_sense_of_time_a_reversed_text_gives_reversed_logits(name):
    fields = {"token_shift": "none", "time_out": False, "head_qk_dim": 0, "tiny_attention": 4}
    model = moved(name, bidirectional=True, **fields)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(("time_alpha", "time_beta", "time_gamma")):
                parameter.fill_(1.0)
    idx = tokens(2, 8)
    torch.testing.assert_close(model(idx.flip(1)), model(idx).flip(1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ABLE)
def test_no_parameter_is_added(name):
    sizes = {"vocab_size": 7, "n_layer": 1, "n_embd": 8, "ctx_len": 6, "head_qk_dim": 0}
    one, both = models.build(name, **sizes), models.build(name, **sizes, bidirectional=True)
    assert {k: p.shape for k, p in one.named_parameters()} == {k: p.shape for k, p in both.named_parameters()}


@pytest.mark.parametrize("name", registry.names("model"))
def test_head_qk_and_models_of_one_direction_are_refused(name):
    with pytest.raises(UserError, match=r"head_qk_dim=0|choose one of"):
        models.build(name, vocab_size=7, n_layer=1, n_embd=8, ctx_len=6, head_qk_dim=4, bidirectional=True)


@pytest.mark.parametrize("name", ABLE)
def test_every_model_trains(here, name):
    settings = ("objective=mlm", f"model={name}", "model.head_qk_dim=0", "trainer.steps=3", "trainer.final_tokens=64")
    assert here.run(*settings) == 0
    result = here.loaded().manifest["result"]
    assert result["val_bpb"] is None and 0 <= result["val_accuracy"] <= 1 and math.isfinite(result["val_loss"])


@pytest.mark.parametrize("name", ["rwkv_v4", "mha_rotary"])
def test_resumed_equals_uninterrupted(here, name, monkeypatch, capsys):
    settings = ("objective=mlm", f"model={name}", "trainer.accumulate=2")
    assert here.run(*settings, study="whole") == 0
    here.kill_at(7, *settings)
    assert here.run(*settings) == 0
    folders = here.folder(), here.folder("whole")
    for folder in folders:
        assert not (folder / "sample.txt").exists()
        (folder / "sample.txt").touch()
    resumed, whole = map(numbers, folders)
    assert resumed == whole
    assert "accuracy" in whole["rows"] and np.isfinite(here.loaded().metrics()["val_accuracy"][-1])
    shown = capsys.readouterr().out
    assert "rwkv-lab fill" in shown and "val_bpb is not measured" in shown


def test_accumulation_counts_every_position_alike():
    """The mean over micro-batches is that of the batch: every sequence has equally many hidden tokens."""
    model, objective = moved("mha_rotary", bidirectional=True, time_out=False), MLMConfig()
    rows = tokens(4, 9).numpy() % 10
    whole = objective.loss(model, *map(torch.from_numpy, objective.batch(rows, 8, 1)))
    parts = [objective.loss(model, *map(torch.from_numpy, objective.batch(rows[i:][:2], 8 + i, 1))) for i in (0, 2)]
    torch.testing.assert_close(sum(parts) / 2, whole)


def test_a_run_is_evaluated_filled_in_and_not_continued(here, capsys):
    settings = ("objective=mlm", "model=mha_rotary", "trainer.steps=60", "trainer.batch_size=8")
    assert here.run(*settings, "schedule.lr_init=0.01", "trainer.eval_every=0") == 0
    run = here.folder()
    capsys.readouterr()
    assert evaluate.main([str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    result = here.loaded().manifest["result"]
    assert found["loss"] == result["val_loss"] and found["accuracy"] == result["val_accuracy"] > 0.2
    assert found["bpb"] is None
    assert main.main(["fill", str(run), "12 pl[MASK]s 12 [MASK]s", "--top", "2"]) == 0
    first, *places = capsys.readouterr().out.splitlines()
    assert len(first) == 13 and first.startswith("12 pl") and len(places) == 2
    for words, pattern in (
        (lambda: fill.main([str(run), "no mask"]), r"has no \[MASK\]"),
        (lambda: fill.main([str(run), "[MASK]" * 17]), "model.ctx_len=16"),
        (lambda: generate.main([str(run), "12"]), "both directions"),
        (lambda: RecurrentModel(models.load(run)), "both directions"),
        (lambda: here.run("objective=lm", "model.bidirectional=true"), r"model\.bidirectional"),
        (lambda: here.run("objective=mlm", "model.head_qk_dim=4"), r"model\.head_qk_dim=0"),
        (lambda: here.run("objective=mlm", "objective.masked=0.95"), r"objective\.random"),
    ):
        with pytest.raises(UserError, match=pattern):
            words()


def test_a_run_of_next_tokens_cannot_fill_in(here):
    assert here.run("trainer.steps=1") == 0
    with pytest.raises(UserError, match="objective=mlm"):
        fill.main([str(here.folder()), "12 [MASK]lus"])
