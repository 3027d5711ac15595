"""The curves of time that a run learned."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from analysis.cli import main
from analysis.plots import time_weights
from rwkv_lab import models
from rwkv_lab.config.errors import UserError


def test_layers_come_in_order_and_other_weights_are_left():
    tensors = {f"blocks.{i}.att.time_decay": np.full((4, 1), float(i)) for i in (10, 2, 0)}
    tensors |= {
        "blocks.0.att.shift.time_mix_k": np.zeros(4),
        "time_out": np.zeros((1, 8, 1)),
        "head.weight": np.zeros((2, 2)),
    }
    found = time_weights.by_layer(tensors)
    assert list(found) == ["time_decay", "att.time_mix_k"]
    assert time_weights.shares(found)["att", "k"][0].tolist() == [1.0] * 4
    assert [(layer, values.tolist()) for layer, values in found["time_decay"].items()] == [
        (0, [0.0] * 4),
        (2, [2.0] * 4),
        (10, [10.0] * 4),
    ]


def test_factors_of_heads_keep_their_heads():
    tensors = {
        "blocks.0.att.time_w": np.ones((3, 8)),
        "blocks.0.att.time_alpha": np.ones((3, 1, 8)),
        "blocks.0.att.time_beta": np.ones((3, 8, 1)),
        "blocks.0.att.time_gamma": np.ones((8, 1)),
    }
    shapes = {kind: layers[0].shape for kind, layers in time_weights.by_layer(tensors).items()}
    assert shapes == {"time_w": (3, 8), "time_alpha": (3, 8), "time_beta": (3, 8), "time_gamma": (8,)}


def test_decay_is_what_the_recurrence_does():
    """A token's weight against the plain recurrence a <- exp(-exp(time_decay)) a, and half of it at the half-life."""
    time_decay = np.array([-4.0, -1.0, 0.5])
    distance = np.arange(1, 30)
    found = time_weights.weight_at(time_decay, distance)
    state = np.ones(3)
    for t in range(len(distance)):
        assert found[:, t] == pytest.approx(state)
        state = state * np.exp(-np.exp(time_decay))
    assert np.exp(-np.exp(time_decay) * time_weights.half_life(time_decay)) == pytest.approx(0.5)


def test_the_last_entry_of_time_w_is_distance_zero():
    assert time_weights.against_distance(np.array([[1.0, 2.0, 3.0]])).tolist() == [[3.0, 2.0, 1.0]]


