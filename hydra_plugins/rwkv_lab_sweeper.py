"""Hydra's basic sweeper over runs as build targets; Hydra finds plugins in this folder."""

from dataclasses import dataclass, field
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser


class StudySweeper(BasicSweeper):
    """Parses the sweep and hands it to ``rwkv_lab.sweeps``."""

    def sweep(self, arguments: list[str]) -> Any:
        from rwkv_lab.sweeps import plan
        from rwkv_lab.sweeps.sweep import sweep

        loader = self.hydra_context.config_loader
        texts = [*plan.study_overrides(self.params or {}), *arguments]
        overrides = OverridesParser.create(loader).parse_overrides(texts)
        jobs = [job for batch in self.split_arguments(overrides, None) for job in batch]
        sweep(jobs, self.config, loader, self.launcher)
        return []


@dataclass
class StudySweeperConfig:
    _target_: str = "hydra_plugins.rwkv_lab_sweeper.StudySweeper"
    max_batch_size: int | None = None  # unused: jobs are independent
    params: dict[str, Any] | None = field(default_factory=dict)  # a study's own sweep, as on the command line


ConfigStore.instance().store(group="hydra/sweeper", name="study", node=StudySweeperConfig, provider="rwkv_lab")
