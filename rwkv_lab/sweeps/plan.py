"""Sweeps: every job composed and checked before the first starts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rwkv_lab.config import check
from rwkv_lab.config.errors import UserError
from rwkv_lab.config.run_hash import named_files, run_name
from rwkv_lab.config.schema import Config
from rwkv_lab.runs import Run, is_run, lock
from rwkv_lab.util.paths import RUNS

NOT_SWEPT = ("experiments", "study", "rerun", "dry_run")


@dataclass(frozen=True)
class Job:
    """One combination of a sweep: its configuration and run directory, or the mistake that makes it impossible."""

    overrides: list[str]
    config: Config | None
    path: Path | None
    mistake: str | None = None

    @property
    def name(self) -> str:
        return self.path.name if self.path else " ".join(self.overrides)


def parameters(params: Mapping[str, Any]) -> list[str]:
    """A study's own sweep as command-line overrides."""
    return [f"{key}={value}" for key, value in params.items()]


def refuse_sweeping(overrides: Sequence[Any]) -> None:
    """A Mistake where a key that names or restarts runs is given several values."""
    for override in overrides:
        key = override.get_key_element()
        if override.is_sweep_override() and key in NOT_SWEPT:
            raise UserError(f"{key} cannot be swept: give one value and start a sweep for each")


def plan(jobs: Sequence[Sequence[str]], compose: Callable[[Sequence[str]], DictConfig]) -> list[Job]:
    """Composes and checks every job; a Mistake where two jobs are the same run. A job that is a mistake stays in it."""
    from rwkv_lab.config.hydra import explain

    if not jobs:
        raise UserError("the sweep has no jobs: one of its ranges or lists is empty")
    planned: list[Job] = []
    for overrides in jobs:
        try:
            config, path = checked(compose(overrides))
        except UserError as mistake:
            planned.append(Job(list(overrides), None, None, str(mistake)))
            continue
        except Exception as error:
            sentence = explain(error)
            if sentence is None:
                raise
            planned.append(Job(list(overrides), None, None, sentence))
            continue
        twin = next((job for job in planned if job.path == path), None)
        if twin is not None:
            raise UserError(
                f"two jobs of the sweep are the same run {path.name}: '{' '.join(twin.overrides)}' and "
                f"'{' '.join(overrides)}'; leave one out"
            )
        planned.append(Job(list(overrides), config, path))
    return planned


def checked(composed: DictConfig) -> tuple[Config, Path]:
    """The checked configuration of a composed job, Hydra's own part left aside, and its run directory."""
    task = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    config = check.check(task)
    return config, RUNS / config.study / run_name(config, named_files(config))


def status(path: Path) -> str:
    """The status of the run in ``path``; ``left`` where it has not begun."""
    if is_run(path):
        return Run(path).status
    # A process that has just taken the directory writes the manifest once it has loaded everything.
    return "running" if lock.is_held(path) else "left"
