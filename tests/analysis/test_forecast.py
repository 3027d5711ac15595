"""Forecasts of runs in progress."""

import json
import threading
import time

import numpy as np
import pytest

from analysis import forecast as module
from analysis.curves import LossCurve
from analysis.forecast import Siblings, final, follow, forecast
from rwkv_lab import tracking
from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import Run, store
from rwkv_lab.runs.manifest import write_manifest


def cut(curve, share):
    last = int(share * len(curve.lr))
    kept = curve.step <= last
    return LossCurve(curve.step[kept], curve.loss[kept], curve.lr[: last + 1], {"name": "running"})


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_a_plateau_and_a_decay_are_forecast(published, share):
    (wsd,) = published("llama_124m", "1e-3_wsd0.2_50k")
    low, high = forecast(cut(wsd, share), wsd.lr).interval(0.9)
    assert low < wsd.loss[-1] < high
    assert 0 < high - low < 0.3


def test_a_finished_run_narrows_it(published):
    wsd, cosine = published("llama_124m", "1e-3_wsd0.2_50k", "1e-3_cosine10_25k")
    alone, beside = forecast(cut(wsd, 0.3), wsd.lr), forecast(cut(wsd, 0.3), wsd.lr, [cosine])
    assert np.diff(beside.interval())[0] < 0.7 * np.diff(alone.interval())[0]
    assert beside.final_loss == pytest.approx(wsd.loss[-1], abs=0.012)


def test_a_constant_rate_is_not_refused(published):
    (constant,) = published("llama_124m", "1e-3_constant_50k")
    prediction = forecast(cut(constant, 0.4), constant.lr)
    low, high = prediction.interval()
    assert low < prediction.final_loss < high
    assert prediction.final_loss == pytest.approx(constant.loss[-1], abs=0.03)


def test_the_display_gives_the_same_number(published):
    (wsd,) = published("llama_124m", "1e-3_wsd0.2_25k")
    whole = forecast(cut(wsd, 0.5), wsd.lr)
    assert final(cut(wsd, 0.5), wsd.lr) == pytest.approx((whole.final_loss, *whole.interval(0.9)), abs=2e-3)


def test_what_cannot_be_forecast_is_refused(published):
    (wsd,) = published("llama_124m", "1e-3_wsd0.2_25k")
    with pytest.raises(UserError, match="at least 4 losses"):
        forecast(cut(wsd, 0.02), wsd.lr)
    with pytest.raises(UserError, match="differs from the rates"):
        forecast(cut(wsd, 0.5), wsd.lr * 2)
    with pytest.raises(UserError, match="goes to step"):
        forecast(cut(wsd, 0.5), wsd.lr[:1000])


class TestSiblings:
    """Forecasts from the runs of a study that have finished."""

    @pytest.fixture
    def study(self, published):
        names = ("1e-3_cosine10_50k", "1e-3_wsd0.4_50k", "5e-4_wsd0.2_50k", "1e-3_wsd0.2_50k")
        *finished, last = published("llama_124m", *names)
        return finished, last

    def test_the_end_lies_in_the_interval_and_more_runs_narrow_it(self, study):
        finished, last = study
        widths = []
        for known in (1, 3):
            siblings = Siblings.of(finished[:known], ["a"] * known)
            loss, low, high = siblings.final(cut(last, 0.5), last.lr)
            assert low < last.loss[-1] < high and loss == pytest.approx(last.loss[-1], abs=0.02)
            widths.append(high - low)
        assert widths[1] < widths[0]

    def test_a_worse_model_is_as_much_worse_at_its_end(self, study):
        finished, last = study
        siblings = Siblings.of(finished, ["a"] * 3)
        loss = siblings.final(cut(last, 0.5), last.lr)[0]
        worse = LossCurve(last.step, last.loss + 0.3, last.lr)
        found, low, high = siblings.final(cut(worse, 0.5), last.lr, stranger=True)
        assert found == pytest.approx(loss + 0.3, abs=1e-6)
        known = siblings.final(cut(worse, 0.5), last.lr)
        assert high - low > known[2] - known[1]

    def test_models_get_levels_of_their_own(self, study):
        finished, last = study
        other = LossCurve(finished[1].step, finished[1].loss + 0.3, finished[1].lr, {"name": "other"})
        apart = Siblings.of([finished[0], other, finished[2]], ["a", "b", "a"])
        together = Siblings.of([finished[0], other, finished[2]], ["a", "a", "a"])
        now = cut(last, 0.5)
        error = [abs(each.final(now, last.lr)[0] - last.loss[-1]) for each in (apart, together)]
        assert error[0] < error[1]

    def test_without_a_recent_loss_there_is_none(self, study):
        finished, last = study
        with pytest.raises(UserError, match="has no loss between"):
            Siblings.of([LossCurve([40, 50_000], [5.0, 3.0], finished[0].lr), finished[1]], ["a", "a"]).final(
                cut(last, 0.5), last.lr
            )


