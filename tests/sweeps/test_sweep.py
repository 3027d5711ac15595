"""Planning a sweep, its progress, a job's own process, and the sharing of cores and GPUs."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import Run, provenance
from rwkv_lab.runs.manifest import write_manifest
from rwkv_lab.sweeps import job as sweep_job
from rwkv_lab.sweeps import launchers, plan, progress
from rwkv_lab.sweeps.plan import Job
from rwkv_lab.sweeps.progress import Watch
from rwkv_lab.training.distributed import launch
from rwkv_lab.util.subprocesses import Ended, run_child
from tests.composing import checked, compose, hydra_context
from tests.lab import TINY


@pytest.fixture(scope="module", autouse=True)
def context():
    with hydra_context():
        yield


def job(path, **manifest) -> Job:
    """A job whose run.json is ``manifest``; without one it has not begun."""
    if manifest:
        path.mkdir(exist_ok=True)
        (path / "run.json").write_text(json.dumps({"format": 1, "ended": "2026-01-01T00:00:00+00:00"} | manifest))
    # Each job has a seed of its own, and so a name.
    return Job([f"seed={path.name}"], checked(*TINY, f"seed={ord(path.name[0])}"), path)


def complete(loss: float) -> dict:
    return {"status": "complete", "seconds": 2.0, "result": {"val_loss": loss, "val_bpb": 1.0, "tokens_per_second": 5}}


@pytest.fixture
def loader(context):
    return GlobalHydra.instance().config_loader()


@pytest.fixture
def master(loader):
    return loader.load_configuration("config", [], RunMode.MULTIRUN)


@pytest.fixture
def composer(loader, master):
    return plan.Composer(loader, master)


class TestPlan:
    def test_a_job_that_cannot_be_composed_stays_in_the_plan(self):
        planned = plan.plan([["seed=1"], ["seed=-1"], ["model.n_lair=3"]], lambda job: compose(*TINY, *job))
        assert [bool(each.path) for each in planned] == [True, False, False]
        assert planned[1].error.startswith("seed ")
        assert planned[2].error.startswith("model.n_lair ")

    def test_one_model_only_fits_a_setting(self, composer):
        jobs = [[f"model={model}", "model.n_head=4"] for model in ("rwkv_v4", "mha_pro")]
        without, with_heads = plan.plan(jobs, composer)
        assert without.error.startswith("model.n_head ") and with_heads.config.model.n_head == 4

    def test_a_copy_with_settings_is_what_hydra_composes(self, composer, loader, master):
        words = ["model=mha_pro", "schedule=wsd", "schedule.decay_fraction=0.3", "seed=5", "optimizer.betas=[0.8,0.9]"]
        words += ["study=other", "trainer.tokens=2k", "size=small", "model.n_layer=2"]
        (job,) = plan.plan([words], composer)
        assert (job.config, job.path) == plan.checked(loader.load_sweep_config(master, words))

    def test_groups_are_composed_once(self, composer, loader, monkeypatch):
        composed = []
        load = loader.load_sweep_config
        monkeypatch.setattr(loader, "load_sweep_config", lambda *args: composed.append(args) or load(*args))
        jobs = [[f"model={model}", f"seed={seed}"] for model in ("rwkv_v3", "mha_pro") for seed in range(10)]
        assert len({job.path for job in plan.plan(jobs, composer)}) == 20
        assert len(composed) == 2

    def test_jobs_do_not_share_what_a_check_changes(self, composer):
        first, second = plan.plan([["seed=1"], ["seed=2"]], composer)
        first.config.schedule.lr_init = 5.0
        assert second.config.schedule.lr_init != 5.0

    def test_settings_of_groups_wait_for_the_jobs(self):
        words = ["-m", "model=rwkv_v4,mha_pro", "model.n_head=4", "optimizer.betas=[0.9,0.99]", "seed=1", "+model.x=1"]
        words += ["schedule.lr_init=1e-3,2e-3", "data.path='a b.txt'", "model.n_layer=", "~size", "model.emb_norm=null"]
        assert [new for old, new in zip(words, plan.defer(words), strict=True) if old != new] == [
            "model.n_head=choice(4)",
            "optimizer.betas=choice([0.9,0.99])",
            "data.path=choice('a b.txt')",
        ]

    def test_the_same_run_twice_is_refused(self):
        with pytest.raises(UserError, match="two jobs of the sweep are the same run"):
            plan.plan([["trainer.tokens=2M"], ["trainer.tokens=2e6"]], lambda job: compose(*TINY, *job))

    def test_a_recipe_by_model(self):
        rates = {
            model: checked("experiments=arch_comparison_paper", f"model={model}", "data=builtin")
            for model in ("rwkv_v1", "mha_pro")
        }
        assert (rates["rwkv_v1"].schedule.lr_init, rates["mha_pro"].schedule.lr_init) == (6e-4, 4e-4)
        assert (rates["rwkv_v1"].optimizer.weight_decay, rates["mha_pro"].optimizer.weight_decay) == (0, 0.01)
        assert checked("experiments=arch_comparison_paper", "data=builtin", "schedule.lr_init=1").schedule.lr_init == 1


class TestProgress:
    def test_counts_in_a_fixed_order(self, tmp_path):
        jobs = [job(tmp_path / "a"), job(tmp_path / "b", **complete(1.0)), job(tmp_path / "c", status="failed")]
        states = [progress.job_state(each) for each in jobs]
        assert progress.counted(states) == "1 complete, 1 failed, 1 pending"

    def test_an_unfinished_run_counts_by_its_updates(self, tmp_path):
        begun = job(tmp_path / "a", status="running", steps=40)
        (tmp_path / "a" / "metrics.csv").write_text("step,tokens\n10,100\n")
        seen = progress.job_state(begun)
        assert (seen.status, seen.done) == ("interrupted", 0.25)

    @pytest.mark.parametrize(
        ("elapsed", "at_start", "now", "jobs", "left"),
        [(60, 0, 1, 4, 180), (60, 2, 3, 4, 60), (60, 0, 4, 4, 0), (5, 0, 0, 4, None), (60, 1, 1, 4, None)],
    )
    def test_time_left(self, elapsed, at_start, now, jobs, left):
        assert progress.seconds_left(elapsed, at_start, now, jobs) == left

    def test_the_end_of_a_job_is_printed_once(self, tmp_path, capsys):
        jobs = [job(tmp_path / name) for name in "abc"] + [Job(["seed=-1"], None, None, "seed=-1 is out of range")]
        watch = Watch(jobs)
        watch.start()
        assert capsys.readouterr().out == "4 jobs: 1 left out, 3 pending\nleft out: seed=-1: seed=-1 is out of range\n"
        job(tmp_path / "a", **complete(1.5))
        job(tmp_path / "b", status="failed", reason="the loss became nan at step 3")
        watch.look()
        said = capsys.readouterr().out
        assert "complete: seed 97  val_loss 1.5000" in said
        assert "failed: seed 98: the loss became nan at step 3" in said
        assert "1 complete, 1 failed, 1 left out, 1 pending; 75 % done, about" in said
        watch.look()
        assert capsys.readouterr().out == ""

    def test_earlier_failures_are_to_be_tried_and_earlier_results_only_with_rerun(self, tmp_path):
        failed = job(tmp_path / "a", status="failed")
        done = job(tmp_path / "b", **complete(1.0))
        watch = Watch([failed, done])
        watch.start()
        assert [watch.is_open(failed), watch.is_open(done)] == [True, False]
        job(tmp_path / "a", status="failed", ended="2026-01-02T00:00:00+00:00")
        assert not watch.is_open(failed)
        again = Job(done.overrides, checked(*TINY, "rerun=true"), done.path)
        watch = Watch([again])
        watch.start()
        assert watch.is_open(again)
        job(tmp_path / "b", **complete(1.0), ended="2026-01-02T00:00:00+00:00")
        assert not watch.is_open(again)

    def test_the_table_shows_reasons(self, tmp_path, capsys):
        jobs = [job(tmp_path / "a", **complete(1.25)), job(tmp_path / "b", status="failed", reason="out of memory")]
        progress.table(plan.names(jobs), [progress.job_state(each) for each in jobs])
        said = capsys.readouterr().out
        assert "1.2500" in said
        assert "failed: seed 98: out of memory" in said
        assert "1 complete, 1 failed" in said

    @pytest.mark.parametrize("width", [40, 60, 80])
    def test_the_table_fits_a_narrow_terminal(self, tmp_path, capsys, width):
        rows = ["a rather long name of a run by four of its keys", "b"]
        jobs = [job(tmp_path / "a", **complete(1.25)), job(tmp_path / "b", **complete(2.5))]
        progress.table(rows, [progress.job_state(each) for each in jobs], width)
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= width
        assert all(
            len(line.split("complete")[0]) == len(lines[0].split("status")[0])
            for line in lines
            if " complete" in line and line != lines[-1]
        )
        assert "1.0000" in "".join(lines)

    def test_only_the_end_of_a_long_log_is_read(self, tmp_path):
        begun = job(tmp_path / "a", status="running", steps=200_000)
        rows = "".join(f"{i},1.5\n" for i in range(1, 100_001))
        (tmp_path / "a" / "metrics.csv").write_text("step,train_loss\n" + rows + "100001,1.")
        size = (tmp_path / "a" / "metrics.csv").stat().st_size
        with open(tmp_path / "a" / "metrics.csv", "r+b") as file:
            # What lies between the header and the end does not matter, not even as bytes.
            file.seek(100)
            file.write(b"\xff" * (size - 10_000))
        assert progress.job_state(begun).step == 100_000

    def test_a_stopped_job_is_over_only_under_a_stop_rule(self, tmp_path):
        manifest = {"status": "stopped early", "steps": 100, "forecast": {"loss": 2.0, "low": 1.92, "high": 2.01}}
        stopped = job(tmp_path / "a", **manifest, reason="forecast 1.92–2.01 at 30 %; best 1.80")
        (tmp_path / "a" / "metrics.csv").write_text("step,val_loss\n30,3.0\n")
        assert progress.job_state(stopped).status == "interrupted"
        ruled = Job(stopped.overrides, checked(*TINY, "stop=median"), stopped.path)
        state = progress.job_state(ruled)
        assert (state.status, state.step, state.saved, state.done) == ("stopped early", 30, 70, 1.0)
        assert sweep_job.is_over("stopped early", ruled.config)
        assert not sweep_job.is_over("stopped early", stopped.config)
        assert sweep_job.outcome(ruled.path, ruled.config, [], Ended(0, False, "")) == 2.0
        # A rule without forecasts leaves the last measured loss.
        write_manifest(tmp_path / "a", {key: value for key, value in manifest.items() if key != "forecast"})
        assert sweep_job.outcome(ruled.path, ruled.config, [], Ended(0, False, "")) == 3.0


class TestJob:
    def test_the_command_is_run_py(self):
        command = sweep_job.command(["seed=3", "trainer=ddp"])
        assert command[1].endswith("run.py") and command[2:] == ["seed=3", "trainer=ddp", "hydra.mode=RUN"]

    def test_a_death_without_a_word_is_recorded(self, tmp_path):
        config = checked(*TINY)
        never_begun, begun, done = tmp_path / "m-d-s1-aaaaaaaa", tmp_path / "b", tmp_path / "c"
        job(begun, status="running", ended=None)
        job(done, **complete(1.0))
        killed = Ended(-signal.SIGKILL, False, "")
        for path in (never_begun, begun, done):
            sweep_job.outcome(path, config, ["seed=1"], killed)
        assert Run(never_begun).manifest["reason"].startswith("killed by SIGKILL")
        assert Run(never_begun).manifest["id"] == "aaaaaaaa"
        assert (Run(begun).status, Run(done).status) == ("failed", "complete")

    def test_a_stopped_job_stays_resumable(self, tmp_path):
        job(tmp_path / "a", status="running")
        loss = sweep_job.outcome(tmp_path / "a", checked(*TINY), [], Ended(-signal.SIGTERM, False, ""))
        assert loss == float("inf")
        assert Run(tmp_path / "a").status == "interrupted"


class TestChild:
    def test_exit_code_and_last_words(self, capfd):
        script = "import sys; print('error: it broke', file=sys.stderr); print('unseen'); sys.exit(3)"
        ended = run_child([sys.executable, "-c", script], {}, quiet=True)
        assert (ended.code, ended.stopped, ended.reason) == (3, False, "it broke")
        out, err = capfd.readouterr()
        assert (out, err) == ("", "error: it broke\n")

    def test_a_request_to_stop_reaches_the_child_once(self, tmp_path):
        script = (
            "import pathlib, signal, sys, time\n"
            "signal.signal(signal.SIGTERM, lambda *_: (print('saving', flush=True), sys.exit(130)))\n"
            f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
            "time.sleep(60)\n"
        )

        def interrupt_when_ready() -> None:
            while not (tmp_path / "ready").exists():
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt_when_ready).start()
        ended = run_child([sys.executable, "-c", script], {}, quiet=False)
        assert (ended.code, ended.stopped) == (130, True)

    @pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at the parent's death")
    def test_a_hard_killed_parent_leaves_no_child(self, tmp_path):
        note = f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))"
        child = f"import os, pathlib, time; {note}; time.sleep(60)"
        call = f"run_child([sys.executable, '-c', {child!r}], {{}}, quiet=False)"
        script = f"import sys; from rwkv_lab.util.subprocesses import run_child; {call}"
        parent = subprocess.Popen([sys.executable, "-c", script])
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.02)
        pid = int((tmp_path / "pid").read_text())
        parent.kill()
        parent.wait()
        until = time.monotonic() + 20
        while _alive(pid) and time.monotonic() < until:
            time.sleep(0.02)
        assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class TestSharing:
    @pytest.mark.parametrize(
        ("choice", "threads", "batch", "visible"),
        [("basic", None, 1, True), ("cores", 1, None, False), ("background", 1, 6, False), ("slurm", 8, None, False)],
    )
    def test_threads_add_up_to_the_cores(self, choice, threads, batch, visible):
        configured = compose(f"hydra/launcher={choice}", hydra=True).hydra.launcher
        spec = launchers.launcher_policy(configured, cores=6)
        assert (spec.threads, spec.batch, spec.visible) == (threads, batch, visible)

    @pytest.mark.parametrize(("jobs", "threads"), [(1, 6), (2, 3), (4, 1), (-1, 1), (-2, 1), (12, 1)])
    def test_threads_of_jobs_side_by_side(self, jobs, threads):
        launcher = OmegaConf.create({"_target_": "x.JoblibLauncher", "n_jobs": jobs})
        assert launchers.launcher_policy(launcher, cores=6).threads == threads

    def test_processes_of_one_job_share_its_threads(self):
        given = sweep_job.threads(launchers.LauncherSpec(threads=8, batch=None))
        assert [launch.threads(processes, given) for processes in (1, 4, 16)] == [8, 2, 1]
        assert sweep_job.threads(launchers.LauncherSpec(threads=None, batch=1)) == {}
        assert launch.threads(1, {}) == launch.threads(1, {"OMP_NUM_THREADS": "4,2"}) == provenance.usable_cores()

    def test_each_job_takes_the_gpu_with_fewest_jobs(self, tmp_path):
        two = ["0", "1"]
        with (
            launchers.gpu_lock(two, tmp_path) as first,
            launchers.gpu_lock(two, tmp_path) as second,
            launchers.gpu_lock(two, tmp_path) as third,
        ):
            assert (first, second, third) == ("0", "1", "0")
        with launchers.gpu_lock(["0", "1"], tmp_path) as again, launchers.gpu_lock([], tmp_path) as none:
            assert (again, none) == ("0", None)

    def test_visible_gpus(self, tmp_path, monkeypatch):
        for name in ("0000:01:00.0", "0000:02:00.0"):
            (tmp_path / name).mkdir()
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        assert launchers.visible_gpus(tmp_path) == ["0", "1"]
        assert launchers.visible_gpus(tmp_path / "nowhere") == []
        # One cut into two parts, one whole.
        (tmp_path / "nvidia-smi").write_text(
            "#!/bin/sh\n"
            "echo 'GPU 0: A card (UUID: GPU-1)'\n"
            "echo '  MIG 3g.40gb     Device  0: (UUID: MIG-a)'\n"
            "echo '  MIG 3g.40gb     Device  1: (UUID: MIG-b)'\n"
            "echo 'GPU 1: A card (UUID: GPU-2)'\n"
        )
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        assert launchers.visible_gpus(tmp_path / "nowhere") == ["MIG-a", "MIG-b", "1"]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-5")
        assert launchers.visible_gpus(tmp_path) == ["2", "GPU-5"]
