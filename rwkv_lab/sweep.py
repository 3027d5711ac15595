"""Sweeps: the plan of all jobs, each job in a process of its own, progress read from the run directories."""

import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rwkv_lab import checks
from rwkv_lab.config import Config
from rwkv_lab.console import count, duration, say
from rwkv_lab.errors import Mistake
from rwkv_lab.paths import REPOSITORY, RUNS
from rwkv_lab.runs import Run, is_run
from rwkv_lab.runs.identity import run_name

NOT_SWEPT = ("experiments", "study", "rerun", "dry_run")
LOSS_OF_A_FAILED_JOB = float("inf")


@dataclass(frozen=True)
class Job:
    """One combination of a sweep."""

    overrides: list[str]
    path: Path | None  # its run directory; None where the configuration is a mistake
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
            raise Mistake(f"{key} cannot be swept: give one value and start a sweep for each")


def plan(jobs: Sequence[Sequence[str]], compose: Callable[[Sequence[str]], DictConfig]) -> list[Job]:
    """Composes and checks every job; a Mistake where two jobs are the same run. A job that is a mistake stays in it."""
    from rwkv_lab.compose import explain

    planned: list[Job] = []
    for overrides in jobs:
        try:
            composed = compose(overrides)
            config = checks.check(task_part(composed))
            path = RUNS / config.study / run_name(config, checks.named_files(config))
        except Mistake as mistake:
            planned.append(Job(list(overrides), None, str(mistake)))
            continue
        except Exception as error:
            sentence = explain(error)
            if sentence is None:
                raise
            planned.append(Job(list(overrides), None, sentence))
            continue
        twin = next((job for job in planned if job.path == path), None)
        if twin is not None:
            raise Mistake(
                f"two jobs of the sweep are the same run {path.name}: '{' '.join(twin.overrides)}' and "
                f"'{' '.join(overrides)}'; leave one out"
            )
        planned.append(Job(list(overrides), path))
    return planned


def task_part(composed: DictConfig) -> DictConfig:
    """The configuration without Hydra's own."""
    return OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])


@contextmanager
def reporting(planned: list[Job]) -> Iterator[None]:
    """Says what the sweep will do, and when its jobs have ended, however they did, prints the table of all of them.

    Exits with 1 unless every job is complete.
    """
    say(f"{len(planned)} jobs: {_counted(planned)}")
    for job in planned:
        if job.mistake:
            say(f"left out: {job.name}: {job.mistake}")
    try:
        yield
    finally:
        table(planned)
    if any(status(job) != "complete" for job in planned):
        raise SystemExit(1)


def status(job: Job) -> str:
    """The job's status as its run directory tells it; ``left`` before it starts, ``mistake`` where it cannot."""
    if job.path is None:
        return "mistake"
    return Run(job.path).status if is_run(job.path) else "left"


def _counted(planned: Sequence[Job]) -> str:
    statuses = [status(job) for job in planned]
    order = ("complete", "running", "failed", "interrupted", "mistake", "left")
    return ", ".join(f"{statuses.count(name)} {name}" for name in order if name in statuses)


def table(planned: Sequence[Job]) -> None:
    """Prints every job with its status and result, or the reason why there is none."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("run", "status", "val_bpb", "val_loss", "tokens/s", "time"):
        rows.add_column(column, justify="left" if column in ("run", "status") else "right", overflow="fold")
    for job in planned:
        state = status(job)
        manifest = Run(job.path).manifest if job.path and is_run(job.path) else {}
        result = manifest.get("result") or {}
        reason = job.mistake or (manifest.get("reason") if state == "failed" else None)
        rows.add_row(
            job.name,
            f"{state}: {reason}" if reason else state,
            f"{result['val_bpb']:.4f}" if result.get("val_bpb") is not None else "",
            f"{result['val_loss']:.4f}" if "val_loss" in result else "",
            count(result["tokens_per_second"]) if "tokens_per_second" in result else "",
            duration(manifest["seconds"]) if "seconds" in manifest else "",
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(rows)
    console.print(_counted(planned), highlight=False)


def run_in_child(composed: DictConfig, hydra_config: DictConfig) -> float:
    """Runs one job of a sweep as ``run.py <its overrides>`` in a fresh process; its final val_loss, or infinity.

    What the child cannot say itself, such as being killed for memory, is said here.
    """
    from rwkv_lab.children import run_child

    config = checks.check(task_part(composed))
    overrides = list(hydra_config.overrides.task)
    alone = "BasicLauncher" in hydra_config.launcher._target_
    path = RUNS / config.study / run_name(config, checks.named_files(config))
    number = hydra_config.job.num
    say(f"[{number + 1}] {path.name}  ({' '.join(overrides)})")
    code = run_child(command(config, overrides), jobs_at_once(hydra_config), quiet=not alone)
    if code == -signal.SIGINT or code == 130:
        raise KeyboardInterrupt
    return finished(path, number, code)


def finished(path: Path, number: int, code: int) -> float:
    """Says how the job ended; its final val_loss, or infinity."""
    if is_run(path):
        run = Run(path)
        result = run.manifest.get("result")
        if run.status == "complete" and result:
            say(f"[{number + 1}] {path.name}: complete, val_loss {result['val_loss']:.4f}")
            return result["val_loss"]
        reason = run.manifest.get("reason")
    else:
        reason = None
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    say(f"[{number + 1}] {path.name}: {reason or how}")
    return LOSS_OF_A_FAILED_JOB


def command(config: Config, overrides: Sequence[str]) -> list[str]:
    """The command of one job."""
    return [sys.executable, str(REPOSITORY / "run.py"), *overrides, "hydra.mode=RUN"]


def jobs_at_once(hydra_config: DictConfig) -> int:
    """How many jobs the launcher runs side by side on this machine."""
    from rwkv_lab.runs.provenance import usable_cores

    wanted = hydra_config.launcher.get("n_jobs", 1) or 1
    return usable_cores() if wanted < 0 else int(wanted)
