import json
import math

import numpy as np
import pytest

from analysis.curves import LossCurve, load, lr_schedule_io, tables
from analysis.curves.curve import bin_curve
from analysis.curves.loading import by_schedule, from_history
from rwkv_lab.config.errors import UserError
from rwkv_lab.training import schedules


def write_csv(path, header, rows):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def test_a_table_gives_steps_losses_and_interpolated_rates(tmp_path):
    curve = load(write_csv(tmp_path / "a.csv", "step,lr,loss", [(0, 0.1, 4.0), (2, 0.3, 3.0), (4, 0.1, 2.5)]))
    np.testing.assert_array_equal(curve.step, [0, 2, 4])
    np.testing.assert_array_equal(curve.loss, [4.0, 3.0, 2.5])
    np.testing.assert_allclose(curve.lr, [0.1, 0.2, 0.3, 0.2, 0.1])
    assert curve.name == "a"
    assert "rates interpolated between the logged ones" in curve.notes


def test_messy_rows_are_repaired_and_reported(tmp_path):
    rows = [(0, 1, 4), (2, 1, "nan"), (3, 1, ""), (1, 1, 3.5), (5, 1, 3), (5, 1, 2.9), (4, 1, 3.1), ("x", 1, 1)]
    curve = load(write_csv(tmp_path / "a.csv", "step,lr,loss", rows))
    np.testing.assert_array_equal(curve.step, [0, 1, 4, 5])
    np.testing.assert_array_equal(curve.loss, [4, 3.5, 3.1, 2.9])
    said = " / ".join(curve.notes)
    assert "3 rows without a finite step and loss" in said
    assert "sorted" in said
    assert "1 repeated steps" in said


def test_a_resumed_stretch_takes_the_place_of_what_it_repeats():
    step = np.array([0.0, 10, 20, 30, 35, 20, 30, 40])
    np.testing.assert_array_equal(tables.superseded(step), [False, False, True, True, True, False, False, False])
    assert not tables.superseded(np.array([0.0, 20, 10, 30])).any()


def test_jsonl_and_other_names(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = [{"_step": 0, "learning_rate": 0.1, "train_loss": 3}, {"_step": 1, "learning_rate": 0.1, "val_loss": 2}]
    path.write_text("\n".join(map(json.dumps, lines)))
    curve = load(path)
    assert curve.meta["column"] == "train_loss"
    np.testing.assert_array_equal(curve.step, [0])


def test_the_loss_is_chosen_by_what_is_dense_or_asked_for(tmp_path):
    rows = [(i, 0.1, 3.0 + i, 2.0 + i if i % 2 else "") for i in range(120)]
    path = write_csv(tmp_path / "a.csv", "step,lr,train_loss,val_loss", rows)
    assert load(path).meta["column"] == "val_loss"
    assert load(path, "train_loss").meta["column"] == "train_loss"
    sparse = write_csv(tmp_path / "b.csv", "step,lr,train_loss,val_loss", rows[:60])
    assert load(sparse).meta["column"] == "train_loss"
    with pytest.raises(UserError, match=r"no column 'val_los' with numbers.*val_loss"):
        load(path, "val_los")


def test_a_schedules_file_gives_every_rate(tmp_path):
    described = {"kind": "exp_tail", "total": 100, "warmup": 10, "peak": 1.0, "end": 0.25, "decay_start": 50}
    (tmp_path / "schedules.json").write_text(json.dumps({"schedules": {"a": described}}))
    curve = load(write_csv(tmp_path / "a.csv", "step,loss", [(20, 3), (90, 2)]))
    assert len(curve.lr) == 100
    assert curve.lr[5] == pytest.approx(0.5)
    assert curve.lr[75] == pytest.approx(0.5)
    assert not curve.notes


@pytest.mark.parametrize(
    ("kind", "more", "at", "expected"),
    [
        ("constant", {}, 99, 2.0),
        ("cosine", {"end": 1.0}, 55, 1.5),
        ("linear_tail", {"end": 0.0, "decay_start": 50}, 75, 1.0),
        ("steps", {"stages": [[0, 2.0], [30, 0.5]]}, 30, 0.5),
    ],
)
def test_kinds_of_described_schedules(kind, more, at, expected):
    eta = lr_schedule_io.from_description({"kind": kind, "total": 100, "warmup": 10, "peak": 2.0, **more})
    assert eta[at] == pytest.approx(expected)
    assert eta[0] == 0
    assert eta[10] == pytest.approx(2.0)


def make_run(folder, schedule, steps=20, total=None):
    folder.mkdir(parents=True)
    eta = schedules.rates(schedule["name"], steps, **{k: v for k, v in schedule.items() if k != "name"})
    rows = [(i, i * 8, eta[i - 1], 4 - 0.1 * i, 3.9 - 0.1 * i if i % 5 == 0 else "") for i in range(1, steps + 1)]
    write_csv(folder / "metrics.csv", "step,tokens,lr,train_loss,val_loss", rows)
    config = {"study": "s", "schedule": schedule, "trainer": {"steps": None, "batch_size": 8}}
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "run.json").write_text(json.dumps({"steps": total or steps}))
    return eta


