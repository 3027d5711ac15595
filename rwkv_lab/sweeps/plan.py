"""Planning a sweep: every job composed and checked before the first starts."""

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import yaml
from omegaconf import DictConfig, OmegaConf

from rwkv_lab.config import check
from rwkv_lab.config.errors import UserError
from rwkv_lab.config.run_hash import named_files, run_name
from rwkv_lab.config.schema import ALL_GROUPS, Config
from rwkv_lab.runs import Run, is_run, listing
from rwkv_lab.runs.run import is_locked
from rwkv_lab.util.paths import EXPERIMENTS, runs_dir

_TOP_LEVEL_VALUES = {field.name for field in fields(Config)} - set(ALL_GROUPS)
# Plans above this length take long enough to show a progress bar, or one line off a terminal.
_LONG = 100


@dataclass(frozen=True)
class Job:
    """One combination of a sweep: its configuration and run directory, or the error that makes it impossible."""

    overrides: list[str]
    config: Config | None
    path: Path | None
    error: str | None = None

    @property
    def name(self) -> str:
        return self.path.name if self.path else " ".join(self.overrides)


def names(planned: Sequence[Job]) -> list[str]:
    """Return a short name for each job by what differs in the sweep; its overrides if it cannot be composed."""
    configs = [check.plain(job.config) for job in planned if job.config]
    short = iter(listing.labels(configs))
    return [next(short) if job.config else job.name for job in planned]


def study_overrides(params: Mapping[str, Any]) -> list[str]:
    """Return a study's own sweep as command-line overrides."""
    return [f"{key}={value}" for key, value in params.items()]


def is_sweep(arguments: Sequence[str]) -> bool:
    """Return whether arguments of run.py ask for a grid: ``-m``, or a study that sweeps, without another sweeper."""
    study = next(
        (word.partition("=")[2] for word in arguments if word.startswith(("experiments=", "+experiments="))), ""
    )
    if any(word.startswith("hydra/sweeper=") for word in arguments):
        return False
    if {"-m", "--multirun"} & set(arguments):
        return True
    try:
        content = yaml.safe_load((EXPERIMENTS / f"{study}.yaml").read_bytes())
        return content["hydra"]["mode"] == "MULTIRUN" and "hydra.mode=RUN" not in arguments
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        # No study, or one that composing explains.
        return False


def defer(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a sweep with each setting ``key=value`` of a group written ``key=choice(value)``.

    Hydra applies plain settings to the default options of every group before a sweep begins, so
    ``model=rwkv_v4,mha_pro model.n_head=4`` would fail for the default model instead of being left out of the jobs it
    does not fit. A choice of one value is applied job by job. Hydra has no choice of ``null``, which stays plain.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import HydraException

    deferred = []
    for argument in arguments:
        group, dot, _ = argument.partition("=")[0].partition(".")
        if dot and group in ALL_GROUPS:
            try:
                (override,) = OverridesParser.create().parse_overrides([argument])
            except HydraException:
                # Composing the sweep explains what is wrong with it.
                deferred.append(argument)
                continue
            key, _, value = argument.partition("=")
            plain = override.type == OverrideType.CHANGE and not override.is_sweep_override()
            if plain and value and override.value() is not None:
                argument = f"{key}=choice({value})"
        deferred.append(argument)
    return deferred


class Loader(Protocol):
    """The part of Hydra's configuration loader that composes a job."""

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig: ...


class Composer:
    """Composes the jobs of a sweep: Hydra once for each distinct choice of groups, settings on a copy."""

    def __init__(self, loader: Loader, master: DictConfig) -> None:
        self._loader, self._master = loader, master
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self._parsed: dict[str, Any] = {}

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """Return the composed job without Hydra's own part; raises what Hydra and OmegaConf raise."""
        parsed = [self._parse(text) for text in overrides]
        settings = [override for override in parsed if _is_setting(override)]
        choices = tuple(str(override.input_line) for override in parsed if override not in settings)
        if choices not in self._composed:
            self._composed[choices] = task(self._loader.load_sweep_config(self._master, list(choices)))
        composed = copy.deepcopy(self._composed[choices])
        for setting in settings:
            OmegaConf.update(composed, setting.key_or_group, setting.value(), merge=True)
        return composed

    def _parse(self, text: str) -> Any:
        """Return one override as Hydra parses it; the jobs of a sweep share most of theirs."""
        from hydra.core.override_parser.overrides_parser import OverridesParser

        if text not in self._parsed:
            (self._parsed[text],) = OverridesParser.create().parse_overrides([text])
        return self._parsed[text]


def _is_setting(override: Any) -> bool:
    """Return whether an override only changes a value, and so cannot change which files are composed."""
    from hydra.core.override_parser.types import OverrideType

    key = override.key_or_group
    is_value = (key.partition(".")[0] in ALL_GROUPS and "." in key) or key in _TOP_LEVEL_VALUES
    return is_value and override.type == OverrideType.CHANGE and override.package is None


def task(composed: DictConfig) -> DictConfig:
    """Return a composed configuration without Hydra's own part."""
    task = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    OmegaConf.set_struct(task, True)
    return task


def plan(jobs: Sequence[Sequence[str]], compose: Callable[[Sequence[str]], DictConfig]) -> list[Job]:
    """Compose and check every job. A job that cannot be composed stays in the plan with its error.

    Raises UserError if there are no jobs, or two jobs are the same run.
    """
    from tqdm import tqdm

    if not jobs:
        raise UserError("the sweep has no jobs: one of its ranges or lists is empty")
    planned: list[Job] = []
    by_path: dict[Path, Job] = {}
    on_terminal = sys.stderr.isatty()
    if len(jobs) > _LONG and not on_terminal:
        print(f"planning {len(jobs)} jobs", flush=True)
    bar = tqdm(jobs, desc="planning", unit="job", leave=False, disable=not on_terminal or len(jobs) <= _LONG)
    for overrides in bar:
        job = _planned(overrides, compose)
        twin = by_path.get(job.path) if job.path else None
        if twin is not None:
            raise UserError(
                f"two jobs of the sweep are the same run {job.name}: '{' '.join(twin.overrides)}' and "
                f"'{' '.join(overrides)}'; leave one out"
            )
        if job.path:
            by_path[job.path] = job
        planned.append(job)
    return planned


def _planned(overrides: Sequence[str], compose: Callable[[Sequence[str]], DictConfig]) -> Job:
    from rwkv_lab.config.hydra import explain

    try:
        config, path = checked(compose(overrides))
    except UserError as error:
        return Job(list(overrides), None, None, str(error))
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        return Job(list(overrides), None, None, sentence)
    return Job(list(overrides), config, path)


def checked(composed: DictConfig) -> tuple[Config, Path]:
    """Return the checked configuration of a composed job, without Hydra's own part, and its run directory."""
    config = check.check(task(composed))
    return config, runs_dir(config.runs_dir) / config.study / run_name(config, named_files(config))


def status(path: Path) -> str:
    """Return the status of the run in ``path``; ``pending`` if it has not begun."""
    if is_run(path):
        return Run(path).status
    # A process that has just taken the directory writes the manifest once it has loaded everything.
    return "running" if is_locked(path) else "pending"
