"""Tasks: sequences that are functions of seed and number, rules that hold in each, held-out ones never seen, runs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_lab import data
from rwkv_lab.cli import data as command
from rwkv_lab.config import registry
from rwkv_lab.config.errors import UserError
from rwkv_lab.data.corpora.copy import GO
from rwkv_lab.data.tasks import TaskConfig
from rwkv_lab.training.evaluate import evaluate_run
from tests.data.configs import data_config, tokenizer_config
from tests.in_process import Here, make_here, numbers
from tests.models.contract import moved

TASKS = [name for name, member in registry.members("data").items() if issubclass(member, TaskConfig)]
SETTINGS = ("tokenizer=ids", "model.ctx_len=40", "data.held_out=8", "trainer.eval_tokens=160")


def task(name: str, **fields):
    return data_config(name, **({"length": 40, "held_out": 8} | fields))


def corpus(name: str, **fields):
    return data.load(task(name, **fields), tokenizer_config("ids"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    return make_here(tmp_path, monkeypatch)


@pytest.mark.parametrize("name", TASKS)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**63 - 1), first=st.integers(0, 2**40), cut=st.integers(1, 4))
def test_sequences_are_functions_of_seed_and_number(name, seed, first, cut):
    train = corpus(name).train
    rows, weights = train.sequences("random", 40, seed, first, 5)
    for start, count in ((0, cut), (cut, 5 - cut)):
        part = train.sequences("random", 40, seed, first + start, count)
        np.testing.assert_array_equal(part[0], rows[start : start + count])
        np.testing.assert_array_equal(part[1], weights[start : start + count])
    assert (train.sequences("random", 40, seed ^ 1, first, 5)[0] != rows).any()
    assert rows.shape == (5, 41) and weights.shape == (5, 40) and rows.min() >= 0 and rows.max() < task(name).ids
    np.testing.assert_allclose(weights.sum(1), weights.sum(1)[0], rtol=1e-6)


@pytest.mark.parametrize("name", TASKS)
def test_the_order_repeats_after_the_last_sequence(name):
    train = corpus(name, sequences=6).train
    twice, _ = train.sequences("random", 40, 1, 3, 12)
    np.testing.assert_array_equal(twice[:6], twice[6:])
    np.testing.assert_array_equal(twice[3:6], train.sequences("random", 40, 1, 6, 3)[0])
    assert len(train) == 6 * 41


@pytest.mark.parametrize(
    ("name", "fields"), [("recall", {"pairs": 1, "vocab": 5}), ("copy", {"string": 3, "vocab": 5})]
)
def test_held_out_sequences_are_no_training_sequences(name, fields):
    """Tasks so small that all of their sequences are seen."""
    found = corpus(name, length=8, held_out=100, **fields)
    seen = {row.tobytes() for row in found.train.sequences("random", 8, 3, 0, 600)[0]}
    held = {row.tobytes() for row in found.val.sequences("random", 8, 3, 0, 100)[0]}
    assert held and not seen & held
    np.testing.assert_array_equal(found.val.sequences("x", 8, 3, 0, 9)[0], found.val.sequences("x", 8, 4, 0, 9)[0])


def test_recall_asks_for_the_value_of_every_key():
    rows, weights = corpus("recall", pairs=6, pairs_low=2, vocab=21).train.sequences("random", 40, 1, 0, 50)
    sizes = set()
    for row, weight in zip(rows, weights, strict=True):
        pairs = dict(row[:12][row[:12] > 0].reshape(-1, 2).tolist())
        (asked,) = np.nonzero(weight)
        assert {row[i]: row[i + 1] for i in asked} == pairs
        assert all(1 <= key <= 10 < value <= 20 for key, value in pairs.items())
        assert (asked >= 12).all() and (row[12:] > 0).sum() == 2 * len(pairs)
        sizes.add(len(pairs))
    assert sizes == {2, 3, 4, 5, 6}


@pytest.mark.parametrize("selective", [False, True])
def test_copy_ends_with_its_string(selective):
    rows, weights = corpus("copy", string=5, selective=selective).train.sequences("random", 40, 1, 0, 20)
    scattered = False
    for row, weight in zip(rows, weights, strict=True):
        before, after = row[:35], row[36:]
        assert row[35] == GO and (weight[:35] == 0).all() and (weight[35:] == 1).all()
        np.testing.assert_array_equal(before[before > 0], after)
        scattered |= bool((before[:5] == 0).any())
    assert scattered == selective


@pytest.mark.parametrize("length", [40, 41, 53])
def test_names_are_those_of_the_introductions(length):
    config = task("names", people=3, names=50, length=length)
    words = config.ids - 50
    for row, weight in zip(*config.numbered(np.arange(30), 1, False), strict=True):
        (asked,) = np.nonzero(weight)
        people = {}
        for place in np.nonzero(row >= words)[0]:
            if place - 1 in asked:
                assert people[row[place - 1]] == row[place]
            else:
                people[row[place - 3]] = row[place]
        assert len(people) == 3 and len(asked) == (row >= words).sum() - 3 and asked[-1] == length - 2


def test_the_loss_counts_answers_alone():
    model = moved("rwkv_v4", ctx_len=40, l2_wrap=False)
    rows, weights = corpus("recall", pairs=3, vocab=11).train.sequences("random", 40, 1, 0, 4)
    idx, share = torch.from_numpy(rows), torch.from_numpy(weights).double()
    p = torch.log_softmax(model(idx[:, :-1]), -1).gather(-1, idx[:, 1:, None]).squeeze(-1)
    expected = -torch.stack([p[i][share[i] > 0].mean() for i in range(4)]).mean()
    torch.testing.assert_close(model.loss(idx[:, :-1], idx[:, 1:], share), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", TASKS)
def test_resumed_equals_uninterrupted(here, name, capsys):
    words = (f"data={name}", *SETTINGS, "trainer.accumulate=2")
    assert here.run(*words, study="whole") == 0
    here.kill_at(7, *words)
    assert here.run(*words) == 0
    assert numbers(here.folder()) == numbers(here.folder("whole"))
    run = here.loaded()
    assert run.manifest["result"]["val_bpb"] is None and 0 <= run.manifest["result"]["val_accuracy"] <= 1
    assert np.isfinite(run.metrics()["val_accuracy"][[2, 5, 8, 11]]).all()
    assert "val_bpb is not measured" in capsys.readouterr().out
    assert evaluate_run(str(run.path), "val", "cpu").accuracy == run.manifest["result"]["val_accuracy"]


def test_a_lookup_is_learned(here):
    """One pair: its value follows its key."""
    words = ("data=recall", "data.pairs=1", "data.vocab=5", *SETTINGS, "model=mha_rotary", "model.token_shift=half")
    more = ("trainer.steps=150", "trainer.batch_size=16", "trainer.log_every=50", "trainer.eval_every=0")
    assert here.run(*words, "model.ctx_len=8", *more, "schedule.lr_init=0.01", "trainer.checkpoint_every=0") == 0
    assert here.loaded().manifest["result"]["val_accuracy"] == 1


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (("data=recall", "data.pairs=20"), r"data=recall .*model\.ctx_len=79"),
        (("data=recall", "data.vocab=9"), r"data\.vocab=17"),
        (("data=recall", "data.pairs_low=9"), r"data\.pairs_low=9"),
        (("data=copy", "data.string=30"), r"model\.ctx_len=60"),
        (("data=names", "data.people=3", "data.names=2"), r"data\.names=3"),
        (("data=names", "data.length=20"), r"data\.length=20 and model\.ctx_len=40"),
        (("data=names", "data.order=cube"), r"data\.order=cube"),
        (("data=names", "objective=mlm"), r"objective=lm"),
    ],
)
def test_mistakes(here, words, pattern):
    with pytest.raises(UserError, match=pattern):
        here.run(*SETTINGS, *words)
    assert not here.runs.exists()


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_other_tokenizers_are_refused(here, tokenizer):
    words = (word for word in SETTINGS if not word.startswith("tokenizer"))
    with pytest.raises(UserError, match=r"tokenizer=.*ids"):
        here.run("data=names", *words, f"tokenizer={tokenizer}")


def test_a_task_with_too_few_sequences_is_refused():
    with pytest.raises(UserError, match="data=copy has too few"):
        corpus("copy", string=1, vocab=3, length=2)


def test_info_shows_a_task_and_export_refuses_it(capsys, tmp_path):
    assert command.main(["info", "recall", "model.ctx_len=40"]) == 0
    shown = capsys.readouterr().out
    assert "vocabulary  128" in shown and "val_bpb is not measured" in shown
    with pytest.raises(UserError, match="data=recall cannot be exported"):
        command.main(["export", str(tmp_path / "out"), "recall", "model.ctx_len=40"])