def test_a_run_directory_counts_completed_updates(tmp_path):
    eta = make_run(tmp_path / "run", {"name": "cosine", "lr_init": 1e-3, "lr_final": 1e-4, "warmup_steps": 3})
    training = load(tmp_path / "run", "train_loss")
    np.testing.assert_array_equal(training.step, np.arange(20))  # measured before the update
    np.testing.assert_array_equal(training.lr, eta)
    assert training.meta["batch_size"] == 8
    held_out = load(tmp_path / "run" / "metrics.csv", "val_loss")
    np.testing.assert_array_equal(held_out.step, [5, 10, 15, 20])  # measured after it


def test_rates_that_are_not_the_configured_ones_are_taken_from_the_log(tmp_path):
    make_run(tmp_path / "run", {"name": "constant", "lr_init": 1e-3}, total=20)
    config = json.loads((tmp_path / "run" / "config.yaml").read_text())
    config["schedule"]["lr_init"] = 2e-3
    (tmp_path / "run" / "config.yaml").write_text(json.dumps(config))
    curve = load(tmp_path / "run")
    np.testing.assert_allclose(curve.lr, 1e-3)
    assert any("logged rates used" in note for note in curve.notes)


def test_piecewise_and_fitted_configs(tmp_path):
    stages = [{"until": 0.5, "lr": 1e-3, "shape": "constant"}, {"until": 1.0, "lr": 1e-4, "shape": "exponential"}]
    eta = lr_schedule_io.of_config({"name": "piecewise", "lr_init": 1e-3, "stages": stages}, 10)
    assert eta[0] == pytest.approx(1e-3)
    assert eta[-1] == pytest.approx(1e-4)
    proposal = tmp_path / "fit.json"
    proposal.write_text(json.dumps({"proposal": {"rates": [1.0, 2.0]}}))
    np.testing.assert_array_equal(lr_schedule_io.of_config({"name": "fitted", "fit": str(proposal)}, 2), [1.0, 2.0])
    assert lr_schedule_io.of_config({"name": "fitted", "fit": str(proposal)}, 3) is None
    assert lr_schedule_io.of_config({"name": "fitted", "fit": str(tmp_path / "gone.json")}, 2) is None


def test_bin_means_keep_every_point():
    step, loss, count = bin_curve(np.arange(1000), np.linspace(4, 2, 1000), 37)
    assert len(step) == 37
    assert count.sum() == 1000
    assert float(loss @ count) == pytest.approx(np.linspace(4, 2, 1000).sum())


