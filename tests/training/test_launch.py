"""``run.py trainer=ddp`` starts its own processes: one sentence, one exit code, none of them left behind."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import Run, read_metrics
from rwkv_lab.training.distributed import launch, torchrun
from rwkv_lab.util.signals import SAME_REQUEST_SECONDS
from rwkv_lab.util.subprocesses import end_with_parent
from tests.lab import TINY, Lab

TWO = ("trainer=ddp", "trainer.processes=2")
LONG = (*TINY, *TWO, "trainer.steps=100000", "trainer.log_every=1", "trainer.eval_every=0")
PATIENCE_SECONDS = 400.0


def until(true: Callable[[], bool], process: subprocess.Popen) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "what the test waits for does not come"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """The processes ``pid`` has started, in their order."""
    found = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [line.split() for line in found.splitlines()]
    return sorted(int(child) for child, parent in pairs if int(parent) == pid)


def start(lab: Lab, study: str) -> tuple[subprocess.Popen, Run, list[int]]:
    """A run of two processes that has logged some updates."""
    process = lab.start("run.py", *LONG, f"study={study}")

    def logged() -> bool:
        files = list((lab.runs / study).glob("*/metrics.csv"))
        return bool(files) and files[0].read_text().count("\n") > 3

    until(logged, process)
    return process, Run(lab.only_run(study)), children(process.pid)


def wait_for_the_end(pids: list[int]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end, "a process stays behind"
        time.sleep(0.02)


def failure(code: int, at: int = 0) -> SimpleNamespace:
    return SimpleNamespace(exitcode=code, timestamp=at)


@pytest.mark.parametrize(
    ("failures", "code", "sentence"),
    [
        ({0: failure(2), 1: failure(130)}, 2, ""),
        ({0: failure(2), 1: failure(-signal.SIGTERM)}, 2, ""),
        ({0: failure(130), 1: failure(130)}, 130, ""),
        ({0: failure(torchrun.LOST_TOUCH), 1: failure(1)}, 1, ""),
        ({0: failure(1), 1: failure(-signal.SIGKILL, 30)}, 1, ""),
        ({1: failure(-signal.SIGKILL), 0: failure(torchrun.LOST_TOUCH)}, 1, "process 2 of 2 was killed by SIGKILL"),
        ({0: failure(-signal.SIGSEGV), 1: failure(-signal.SIGTERM)}, 1, "process 1 of 2 was killed by SIGSEGV;"),
        ({0: failure(torchrun.LOST_TOUCH), 1: failure(torchrun.LOST_TOUCH)}, 1, "lost touch"),
    ],
)
def test_how_a_run_of_several_ends(failures: dict, code: int, sentence: str, capsys) -> None:
    assert launch._end(failures, 2) == code
    said = capsys.readouterr().err
    assert said.count("\n") == bool(sentence)
    assert sentence in said


def test_how_many_processes(monkeypatch) -> None:
    trainer = SimpleNamespace(processes=None, device="auto")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert launch.count(trainer) == 3
    trainer.processes = 4
    with pytest.raises(UserError, match=r"trainer\.processes=4 is more than the 3 GPUs here"):
        launch.count(trainer)
    trainer.device = "cpu"
    assert launch.count(trainer) == 4
    trainer.processes = None
    assert launch.count(trainer) == launch.usable_cores()


def test_a_rank_knows_who_started_it(monkeypatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", torchrun.run_id(os.getppid()))
    assert torchrun.launcher() == os.getppid()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "3f0c6a4e")
    assert torchrun.launcher() is None


def test_a_rank_whose_parent_has_died_does_not_begin(monkeypatch) -> None:
    monkeypatch.setattr("rwkv_lab.util.subprocesses.sys.platform", "elsewhere")
    end_with_parent(os.getppid())
    with pytest.raises(KeyboardInterrupt):
        end_with_parent(1 if os.getppid() != 1 else 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["seed=x"], "seed"),
        (["trainer.processes=3"], "trainer.batch_size=8"),
        (["model.init_from={lab}/garbage"], "garbage"),
        (["schedule.warmup_steps=1000", "trainer.steps=2"], "schedule.warmup_steps=1000"),
    ],
)
def test_a_mistake_is_one_sentence(lab: Lab, overrides: list[str], key: str) -> None:
    (lab.root / "garbage").write_bytes(b"garbage" * 100)
    words = [override.format(lab=lab.root) for override in overrides]
    done = lab.run(*TINY, *TWO, *words, "study=mistaken", expect=2)
    assert done.stderr.startswith("error: ")
    assert key in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not list((lab.runs / "mistaken").glob("*/run.json"))


@pytest.mark.slow
def test_a_mistake_of_a_job_in_a_sweep(lab: Lab) -> None:
    (lab.root / "garbage").write_bytes(b"garbage" * 100)
    words = ("debug=smoke", *TINY, *TWO, f"model.init_from={lab.root}/garbage,null", "study=half_mistaken")
    done = lab.run("-m", *words, expect=1)
    assert "1 complete, 1 left out" in done.stdout
    assert "garbage" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_resumed(lab: Lab, number: signal.Signals) -> None:
    study = f"stopped_{number.name}"
    process, run, ranks = start(lab, study)
    assert len(ranks) == 2
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130, err
    assert out.count("the checkpoint is saved: the same command again goes on from there") == 1
    assert err == ""
    wait_for_the_end(ranks)
    assert Run(run.path).status == "interrupted"
    done = int(read_metrics(run.path / "metrics.csv")["step"][-1])
    assert (run.path / "checkpoints" / f"step-{done:09d}.json").exists()
    # On, and stopped again by its parent's death.
    process = lab.start("run.py", *LONG, f"study={study}")
    rows = run.path / "metrics.csv"
    until(lambda: len(read_metrics(rows)["step"]) > done + 2, process)
    ranks = children(process.pid)
    process.kill()
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert f"resuming from step {done}" in out
    assert "Traceback" not in err
    wait_for_the_end(ranks)
    assert Run(run.path).status == "interrupted"


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_a_killed_process_is_said_and_takes_the_others_along(lab: Lab, which: int) -> None:
    process, run, ranks = start(lab, f"rank_{which}_killed")
    os.kill(ranks[which], signal.SIGKILL)
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert err.startswith(f"failed: process {which + 1} of 2 was killed by SIGKILL")
    assert err.count("\n") == 1
    wait_for_the_end(ranks)
    assert Run(run.path).status in ("failed", "interrupted")


@pytest.mark.slow
def test_a_second_request_does_not_wait_for_a_process_that_hangs(lab: Lab) -> None:
    process, _, ranks = start(lab, "hanging")
    os.kill(ranks[1], signal.SIGSTOP)
    try:
        process.send_signal(signal.SIGINT)
        time.sleep(SAME_REQUEST_SECONDS + 0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_SECONDS) == 130
    finally:
        os.kill(ranks[1], signal.SIGCONT)
    wait_for_the_end(ranks)
    assert "Traceback" not in "".join(process.communicate())


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_said_once(lab: Lab) -> None:
    done = lab.run(*LONG, "study=not_finite", "schedule.lr_init=1e30", expect=1)
    assert done.stderr.startswith("failed: the ")
    assert "became" in done.stderr
    assert done.stderr.count("\n") == 1
    assert Run(lab.only_run("not_finite")).status == "failed"


@pytest.mark.slow
def test_a_killed_sweep_leaves_no_rank_behind(lab: Lab) -> None:
    sweep = lab.start("run.py", "-m", *LONG, "seed=1,2", "study=swept")
    until(lambda: any((lab.runs / "swept").glob("*/metrics.csv")), sweep)
    (launcher,) = children(sweep.pid)
    ranks = children(launcher)
    assert len(ranks) == 2
    sweep.kill()
    _, err = sweep.communicate(timeout=PATIENCE_SECONDS)
    assert "Traceback" not in err
    wait_for_the_end([launcher, *ranks])
    assert Run(lab.only_run("swept")).status == "interrupted"
