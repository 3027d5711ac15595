"""Stop rules: when each gives a job up, which jobs they compare, and that a stopped run goes on bit for bit."""

import json
from pathlib import Path

import numpy as np
import pytest

from rwkv_lab.config import registry
from rwkv_lab.config.fields import instance
from rwkv_lab.runs import Run, load
from rwkv_lab.runs.manifest import write_manifest
from rwkv_lab.sweeps.stopping.curves import JobCurve, Peers, best_final, read_curve
from tests.composing import checked, hydra_context
from tests.in_process import Here, make_here, numbers
from tests.lab import TINY

STEPS = np.arange(10, 101, 10)


def curve(name: str, final: float, done: int = 10, **fields) -> JobCurve:
    """A job of 100 updates that falls from 4 nats to ``final``, evaluated ``done`` of 10 times."""
    loss = final + (4 - final) * (1 - STEPS / 100) ** 2
    return JobCurve(name, STEPS[:done], loss[:done], 100, complete=done == 10, **fields)


def rule(name: str, **settings):
    return instance(registry.get("stop", name), {"name": name, **settings})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    return make_here(tmp_path, monkeypatch)


@pytest.mark.parametrize("name", registry.names("stop"))
def test_a_rule_is_a_group_that_is_not_hashed(name):
    from rwkv_lab.config.run_hash import run_name

    with hydra_context():
        ruled, plain = checked(*TINY, f"stop={name}", "stop.after=0.3"), checked(*TINY)
    assert ruled.stop.name == name and ruled.stop.after == 0.3
    assert plain.stop is None
    assert run_name(ruled, {}) == run_name(plain, {})


@pytest.mark.parametrize("name", sorted(set(registry.names("stop")) - {"forecast"}))
class TestRules:
    def test_alone_a_job_goes_on(self, name):
        assert not rule(name).verdict(curve("a", 3.9, 5), []).reason

    def test_the_best_job_goes_on(self, name):
        others = [curve(str(i), 2.0 + i / 10) for i in range(1, 9)]
        for done in range(1, 10):
            assert not rule(name).verdict(curve("best", 1.5, done), others).reason

    def test_the_worst_job_is_given_up(self, name):
        others = [curve(str(i), 2.0 + i / 10) for i in range(9)]
        verdicts = [rule(name, after=0.2).verdict(curve("worst", 3.8, done), others).reason for done in range(1, 10)]
        assert verdicts[0] == ""
        assert any(verdicts)


def test_the_median_waits_for_enough_others():
    others = [curve(str(i), 2.0) for i in range(2)]
    assert not rule("median", least=3).verdict(curve("a", 3.9, 5), others).reason
    assert rule("median", least=2).verdict(curve("a", 3.9, 5), others).reason
    # Those that have not come as far do not count.
    short = [curve(str(i), 2.0, 4) for i in range(9)]
    assert not rule("median", least=2).verdict(curve("a", 3.9, 5), short).reason


def test_halving_compares_at_its_rungs_only():
    halving = rule("halving", after=0.2, factor=2)
    assert halving.rungs() == pytest.approx([0.2, 0.4, 0.8])
    others = [curve(str(i), 2.0) for i in range(5)]
    stopped = [done for done in range(1, 10) if halving.verdict(curve("a", 3.0, done), others).reason]
    assert stopped == [2, 4, 8]


@pytest.mark.parametrize("place", range(6))
def test_halving_passes_the_best_part(place):
    others = [curve(str(i), 2.0 + i / 10) for i in range(6) if i != place]
    passed = not rule("halving", after=0.2, factor=3).verdict(curve("a", 2.0 + place / 10, 2), others).reason
    assert passed == (place < 2)


