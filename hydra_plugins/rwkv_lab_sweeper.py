"""Hydra's basic sweeper over runs as build targets; Hydra finds plugins in this folder."""

import math
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import Run, provenance
from rwkv_lab.sweeps import launchers, plan, progress
from rwkv_lab.sweeps.launchers import Manner
from rwkv_lab.sweeps.plan import Job
from rwkv_lab.sweeps.progress import Watch
from rwkv_lab.training.distributed.torchrun import ranks
from rwkv_lab.util.console import say, warn
from rwkv_lab.util.paths import REPOSITORY

SECONDS_TO_SAVE = 8.0
MOST_LOST_WORKERS = 3


class StudySweeper(BasicSweeper):
    """Plans the whole sweep, launches what is missing, and prints the table of all jobs; exit code 1 unless complete.

    Jobs that another terminal is running are left to it and waited for; what it leaves unfinished is taken over.
    """

    def setup(self, *, config: DictConfig, **others: Any) -> None:
        if ranks():
            raise UserError(
                "a sweep is not started under torchrun: its jobs with trainer=ddp start their own processes"
            )
        super().setup(config=config, **others)

    def sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None and self.hydra_context is not None
        texts = [*plan.parameters(self.params or {}), *arguments]
        overrides = OverridesParser.create(self.hydra_context.config_loader).parse_overrides(texts)
        plan.refuse_sweeping(overrides)
        jobs = [job for batch in self.split_arguments(overrides, None) for job in batch]
        loader, master = self.hydra_context.config_loader, self.config
        planned = plan.plan(jobs, lambda job: loader.load_sweep_config(master, list(job)))
        if any(job.config and job.config.dry_run for job in planned):
            progress.table(planned, [progress.see(job) for job in planned])
            return []
        manner = launchers.manner(self.config.hydra.launcher, provenance.usable_cores())
        watch = Watch(planned)
        try:
            with _stop_on_sigterm(), progress.watching(watch, repeat=not manner.visible):
                _warn_of_other_code(watch)
                self._work_off(watch, manner)
        except KeyboardInterrupt:
            say("stopping; what has begun is resumable: the same command again goes on from there")
            watch.wait(planned, SECONDS_TO_SAVE)
            raise
        finally:
            states = watch.states()
            progress.table(planned, states)
        if any(seen.status != "complete" for seen in states):
            raise SystemExit(1)
        return []

    def _work_off(self, watch: Watch, manner: Manner) -> None:
        todo, lost = [job for job in watch.planned if watch.is_open(job)], 0
        while todo:
            busy: list[Job] = []
            size = manner.batch or len(todo)
            for first in range(0, len(todo), size):
                batch = [job for job in todo[first : first + size] if watch.is_open(job)]
                try:
                    busy += self._launch(batch)
                except BrokenProcessPool:
                    lost += 1
                    warn("a worker of the launcher was killed; what it leaves unfinished is started again")
                    busy += batch if lost <= MOST_LOST_WORKERS else []
                watch.look()
            watch.wait(busy)
            todo = [job for job in busy if watch.is_open(job)]

    def _launch(self, batch: Sequence[Job]) -> list[Job]:
        """Launches the batch and returns those of its jobs that another process has."""
        if not batch:
            return []
        assert self.launcher is not None
        with _importable_in_workers():
            returned = self.launcher.launch([job.overrides for job in batch], initial_job_idx=0)
        for each in returned:
            if each.status != JobStatus.COMPLETED:
                # Jobs return what became of them, so this is a fault of the launcher or of ours.
                warn(f"a job could not be started: {each._return_value!r}")
        return [job for job, each in zip(batch, returned, strict=True) if _is_busy(each)]


def _is_busy(returned: JobReturn) -> bool:
    return returned.status == JobStatus.COMPLETED and math.isnan(returned.return_value)


def _warn_of_other_code(watch: Watch) -> None:
    fingerprint = provenance.code_fingerprint()
    done = [job for job in watch.planned if job.path and watch.state(job).status == "complete"]
    stale = sum(Run(job.path).stale(fingerprint) for job in done if job.path)
    if stale:
        warn(
            f"{stale} of the complete runs were made by other code than the present rwkv_lab/ and csrc/; "
            "add rerun=true to redo them"
        )


@contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """SIGTERM stops the sweep as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _importable_in_workers() -> Iterator[None]:
    """Lets worker processes import this module, whatever folder the command was typed in."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(REPOSITORY), before)))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@dataclass
class StudySweeperConfig:
    _target_: str = "hydra_plugins.rwkv_lab_sweeper.StudySweeper"
    max_batch_size: int | None = None  # unused: jobs are independent
    params: dict[str, Any] | None = field(default_factory=dict)  # a study's own sweep, as on the command line


ConfigStore.instance().store(group="hydra/sweeper", name="study", node=StudySweeperConfig, provider="rwkv_lab")
