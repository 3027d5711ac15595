"""A whole sweep: plan it, launch what is missing, wait for what runs elsewhere, print the table."""

import math
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import Run, provenance
from rwkv_lab.sweeps import job as sweep_job
from rwkv_lab.sweeps import launchers, plan, progress
from rwkv_lab.sweeps.launchers import LauncherSpec
from rwkv_lab.sweeps.plan import Composer, Job, Loader
from rwkv_lab.sweeps.progress import Watch
from rwkv_lab.training.distributed import torchrun
from rwkv_lab.util.console import say, warn
from rwkv_lab.util.paths import IMPORT_ROOT
from rwkv_lab.util.signals import StopSignals

SECONDS_TO_SAVE = 8.0
MOST_LOST_WORKERS = 3


class Launcher(Protocol):
    """Hydra's launcher."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]: ...


def sweep(jobs: Sequence[Sequence[str]], master: DictConfig, loader: Loader, launcher: Launcher) -> None:
    """Run the jobs, each a list of overrides.

    Jobs that another terminal is running are left to it and waited for; what it leaves unfinished is taken over.
    Raises SystemExit(1) unless every job ends complete or stopped early, UserError if none can be composed or a dry run
    has one that cannot.
    """
    if torchrun.ranks():
        raise UserError("a sweep cannot be started under torchrun: its jobs with trainer=ddp start their own processes")
    planned = plan.plan(jobs, Composer(loader, master))
    names = plan.names(planned)
    errors = [f"{name}: {job.error}" for name, job in zip(names, planned, strict=True) if job.error]
    if len(errors) == len(planned):
        raise UserError(str(planned[0].error))
    if any(job.config and job.config.dry_run for job in planned):
        progress.table(names, [progress.job_state(job) for job in planned])
        if errors:
            raise UserError(f"{len(errors)} of {len(planned)} jobs would be left out; the first is {errors[0]}")
        return
    spec = launchers.launcher_policy(master.hydra.launcher, provenance.usable_cores())
    watch = Watch(planned)
    try:
        with progress.watching(watch, repeat=not spec.visible):
            _warn_of_other_code(watch)
            _work_off(watch, spec, launcher)
    except KeyboardInterrupt:
        say("stopping; what has begun is resumable: the same command again goes on from there")
        watch.wait(planned, SECONDS_TO_SAVE)
        raise
    finally:
        states = watch.states()
        progress.table(names, states)
    if any(state.status not in ("complete", "stopped early") for state in states):
        raise SystemExit(1)


def _work_off(watch: Watch, spec: LauncherSpec, launcher: Launcher) -> None:
    todo, lost = [job for job in watch.planned if watch.is_open(job)], 0
    while todo:
        locked: list[Job] = []
        size = spec.batch or len(todo)
        for first in range(0, len(todo), size):
            batch = [job for job in todo[first : first + size] if watch.is_open(job)]
            try:
                locked += _launch(batch, launcher, spec)
            except BrokenProcessPool:
                lost += 1
                warn("a worker of the launcher was killed; what it leaves unfinished is started again")
                locked += batch if lost <= MOST_LOST_WORKERS else []
            watch.look()
        watch.wait(locked)
        todo = [job for job in locked if watch.is_open(job)]


def _launch(batch: Sequence[Job], launcher: Launcher, spec: LauncherSpec) -> list[Job]:
    """Launch the batch; return those of its jobs that another process has."""
    if not batch:
        return []
    root = next(job.path.parents[1] for job in batch if job.path)
    with _importable_in_workers(), _let_jobs_save(root) if spec.tied else nullcontext():
        returned = launcher.launch([job.overrides for job in batch], initial_job_idx=0)
    for each in returned:
        if each.status != JobStatus.COMPLETED:
            # Jobs return how they ended, so this is a fault of the launcher or of this project.
            warn(f"a job could not be started: {each._return_value!r}")
    return [job for job, each in zip(batch, returned, strict=True) if _is_locked(each)]


def _is_locked(returned: JobReturn) -> bool:
    value: Any = returned.return_value if returned.status == JobStatus.COMPLETED else None
    return isinstance(value, float) and math.isnan(value)


def _warn_of_other_code(watch: Watch) -> None:
    fingerprint = provenance.code_fingerprint()
    complete = [job.path for job in watch.planned if job.path and watch.state(job).status == "complete"]
    stale = sum(Run(path).stale(fingerprint) for path in complete)
    if stale:
        warn(
            f"{stale} of the complete runs were made by other code than the present rwkv_lab/ and csrc/; "
            "add rerun=true to redo them"
        )


@contextmanager
def _let_jobs_save(root: Path) -> Iterator[None]:
    """Context manager: a request to stop reaches the workers, and KeyboardInterrupt follows when they have returned.

    joblib, interrupted itself, would kill its workers and all they started before the jobs have saved.
    """
    import psutil  # of the extra that installs this launcher

    marker = sweep_job.stop_marker(root, os.getpid())

    def pass_on() -> None:
        root.mkdir(parents=True, exist_ok=True)
        marker.touch()
        for worker in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                worker.send_signal(signal.SIGINT)

    try:
        with StopSignals(pass_on) as stop:
            try:
                yield
            except BrokenProcessPool:
                if not stop.requested:
                    raise
    finally:
        marker.unlink(missing_ok=True)
    if stop.requested:
        raise KeyboardInterrupt


@contextmanager
def _importable_in_workers() -> Iterator[None]:
    """Context manager: worker processes can import this project, whatever folder the command was typed in."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(IMPORT_ROOT), before)))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