class TestForecast:
    @pytest.fixture
    def predicted(self, monkeypatch) -> dict:
        from analysis import early_stopping

        said = {"interval": (1.97, 1.92, 2.01)}
        monkeypatch.setattr(early_stopping, "predict", lambda job, others, confidence: said["interval"])
        return said

    def test_above_the_best_measured_loss_a_job_is_given_up(self, predicted):
        verdict = rule("forecast").verdict(curve("a", 2.0, 3), [curve("b", 1.8), curve("c", 1.9)])
        assert verdict.reason == "forecast 1.92–2.01 at 30 %; best 1.80"
        assert verdict.forecast == {"loss": 1.97, "low": 1.92, "high": 2.01, "step": 30.0}

    def test_an_interval_that_reaches_the_best_goes_on(self, predicted):
        verdict = rule("forecast").verdict(curve("a", 2.0, 3), [curve("b", 1.93)])
        assert not verdict.reason and verdict.forecast["high"] == 2.01

    def test_the_upper_end_of_a_running_forecast_counts(self, predicted):
        running = curve("b", 1.5, 4, forecast=(1.6, 1.7))
        assert rule("forecast").verdict(curve("a", 2.0, 3), [running]).reason.endswith("best 1.70")
        predicted["interval"] = (1.7, 1.65, 1.75)
        assert not rule("forecast").verdict(curve("a", 2.0, 3), [running]).reason

    def test_alone_or_early_it_goes_on(self, predicted):
        assert not rule("forecast").verdict(curve("a", 2.0, 3), []).reason
        assert not rule("forecast", after=0.5).verdict(curve("a", 2.0, 3), [curve("b", 1.0)]).forecast


def test_the_best_final_loss():
    assert best_final([]) == float("inf")
    assert best_final([curve("a", 2.0, 5)]) == float("inf")
    assert best_final([curve("a", 2.0), curve("b", 1.5, 5, forecast=(1.4, 1.6))]) == 1.6
    # A finished job's measured loss replaces its forecast.
    assert best_final([curve("a", 2.0, forecast=(1.0, 1.1))]) == 2.0


def write_run(root: Path, name: str, status: str = "complete", tokens: int = 1000, **config) -> Run:
    folder = root / "study" / name
    folder.mkdir(parents=True)
    content = {"data": {"name": "builtin"}, "tokenizer": {"name": "char"}, "trainer": {"eval_tokens": 512}}
    (folder / "config.yaml").write_text(json.dumps(content | config))
    write_manifest(folder, {"status": status, "steps": 40, "tokens": tokens, "data": {"sha256": "0" * 8}})
    (folder / "metrics.csv").write_text("step,val_loss\n10,\n20,3.5\n30,3.25\n")
    return Run(folder)


def test_only_jobs_of_one_data_metric_and_length_are_compared(tmp_path):
    own = write_run(tmp_path, "own", status="running")
    write_run(tmp_path, "other_model", model={"name": "mha_pro"}, schedule={"name": "wsd"}, seed=2)
    write_run(tmp_path, "other_data", data={"name": "enwik8"})
    write_run(tmp_path, "other_metric", trainer={"eval_tokens": 1024})
    write_run(tmp_path, "other_length", tokens=2000)
    (write_run(tmp_path, "unreadable").path / "run.json").write_text("{")
    (write_run(tmp_path, "not_measured").path / "metrics.csv").write_text("step,val_loss\n10,\n")
    peers = Peers(own)
    for _ in range(2):
        assert [found.name for found in peers.curves()] == ["other_model"]
    found = read_curve(own)
    assert (found.step.tolist(), found.loss.tolist(), found.done) == ([20, 30], [3.5, 3.25], 0.75)


@pytest.mark.parametrize("study", ["stopped"])
def test_a_stopped_run_goes_on_to_the_numbers_of_one_never_stopped(here: Here, study, capsys):
    assert here.run("seed=1", study=study) == 0
    hopeless = ("seed=2", "schedule.lr_init=1e-9", "stop=median", "stop.least=1")
    assert here.run(*hopeless, study=study) == 0
    stopped = here.loaded(study)
    assert (stopped.status, stopped.manifest["reason"] in capsys.readouterr().out) == ("stopped early", True)
    step = int(stopped.metrics()["step"][-1])
    assert 0 < step < 12
    assert not (stopped.path / "model.safetensors").exists()
    # With the rule it is over; without, it goes on.
    assert here.run(*hopeless, study=study) == 0
    assert load(stopped.path).status == "stopped early"
    capsys.readouterr()
    assert here.run(*hopeless[:2], study=study) == 0
    assert f"resuming from step {step}" in capsys.readouterr().out
    assert load(stopped.path).status == "complete"
    assert here.run(*hopeless[:2], study="whole") == 0
    assert numbers(here.folder("whole")) == numbers(stopped.path)


def test_a_rule_that_cannot_judge_lets_the_job_go_on(here: Here, monkeypatch, capsys):
    def cannot(*_):
        raise ValueError("no law fits 3 points")

    monkeypatch.setattr(registry.get("stop", "median"), "verdict", cannot)
    assert here.run("stop=median") == 0
    assert capsys.readouterr().err.count("no law fits 3 points") == 1
    assert here.loaded().status == "complete"
