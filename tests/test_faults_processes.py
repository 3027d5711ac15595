"""Faults that need real processes: signals at any moment, several processes, folders without permission."""

import ctypes
import json
import signal
import time
from pathlib import Path

import pytest

from rwkv_lab.runs import Run
from tests.drill import drill
from tests.lab import TINY, Lab

LONG = (*TINY, "trainer.steps=100000", "trainer.log_every=1", "trainer.eval_every=0")
PATIENCE_SECONDS = 400.0
_PR_CAPBSET_DROP = 24
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2


def wait_for_rows(lab: Lab, study: str, rows: int) -> Path:
    """The folder of the study's one run once metrics.csv has so many rows."""
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        for file in (lab.runs / study).glob("*/metrics.csv"):
            if file.read_text().count("\n") > rows:
                return file.parent
        time.sleep(0.02)
    raise AssertionError("the run has not begun")


@pytest.mark.slow
def test_stopped_while_training(lab: Lab) -> None:
    process = lab.start("run.py", *LONG, "study=stopped")
    run = Run(wait_for_rows(lab, "stopped", 3))
    assert run.status == "running"
    busy = lab.run(*LONG, "study=stopped", expect=1)
    assert f"is running in another process (pid {process.pid})" in busy.stdout
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130, err
    assert "the checkpoint is saved: the same command again goes on from there" in out
    assert "Traceback" not in out + err
    stopped_at = int(run.metrics()["step"][-1])
    assert json.loads(sorted((run.path / "checkpoints").glob("*.json"))[-1].read_text())["step"] == stopped_at
    assert Run(run.path).status == "interrupted"


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.6, 1.6])
def test_stopped_before_training(lab: Lab, seconds: float) -> None:
    process = lab.start("run.py", *LONG, "study=stopped_early")
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130, err
    assert "the same command" in out + err
    assert "Traceback" not in out + err


@pytest.mark.slow
def test_two_processes_start_the_same_run(lab: Lab) -> None:
    command = ("run.py", "debug=smoke", *TINY, "study=twice", "trainer.steps=40", "trainer.checkpoint_every=1")
    both = [lab.start(*command) for _ in range(2)]
    ended = [(process.communicate(timeout=PATIENCE_SECONDS), process.returncode) for process in both]
    codes = sorted(code for _, code in ended)
    words = "".join(out for (out, _), _ in ended)
    assert codes == [0, 1] or (codes == [0, 0] and "already complete" in words), ended
    assert "running in another process" in words or "already complete" in words
    run = Run(lab.only_run("twice"))
    assert run.status == "complete"
    assert run.metrics()["step"].tolist() == list(range(1, 41))


def without_permission() -> None:
    """Takes from root, for a process about to start, the right to ignore permissions."""
    libc = ctypes.CDLL(None)
    for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)


@pytest.mark.slow
def test_folder_that_cannot_be_written(lab: Lab) -> None:
    runs = lab.runs / "read_only"
    runs.mkdir(parents=True)
    runs.chmod(0o555)
    try:
        probe = lab.start("-c", f"open({str(runs / 'probe')!r}, 'w')", preexec_fn=without_permission)
        if "PermissionError" not in probe.communicate()[1]:
            pytest.skip("permissions do not bind here: root with every capability")
        done = lab.run("debug=smoke", *TINY, "study=read_only", expect=2, preexec_fn=without_permission)
    finally:
        runs.chmod(0o755)
    assert done.stderr.startswith("error: the run directory ")
    assert done.stderr.endswith("cannot be written: Permission denied\n")
    assert not list(runs.iterdir())


@pytest.mark.slow
def test_drill(lab: Lab) -> None:
    hits, wrong, compared = drill(lab, kills=2, seed=3)
    assert [hit.moment for hit in hits] == ["training", "saving"]
    assert compared > 10_000
    assert wrong == 0