CONFIG = """\
model: {name: rwkv_v4}
data: {name: kjv}
schedule: {name: wsd, lr_init: 2.0e-3, lr_final: 0.0, warmup_steps: 10, decay_fraction: 0.2}
trainer: {batch_size: 8, eval_tokens: 8192}
"""


def run_directory(study, name, rows, status, every=5):
    """A run of 1,000 updates with its first ``rows`` rows logged, held-out loss in each of ``every``."""
    folder = study / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    write_manifest(folder, {"format": 1, "status": status, "steps": 1000, "ended": None})
    lines = ["step,train_loss,val_loss,seconds"]
    for step in range(10, 10 * rows + 1, 10):
        loss = 1.2 + 4.0 * (step + 20) ** -0.35 - 0.1 * max(0, step - 800) / 200
        lines.append(f"{step},{loss + 0.02 * (-1) ** step},{loss if step % (10 * every) == 0 else ''},{step}")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize(("every", "column"), [(2, "val_loss"), (20, "train_loss")])
def test_a_run_is_followed_until_it_ends(tmp_path, monkeypatch, every, column):
    run_directory(tmp_path, "a-b-s1-aaaaaaaa", 100, "complete")
    folder, ended = run_directory(tmp_path, "a-b-s1-bbbbbbbb", 40, "running", every), threading.Event()
    assert [run.id for run in module.finished_beside(Run(folder))] == ["aaaaaaaa"]
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(module, "affordable", lambda done, expected: np.inf)
    held = store.lock(folder)
    follower = threading.Thread(target=follow, args=(folder, ended))
    follower.start()
    for _ in range(600):
        if Run(folder).forecast:
            break
        time.sleep(0.02)
    held.release()
    follower.join(10)
    assert not follower.is_alive(), "it ends with the run"
    found = json.loads((folder / "forecast.json").read_text())
    assert (found["step"], found["column"]) == (400 if column == "val_loss" else 399, column)
    assert found["low"] < found["loss"] < found["high"] < 2.5


def test_forecasts_take_no_more_than_their_share(tmp_path, monkeypatch):
    folder = run_directory(tmp_path, "a-b-s1-bbbbbbbb", 40, "running")
    held = store.lock(folder)
    looked = threading.Event()
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(module, "affordable", lambda done, expected: looked.set() or 0.0)
    monkeypatch.setattr(module, "of_run", lambda *_: pytest.fail("beyond its share"))
    ended = threading.Event()
    follower = threading.Thread(target=follow, args=(folder, ended))
    follower.start()
    assert looked.wait(10)
    ended.set()
    follower.join(10)
    held.release()
    assert not (folder / "forecast.json").exists()
    assert not tracking.begins(0.05, 1e5) and not tracking.begins(0.5, 60) and tracking.begins(0.1, 600)


def test_the_progress_line_shows_the_forecast_and_ends_its_process(tmp_path, monkeypatch):
    folder = run_directory(tmp_path, "a-b-s1-bbbbbbbb", 40, "running")
    monkeypatch.setattr(tracking, "FORECAST_SECONDS", 0.0)
    monkeypatch.setattr(tracking, "begins", lambda done, expected: True)
    monkeypatch.setattr(tracking.sys, "executable", "/nowhere/python")
    live = tracking.LiveForecast(folder, 1000, 0)
    assert live.note(100) == "", "a process that cannot start costs the run nothing"
    live.close()
    monkeypatch.undo()
    monkeypatch.setattr(tracking, "FORECAST_SECONDS", 0.0)
    monkeypatch.setattr(tracking, "begins", lambda done, expected: True)
    live = tracking.LiveForecast(folder, 1000, 0)
    (folder / "forecast.json").write_text('{"loss": 1.5, "low": 1.4, "high": 1.6, "step": 100}')
    assert live.note(101) == "  forecast 1.500 (1.400–1.600)"
    process = live._process
    live.close()
    assert process.poll() is not None
