"""Held-out loss by position: what each token sees, with the state carried and in windows."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from analysis.compare.figures import octaves, position_figure
from analysis.compare.records import collect
from analysis.compare.summary import compare
from rwkv_lab.cli import evaluate
from rwkv_lab.config.errors import UserError
from rwkv_lab.config.registry import get, names
from rwkv_lab.data.token_cache import Split
from rwkv_lab.inference.recurrent import RecurrentModel
from rwkv_lab.runs.metrics import read_metrics
from rwkv_lab.training.by_position import FILE, ByPosition, evaluate_by_position, parse_length
from tests.in_process import make_here
from tests.models.contract import moved

TEXT = np.random.default_rng(3).integers(0, 11, 61).astype(np.uint8)


def loss_after(model, tokens, target):
    """Loss of ``target`` after all of ``tokens``, read at once."""
    logits = model(torch.from_numpy(tokens.astype(np.int64))[None])[0, -1:]
    return cross_entropy(logits, torch.tensor([int(target)])).item()


@pytest.mark.parametrize("name", names("model"))
def test_what_each_token_sees(name):
    """Carried: all before it; window: what RecurrentModel keeps of a full window of 8."""
    model = moved(name, time_out=False, head_qk_dim=0)
    found = evaluate_by_position(model, Split(TEXT, 1), 20, 60)
    assert found.pieces == 3
    readable = 20 if model.max_len is None else 8
    with torch.no_grad():
        for t in (0, 1, 7, 8, 19):
            pieces = [TEXT[start : start + 21] for start in (0, 20, 40)]
            kept = max(0, (t - 8) // 4 * 4 + 4) if t >= 8 else 0
            window = np.mean([loss_after(model, piece[kept : t + 1], piece[t + 1]) for piece in pieces])
            assert found.window[t] == pytest.approx(window, abs=1e-5), t
            if t < readable:
                carried = np.mean([loss_after(model, piece[: t + 1], piece[t + 1]) for piece in pieces])
                assert found.carried[t] == pytest.approx(carried, abs=1e-5), t
    assert np.isnan(found.carried[readable:]).all()
    if not get("model", name).recurrent:
        row = torch.from_numpy(TEXT[None, :21].astype(np.int64))
        logits, _ = RecurrentModel(model).prefill(row[:, :20])
        own = evaluate_by_position(model, Split(TEXT[:21], 1), 20, 20).window
        np.testing.assert_allclose(own, cross_entropy(logits[0], row[0, 1:], reduction="none").numpy(), atol=1e-5)


def test_spans_double_and_cover_all():
    values = np.arange(1.0, 12)
    spans = ByPosition(values * np.nan, values, 1).spans()
    assert [span[:2] for span in spans] == [(1, 1), (2, 2), (3, 4), (5, 8), (9, 11)]
    assert [span[3] for span in spans] == [1, 2, 3.5, 6.5, 10]
    x, y = octaves(np.ones(1000))
    assert (np.diff(x) > 0).all() and (y == 1).all() and x[-1] <= 1000


def test_lengths():
    assert (parse_length("4x", 16), parse_length("40", 16)) == (64, 40)
    for wrong in ("0", "x4", "-3", "2.5x", ""):
        with pytest.raises(UserError, match="--ctx-len"):
            parse_length(wrong, 16)


def test_a_run_is_measured_and_drawn(tmp_path, monkeypatch, capsys):
    here = make_here(tmp_path, monkeypatch)
    assert here.run("model=rwkv_v4", "trainer.steps=2", "trainer.sample_length=0") == 0
    run = here.folder()
    capsys.readouterr()
    assert evaluate.main([str(run), "--by-position", "--ctx-len", "2x", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    columns = read_metrics(run / FILE)
    assert shown["length"] == 32 == len(columns["window"]) and list(columns["distance"]) == list(range(1, 33))
    assert shown["spans"][0]["carried"] == pytest.approx(columns["carried"][0], abs=1e-5)
    assert position_figure(compare("study", collect([run], "")).blocks[0]) is not None
    for words, pattern in (
        (["--by-position", "--ctx-len", "1000x"], "held-out text"),
        (["--by-position", "--tokens", "some"], "--tokens"),
        (["--by-position", "--text", str(here.text)], "--text"),
        (["--ctx-len", "2x"], "--by-position"),
    ):
        with pytest.raises(UserError, match=pattern):
            evaluate.main([str(run), *words])