@pytest.mark.parametrize(
    ("step", "loss", "eta", "message"),
    [
        ([], [], [1.0], "no point"),
        ([0, 1], [1.0], [1.0], "equally long"),
        ([0], [math.nan], [1.0], "finite"),
        ([0], [1.0], [-1.0], "at least 0"),
        ([0], [1.0], [0.0], "one above 0"),
        ([0], [-1.0], [1.0], "above 0 nats"),
        ([0, 0], [1.0, 1.0], [1.0], "rise strictly"),
        ([3], [1.0], [1.0, 1.0], "between 0 and 2"),
    ],
)
def test_a_curve_refuses_what_is_none(step, loss, eta, message):
    with pytest.raises(UserError, match=message):
        LossCurve(np.array(step), np.array(loss), np.array(eta))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "step,lr\n1,2\n", "no column loss"),
        ("a.csv", "lr,loss\n1,2\n", "no column 'step'"),
        ("a.csv", "step,loss\n1,2\n", "no rates"),
        ("a.csv", "step,lr,loss\n1,1,nan\n", "no column loss"),
        ("a.jsonl", "{\n", "line 1 is not JSON"),
        ("a.jsonl", "[1]\n", "line 1 is not an object"),
    ],
)
def test_a_log_that_cannot_be_read_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / name)
    assert name in str(caught.value)


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "gone.csv")
    with pytest.raises(UserError, match="neither a run directory"):
        load(tmp_path)
    (tmp_path / "schedules.json").write_text("{}")
    with pytest.raises(UserError, match="not a file of schedules"):
        load(write_csv(tmp_path / "a.csv", "step,loss", [(1, 2)]))
    with pytest.raises(UserError, match="unknown kind 'sawtooth'"):
        lr_schedule_io.from_description({"kind": "sawtooth", "total": 1, "peak": 1})
    with pytest.raises(UserError, match="lacks 'peak'"):
        lr_schedule_io.from_description({"kind": "cosine", "total": 1})


def test_rows_of_a_wandb_run_of_the_lab_follow_the_rules_of_metrics_csv():
    rows = [{"step": i, "train_loss": 4 - 0.1 * i} for i in range(1, 6)] + [{"step": 5, "val_loss": 3.4}]
    config = {"schedule": {"name": "constant", "lr_init": 1e-3}, "trainer": {"steps": 5, "batch_size": 4}}
    curve = from_history(rows, config, where="wandb:a/b/c", name="c", column=None)
    np.testing.assert_array_equal(curve.step, np.arange(5))
    np.testing.assert_array_equal(curve.lr, np.full(5, 1e-3))
    with pytest.raises(UserError, match="wandb:a/b/c"):
        from_history([{"_step": 1}], {}, where="wandb:a/b/c", name="c", column=None)


@pytest.mark.slow
def test_an_offline_wandb_run_is_read_back(tmp_path):
    wandb = pytest.importorskip("wandb")
    settings = wandb.Settings(console="off", silent=True)
    run = wandb.init(mode="offline", project="p", dir=str(tmp_path), config={"a": 1}, settings=settings)
    for i in range(6):
        run.log({"train_loss": 3 - 0.1 * i, "lr": 1e-3, "step": 10 * i}, step=10 * i)
    run.finish()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    curve = load(file.parent)
    np.testing.assert_array_equal(curve.step, 10 * np.arange(6))
    np.testing.assert_allclose(curve.loss, 3 - 0.1 * np.arange(6))
    np.testing.assert_allclose(curve.lr, 1e-3)


def test_runs_are_named_by_what_they_are(tmp_path):
    def run(number, seed=1, **schedule):
        config = {"seed": seed, "model": {"name": "rwkv_v4"}, "data": {"name": "kjv"}, "schedule": schedule}
        meta = {"name": f"rwkv_v4-kjv-s{seed}-{number}", "config": config}
        return LossCurve(np.arange(3), np.ones(3), np.ones(3), meta)

    wsd, cosine = run("aaaaaaaa", name="wsd", lr_init=2e-3), run("bbbbbbbb", name="cosine", lr_init=2e-3)
    log = LossCurve(np.arange(3), np.ones(3), np.ones(3), {"name": "mine"})
    assert [curve.name for curve in by_schedule([wsd, log, cosine])] == ["wsd", "mine", "cosine"]
    assert [curve.name for curve in by_schedule([wsd])] == ["wsd"]
    higher = run("cccccccc", name="wsd", lr_init=8e-3)
    assert [curve.name for curve in by_schedule([wsd, higher])] == ["wsd lr 2e-3", "wsd lr 8e-3"]
    assert [curve.name for curve in by_schedule([wsd, wsd])] == ["wsd aaaaaaaa", "wsd aaaaaaaa"]
