"""One job of a sweep, in whatever process a launcher chose: a fresh process of its own, and what came of it."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from rwkv_lab.config.schema import Config
from rwkv_lab.runs import FORMAT, Run, provenance
from rwkv_lab.runs.store import claim
from rwkv_lab.sweeps import gpu_locks, launchers, plan
from rwkv_lab.sweeps.launchers import Manner
from rwkv_lab.sweeps.subprocesses import Ended, end_with_parent, run_child
from rwkv_lab.util.console import say
from rwkv_lab.util.paths import REPOSITORY, RUNS

LOSS_OF_A_FAILED_JOB = float("inf")
LOSS_OF_A_BUSY_JOB = float("nan")
STOPPED = 130
STOPPED_CODES = (STOPPED, -signal.SIGINT, -signal.SIGTERM)


def run(composed: DictConfig, hydra_config: DictConfig) -> float:
    """The job's final val_loss, infinity where it failed or was stopped, NaN where another process has the run.

    Raises KeyboardInterrupt where the sweep itself was told to stop.
    """
    config, path = plan.checked(composed)
    status = plan.status(path)
    if status == "complete" and not config.rerun:
        return Run(path).manifest["result"]["val_loss"]
    if status == "running":
        say(f"{path.name} is running in another process")
        return LOSS_OF_A_BUSY_JOB
    overrides = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
    assert isinstance(overrides, list)
    manner = launchers.manner(hydra_config.launcher, provenance.usable_cores())
    shared = manner.shares_gpus and config.trainer.device in ("auto", "cuda") and not config.trainer.strategy
    if manner.visible:
        say(f"\n{path.name}  ({' '.join(overrides)})")
    if manner.tied:
        end_with_parent()
    with gpu_locks.gpu(gpu_locks.visible_gpus() if shared else (), RUNS / ".gpus") as gpu:
        chosen = {"CUDA_VISIBLE_DEVICES": gpu} if gpu is not None else {}
        ended = run_child(command(overrides), chosen | threads(manner), quiet=not manner.visible)
    if ended.stopped and manner.tied:
        # Raising would only bring the worker back to its pool, where it waits for jobs from a parent that may be dead.
        os._exit(STOPPED)
    if ended.stopped and not manner.detached:
        raise KeyboardInterrupt
    return outcome(path, config, overrides, ended)


def command(overrides: Sequence[str]) -> list[str]:
    """The command of one job."""
    return [sys.executable, str(REPOSITORY / "run.py"), *overrides, "hydra.mode=RUN"]


def threads(manner: Manner) -> dict[str, str]:
    """The environment that gives a job, all its processes together, its share of the cores."""
    return {} if manner.threads is None else {"OMP_NUM_THREADS": str(manner.threads)}


def outcome(path: Path, config: Config, overrides: Sequence[str], ended: Ended) -> float:
    """The final val_loss of a job whose process has ended; what that could not record itself is recorded here."""
    status = plan.status(path)
    if ended.code == 0 and status == "complete":
        return Run(path).manifest["result"]["val_loss"]
    if status == "running":
        return LOSS_OF_A_BUSY_JOB
    if ended.code not in STOPPED_CODES:
        record_failure(path, config, overrides, ended.reason)
    return LOSS_OF_A_FAILED_JOB


def record_failure(path: Path, config: Config, overrides: Sequence[str], reason: str) -> None:
    """Marks a run whose process died without marking it; one that was never begun gets a manifest that says so."""
    held = claim(path, rerun=False)
    try:
        if held.state == "fresh":
            held.record(
                id=path.name.rsplit("-", 1)[-1],
                name=path.name,
                study=config.study,
                overrides=list(overrides),
                started=provenance.now(),
            )
        if held.state == "fresh" or (held.state == "resume" and held.manifest.get("status") == "running"):
            held.record(format=FORMAT, status="failed", reason=reason, ended=provenance.now())
    finally:
        held.release()
