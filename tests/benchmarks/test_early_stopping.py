"""Replays of stop rules: what a rule that is known in advance spends."""

from dataclasses import dataclass

import numpy as np
import pytest

from benchmarks import early_stopping
from rwkv_lab.config.errors import main_guard
from rwkv_lab.config.kinds import StopConfig
from rwkv_lab.sweeps.stopping.curves import GO_ON, JobCurve, Verdict

STEPS = np.arange(10, 101, 10)


def job(final: float) -> JobCurve:
    loss = final + (4 - final) * (1 - STEPS / 100) ** 2
    return JobCurve(f"{final}", STEPS, loss, 100, complete=True)


@dataclass
class Behind(StopConfig):
    """Gives up whatever is behind the best of the others at the same step."""

    name: str = "behind"

    def verdict(self, job, others):
        rivals = [other.loss[i] for other in others if (i := other.first_at(job.done)) is not None]
        return Verdict("behind") if rivals and job.loss[-1] > min(rivals) else GO_ON


def test_a_replay_spends_what_the_rule_lets_it():
    jobs = [job(final) for final in (2.0, 1.5, 1.8)]
    found = early_stopping.replay(Behind(after=0.3), jobs, (0, 1, 2))
    assert found.spent == (100, 100, 30) and found.reasons == ("", "", "behind")
    assert found.share == pytest.approx(230 / 300)
    assert found.winner == 1 and found.kept and found.lost == 0
    # The winner first, then nothing else is worth its while.
    assert early_stopping.replay(Behind(after=0.3), jobs, (1, 0, 2)).spent == (30, 100, 30)


def test_a_false_stop_is_counted():
    class Wrong(Behind):
        def verdict(self, job, others):
            return Verdict("wrong") if others else GO_ON

    found = early_stopping.replay(Wrong(after=0.5), [job(2.0), job(1.5)], (0, 1))
    assert not found.kept and found.lost == pytest.approx(0.5)
    assert early_stopping.summary([found]).startswith("0 of 1 | 1 | 75 %")


def test_a_rule_that_fails_lets_the_job_go_on():
    class Failing(Behind):
        def verdict(self, job, others):
            raise ValueError("no law fits 3 points")

    assert early_stopping.replay(Failing(), [job(2.0), job(1.5)], (0, 1)).share == 1


def test_orders_are_the_same_every_time():
    assert early_stopping.orders(5, 3) == early_stopping.orders(5, 3)
    assert len(set(early_stopping.orders(24, 20))) == 20


def test_a_study_that_is_not_complete_is_refused(tmp_path, capsys):
    assert main_guard(lambda: early_stopping.main([str(tmp_path / "nothing")])) == 2
    assert "nothing" in capsys.readouterr().err
