"""Longer runs and branches: what another run has done is not done again, and the numbers are the same to the bit."""

import json
from pathlib import Path

import pytest

from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import find, load
from rwkv_lab.training import checkpoint, trainer
from tests.in_process import STEPS, Here, make_here, numbers

CONSTANT = ("schedule=constant", "schedule.lr_init=0.003", "schedule.warmup_steps=2")
LONGER = f"trainer.steps={2 * STEPS}"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    return make_here(tmp_path, monkeypatch)


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The updates that were computed, in order."""
    done: list[int] = []
    update = trainer.update

    def counted(training, module, step):
        done.append(step)
        return update(training, module, step)

    monkeypatch.setattr(trainer, "update", counted)
    return done


def same(left: Path, right: Path) -> None:
    a, b = numbers_of(left), numbers_of(right)
    assert a == b


def numbers_of(run: Path) -> dict:
    """All numbers of a run, its last checkpoint included."""
    last = checkpoint.kept_steps(run / "checkpoints")[-1]
    found = numbers(run) if last == STEPS else None
    if found is None:
        target = run / "checkpoints" / f"step-{STEPS:09d}.safetensors"
        assert not target.exists()
        target.write_bytes((run / "checkpoints" / f"step-{last:09d}.safetensors").read_bytes())
        found = numbers(run)
        target.unlink()
    return found


def test_a_longer_run_goes_on_and_equals_one_that_was_long_from_the_start(here: Here, updates, capsys):
    assert here.run(*CONSTANT) == 0
    assert here.run(*CONSTANT, LONGER) == 0
    assert updates == list(range(2 * STEPS))
    longer = here.loaded()
    assert longer.manifest["origin"]["step"] == STEPS
    assert f"goes on from step {STEPS}" in capsys.readouterr().out
    assert here.run(*CONSTANT, LONGER, study="whole") == 0
    same(longer.path, here.folder("whole"))
    # A fresh start is a fresh start.
    updates.clear()
    assert here.run(*CONSTANT, LONGER, "rerun=true") == 0
    assert updates == list(range(2 * STEPS))


def test_an_interrupted_run_is_gone_on_from_its_checkpoint(here: Here, updates):
    here.kill_at(7, *CONSTANT)
    updates.clear()
    assert here.run(*CONSTANT, LONGER) == 0
    assert updates == list(range(6, 2 * STEPS))


def test_rows_at_another_last_step_are_left_out(here: Here):
    """The last row of a run of 12 updates is not one that a longer run has, with rows at every fifth."""
    every = (*CONSTANT, "trainer.log_every=5", "trainer.eval_every=10")
    assert here.run(*every) == 0
    assert here.run(*every, LONGER) == 0
    assert here.run(*every, LONGER, study="whole") == 0
    same(here.folder(), here.folder("whole"))
    assert load(here.folder()).metrics()["step"].tolist() == [5, 10, 15, 20, 24]


def test_a_plateau_is_gone_on_from_before_its_decay(here: Here, updates):
    plateau = ("schedule=wsd", "schedule.decay_fraction=0.5", "trainer.keep_every=4")
    assert here.run(*plateau) == 0
    updates.clear()
    assert here.run(*plateau, LONGER) == 0
    # The decay of 12 updates begins after update 5.
    assert updates == list(range(4, 2 * STEPS))


@pytest.mark.parametrize(
    ("overrides", "other"),
    [
        (("schedule=cosine",), ()),
        (("schedule=wsd", "schedule.decay_fraction=0.5"), ()),
        (CONSTANT, ("seed=2",)),
        (CONSTANT, ("schedule.lr_init=0.004",)),
        (CONSTANT, ("trainer.batch_size=4",)),
        (CONSTANT, ("optimizer.weight_decay=0.1",)),
    ],
)
def test_what_differs_begins_afresh(here: Here, updates, capsys, overrides, other):
    assert here.run(*overrides) == 0
    updates.clear()
    capsys.readouterr()
    assert here.run(*overrides, LONGER, *other) == 0
    assert updates == list(range(2 * STEPS))
    if not other:
        assert "this run begins afresh" in capsys.readouterr().out


BRANCH = ("schedule=linear", "schedule.lr_init=0.003", "schedule.lr_final=0.0001", "schedule.warmup_steps=2")


def test_a_branch_trains_its_parent_once(here: Here, updates):
    assert here.run(*BRANCH, "branch.step=8", "trainer.steps=12") == 0
    assert updates == list(range(12))
    first = here.loaded()
    updates.clear()
    # Another decay off the same plateau, and one further along it.
    assert here.run(*BRANCH, "branch.step=8", "trainer.steps=16") == 0
    assert updates == list(range(8, 16))
    updates.clear()
    assert here.run(*BRANCH, "branch.step=12", "trainer.steps=16") == 0
    assert updates == list(range(8, 16))
    rates = first.metrics()["lr"]
    assert rates[:8].tolist() == pytest.approx([0.0015] + [0.003] * 7)
    assert rates[8] == pytest.approx(0.003) and rates[-1] == pytest.approx(0.0001)
    assert first.metrics()["step"].tolist() == list(range(1, 13))
    statuses = [run.status for run in find(here.runs / "faulty")]
    assert statuses == ["complete"] * 5
    updates.clear()
    assert here.run(*BRANCH, "branch.step=8", "trainer.steps=12") == 0
    assert updates == []


def test_a_branch_equals_the_schedule_it_amounts_to(here: Here):
    """A plateau with a linear decay of its last half is a branch at its middle."""
    wsd = ("schedule=wsd", "schedule.lr_init=0.003", "schedule.lr_final=0.0001", "schedule.decay_fraction=0.5")
    assert here.run(*wsd, study="whole") == 0
    whole = here.loaded("whole")
    first = int((whole.metrics()["lr"] == 0.003).sum()) - 1
    assert here.run(*wsd[1:3], "schedule=linear", f"branch.step={first}") == 0
    assert here.loaded().metrics()["lr"].tolist() == pytest.approx(whole.metrics()["lr"].tolist())


def test_a_branch_of_a_run(here: Here, updates):
    assert here.run(*CONSTANT, "trainer.keep_every=4") == 0
    parent = here.loaded()
    updates.clear()
    named = (f"branch.parent=faulty/{parent.name}", "schedule=linear")
    assert here.run(*named, "branch.step=6") == 0
    # The checkpoint of step 6 is not kept: the updates after step 4 are made again.
    assert updates == list(range(4, STEPS))
    branch = here.loaded()
    assert branch.metrics()["train_loss"][:6].tolist() == parent.metrics()["train_loss"][:6].tolist()
    # Named otherwise, it is the same run.
    assert here.run(f"branch.parent={parent.id}", "schedule=linear", "branch.step=6") == 0
    assert here.loaded().path == branch.path


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["branch.step=12"], "branch.step"),
        (["branch.step=0"], "branch.step"),
        (["branch.parent=PARENT"], "branch.step"),
        (["branch.parent=nowhere", "branch.step=3"], "nowhere"),
        (["branch.parent=PARENT", "branch.step=13", "trainer.steps=20"], "branch.step"),
        (["branch.parent=PARENT", "branch.step=3", "seed=2"], "seed"),
        (["branch.parent=PARENT", "branch.step=3", "model.n_layer=2"], "model.n_layer"),
        (["branch.parent=PARENT", "branch.step=3", "trainer.batch_size=4"], "trainer.batch_size"),
    ],
)
def test_a_branch_that_cannot_be(here: Here, overrides, key):
    assert here.run(*CONSTANT) == 0
    parent = here.loaded().name
    with pytest.raises(UserError) as said:
        here.run(*(word.replace("PARENT", parent) for word in overrides))
    assert key in str(said.value)


def test_a_damaged_parent_is_not_taken_over(here: Here, updates):
    assert here.run(*CONSTANT) == 0
    for record in (here.folder() / "checkpoints").glob("*.json"):
        content = json.loads(record.read_text())
        record.write_text(json.dumps(content | {"tokens": 1}))
    updates.clear()
    assert here.run(*CONSTANT, LONGER) == 0
    assert updates == list(range(2 * STEPS))
