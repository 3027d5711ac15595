"""Hydra's basic sweeper, with every job checked before the first starts; Hydra finds plugins in this folder."""

from dataclasses import dataclass, field
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser

from rwkv_lab import sweep


class StudySweeper(BasicSweeper):
    """Plans the whole sweep, launches the jobs that can run, and prints the table of all of them."""

    def sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None and self.hydra_context is not None and self.launcher is not None
        texts = [*sweep.parameters(self.params or {}), *arguments]
        overrides = OverridesParser.create(self.hydra_context.config_loader).parse_overrides(texts)
        sweep.refuse_sweeping(overrides)
        jobs = [job for batch in self.split_arguments(overrides, None) for job in batch]
        loader, master = self.hydra_context.config_loader, self.config
        plan = sweep.plan(jobs, lambda job: loader.load_sweep_config(master, list(job)))
        with sweep.reporting(plan):
            legal = [job.overrides for job in plan if job.mistake is None]
            return self.launcher.launch(legal, initial_job_idx=0) if legal else []


@dataclass
class StudySweeperConfig:
    _target_: str = "hydra_plugins.rwkv_lab_sweeper.StudySweeper"
    max_batch_size: int | None = None  # unused: jobs are independent
    params: dict[str, Any] | None = field(default_factory=dict)  # a study's own sweep, as on the command line


ConfigStore.instance().store(group="hydra/sweeper", name="study", node=StudySweeperConfig, provider="rwkv_lab")