@pytest.fixture
def decays(tmp_path):
    """A run of three layers of eight channels."""
    values = {
        f"blocks.{i}.att.{name}": np.linspace(-5, i, 8, dtype=np.float32)
        for i in range(3)
        for name in ("time_decay", "time_first")
    }
    save_file(values, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.slow
def test_figures_of_decays(decays, capsys):
    assert main(["weights", str(decays)]) == 0
    names = {path.name for path in (decays / "weights").iterdir()}
    assert names == {"time_decay.png", "time_decay.svg", "decay_curves.png", "decay_curves.svg"}
    shown = capsys.readouterr().out
    assert f"{decays / 'weights'}/: time_decay, decay_curves (.png, .svg)" in shown and "half-life" in shown
    assert "layer 2" in (decays / "weights" / "time_decay.svg").read_text()


@pytest.mark.slow
def test_figures_of_curves_of_heads(tmp_path):
    values = {
        "blocks.0.att.time_w": np.ones((2, 8), np.float32),
        "blocks.0.att.time_gamma": np.ones((8, 1), np.float32),
    }
    save_file(values, tmp_path / "some.safetensors")
    assert main(["weights", str(tmp_path / "some.safetensors"), "--out", str(tmp_path / "figures")]) == 0
    assert {path.name for path in (tmp_path / "figures").glob("*.svg")} == {"time_w.svg", "time_gamma.svg"}


def test_the_figure_of_learned_shares_has_a_line_for_each_role():
    layers = {0: np.full(4, 0.25), 1: np.full(4, 0.75)}
    figure = time_weights.shift_figure({("att", "q"): layers, ("att", "v"): layers, ("ffn", "mix"): layers})
    att, ffn = figure.axes
    assert [line.get_label() for line in att.lines] == ["query", "value"]
    assert list(att.lines[0].get_ydata()) == [0.25, 0.75]
    assert [line.get_label() for line in ffn.lines] == ["all of them"]


def test_what_head_qk_copies(tmp_path, monkeypatch, capsys):
    """The scores are what head-QK adds to the logits of the tokens that occurred."""
    import torch

    from rwkv_lab.inference.copying import copied
    from tests.in_process import make_here

    here = make_here(tmp_path, monkeypatch)
    words = ("data=names", "tokenizer=ids", "model.head_qk_dim=4", "model=mha_rotary", "model.ctx_len=29")
    words += ("data.held_out=4", "data.names=20", "trainer.eval_tokens=29", "trainer.steps=3", "schedule.lr_init=0.1")
    assert here.run(*words) == 0
    run = here.folder()
    found = copied(run, None)
    assert found.tokens[:4] == ["the", found.tokens[1], "is", "called"] and found.tokens[4].startswith("name")
    model = models.load(run)
    idx = torch.from_numpy(found.ids)[None]
    with torch.no_grad():
        whole = model(idx)[0, 12]
        model.head_qk = None
        added = whole - model(idx)[0, 12]
    for token in set(found.ids[:13].tolist()):
        assert float(added[token]) == pytest.approx(found.scores[12, :13][found.ids[:13] == token].sum(), abs=1e-5)
    assert np.isnan(found.scores[12, 13:]).all()
    capsys.readouterr()
    assert main(["weights", str(run), "--text", "3 4 3 4 5"]) == 0
    assert (run / "weights" / "head_qk.png").is_file() and "most copied" in capsys.readouterr().out
    for text, pattern in (("3", "at least 2"), ("a b", "token ids")):
        with pytest.raises(UserError, match=pattern):
            main(["weights", str(run), "--text", text])


def test_heads_are_named_where_there_are_several():
    figure = time_weights.factors_figure("time_alpha", {0: np.ones((3, 8)), 1: np.ones((3, 8))})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["head 0", "head 1", "head 2"]
    assert not time_weights.factors_figure("time_gamma", {0: np.ones(8)}).legends


def test_mistakes(tmp_path, decays):
    with pytest.raises(UserError, match="does not exist"):
        main(["weights", str(tmp_path / "missing")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has not finished"):
        main(["weights", str(tmp_path / "empty")])
    (tmp_path / "study" / "a run").mkdir(parents=True)
    (tmp_path / "study" / "a run" / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"a folder of runs.*a run"):
        main(["weights", str(tmp_path / "study")])
    with pytest.raises(UserError, match="at least 2"):
        main(["weights", str(decays), "--distance", "1"])
    save_file({"head.weight": np.zeros((2, 2), np.float32)}, tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="neither time_decay nor time_w"):
        main(["weights", str(tmp_path / "none.safetensors")])
    (tmp_path / "torn.safetensors").write_bytes(b"not a model")
    with pytest.raises(UserError, match="cannot be read"):
        main(["weights", str(tmp_path / "torn.safetensors")])


@pytest.mark.slow
def test_the_models_call_their_weights_of_time_by_these_names():
    """Built models: the names this command looks for are theirs."""

    expected = {
        "rwkv_v1": {"time_w", "time_alpha", "time_beta", "time_gamma"},
        "mha_pro": {"time_w", "time_alpha", "time_beta", "time_gamma"},
        "rwkv_v2": {"time_decay", "time_first", "att.time_mix", "ffn.time_mix"},
        "rwkv_v4": {"time_decay", "time_first"}
        | {f"{side}.time_mix_{role}" for side, roles in (("att", "kvr"), ("ffn", "kr")) for role in roles},
        "mha_shift": set(),
    }
    for name, kinds in expected.items():
        model = models.build(name, vocab_size=8, n_layer=2, n_embd=32, ctx_len=8)
        found = time_weights.by_layer({key: value.numpy() for key, value in model.state_dict().items()})
        assert set(found) == kinds
        assert all(list(layers) == [0, 1] for layers in found.values())
