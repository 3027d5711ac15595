"""Sweeps that are stopped, killed, shared by two terminals, or have jobs that fail."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rwkv_lab.runs import Run, find, is_run, read_metrics
from tests.lab import TINY, Lab

pytestmark = pytest.mark.slow

SWEEP = (
    *("-m", *TINY, "trainer.steps=700", "trainer.batch_size=4", "trainer.log_every=1", "trainer.eval_every=0"),
    *("trainer.eval_tokens=256", "trainer.sample_length=0"),
)
PATIENCE_SECONDS = 240.0


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < end, "what the test waits for does not come"
        time.sleep(0.02)


def begun(lab: Lab, study: str) -> list[Run]:
    """Runs of a study that have logged an update."""
    folders = [path.parent for path in (lab.runs / study).glob("*/run.json")]
    return [Run(path) for path in folders if len(read_metrics(path / "metrics.csv").get("step", ()))]


def running(lab: Lab, study: str) -> list[Run]:
    return [run for run in begun(lab, study) if run.status == "running"]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_ctrl_c_then_two_terminals_share_what_is_left(lab: Lab):
    sweep = lab.start("run.py", *SWEEP, "seed=1,2", "study=shared", "hydra/launcher=cores", process_group=0)
    until(lambda: running(lab, "shared"))
    os.killpg(sweep.pid, signal.SIGINT)
    out, _ = sweep.communicate(timeout=PATIENCE_SECONDS)
    assert sweep.returncode == 130
    assert "the same command again goes on" in out
    stopped = [run for run in begun(lab, "shared") if run.status == "interrupted"]
    assert stopped
    steps = {run.name: len(read_metrics(run.path / "metrics.csv")["step"]) for run in stopped}
    for run in stopped:
        assert list((run.path / "checkpoints").glob("*.json"))
    complete = sum(run.status == "complete" for run in begun(lab, "shared"))

    # Widened by a third job, in two terminals at once.
    both = [lab.start("run.py", *SWEEP, "seed=1,2,3", "study=shared") for _ in range(2)]
    outputs = [terminal.communicate(timeout=PATIENCE_SECONDS)[0] for terminal in both]
    assert [terminal.returncode for terminal in both] == [0, 0]
    assert sum(output.count("device cpu") for output in outputs) == 3 - complete
    assert all("3 complete" in output for output in outputs)
    for run in find(lab.runs / "shared"):
        logged = read_metrics(run.path / "metrics.csv")["step"]
        assert logged.tolist() == list(range(1, 701))
        if run.name in steps:
            assert f"resuming from step {steps[run.name]}" in "".join(outputs)

    again = lab.run(*SWEEP, "seed=1,2,3", "study=shared")
    assert "3 jobs: 3 complete" in again.stdout
    assert "device cpu" not in again.stdout


def test_failing_jobs_are_reported_and_the_others_go_on(lab: Lab):
    rates = "schedule.lr_init=1e30,2e-3,1e-3"
    sweep = lab.start("run.py", *SWEEP, rates, "study=failing")
    until(lambda: {"failed", "running"} <= {run.status for run in begun(lab, "failing")})
    (second,) = running(lab, "failing")
    os.kill(second.manifest["pid"], signal.SIGKILL)
    out, _ = sweep.communicate(timeout=PATIENCE_SECONDS)
    assert sweep.returncode == 1
    assert "failed: " in out.partition("3 jobs")[2]
    assert "1 complete, 2 failed" in out
    reasons = sorted(run.manifest["reason"] for run in find(lab.runs / "failing") if run.status == "failed")
    assert reasons[0].startswith("killed by SIGKILL")
    assert reasons[1].startswith("the ") and "became" in reasons[1]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the worker through /proc")
def test_a_killed_worker_is_replaced_and_a_killed_parent_leaves_nothing_behind(lab: Lab):
    sweep = lab.start("run.py", *SWEEP, "seed=1,2", "study=killed", "hydra/launcher=cores", "hydra.launcher.n_jobs=2")
    until(lambda: running(lab, "killed"))
    run = running(lab, "killed")[0]
    first = run.manifest["pid"]
    # The job is forked from a server that the worker started.
    os.kill(parent_of(parent_of(first)), signal.SIGKILL)
    until(lambda: is_run(run.path) and Run(run.path).manifest["pid"] != first)
    second = Run(run.path).manifest["pid"]
    sweep.kill()
    _, err = sweep.communicate(timeout=PATIENCE_SECONDS)
    assert "a worker of the launcher was killed" in err
    until(lambda: not Path(f"/proc/{second}").exists())
    left = Run(run.path)
    assert left.status in ("interrupted", "complete"), left.manifest.get("reason")
