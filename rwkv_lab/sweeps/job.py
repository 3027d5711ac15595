"""One job of a sweep, in whatever process a launcher chose: a fresh process of its own, and how it ended."""

import math
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from rwkv_lab.config import check
from rwkv_lab.config.schema import Config
from rwkv_lab.runs import FORMAT, Run, listing, provenance
from rwkv_lab.runs.store import acquire_run
from rwkv_lab.sweeps import launchers, plan
from rwkv_lab.sweeps.launchers import LauncherSpec
from rwkv_lab.sweeps.server import ServerGone, server
from rwkv_lab.util.console import say
from rwkv_lab.util.paths import runs_dir, train_command
from rwkv_lab.util.subprocesses import Ended, end_with_parent, run_child

LOSS_IF_FAILED = math.inf
LOSS_IF_LOCKED = math.nan
STOPPED = 130
STOPPED_CODES = (STOPPED, -signal.SIGINT, -signal.SIGTERM)


def run(composed: DictConfig, hydra_config: DictConfig) -> float:
    """Return the job's final val_loss: infinity if it failed or was stopped, NaN if another process has the run.

    Raises KeyboardInterrupt if the sweep itself was told to stop.
    """
    config, path = plan.checked(composed)
    status = plan.status(path)
    if is_over(status, config):
        return final_loss(Run(path))
    overrides = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
    assert isinstance(overrides, list)
    name = listing.typed_name(check.plain(config), overrides)
    if status == "running":
        say(f"{name} is running in another process")
        return LOSS_IF_LOCKED
    spec = launchers.launcher_policy(hydra_config.launcher, provenance.usable_cores())
    shared = spec.shares_gpus and config.trainer.device in ("auto", "cuda") and not config.trainer.strategy
    if spec.visible:
        say(f"\n{name}  ({' '.join(overrides)})")
    marker = stop_marker(runs_dir(config.runs_dir), os.getppid())
    if spec.tied:
        end_with_parent()
        # Ctrl-C in the terminal reaches this worker as well; ``run_child`` passes it on.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if marker.exists():
            return LOSS_IF_FAILED
    gpus = launchers.visible_gpus() if shared else ()
    with launchers.gpu_lock(gpus, runs_dir(config.runs_dir) / ".gpus") as gpu:
        chosen = {"CUDA_VISIBLE_DEVICES": gpu} if gpu is not None else {}
        ended = _process(composed, overrides, chosen | threads(spec), spec)
    if ended.stopped and spec.tied and marker.exists():
        return LOSS_IF_FAILED
    if ended.stopped and spec.tied:
        # Raising would only bring the worker back to its pool, where it waits for jobs from a parent that may be dead.
        os._exit(STOPPED)
    if ended.stopped and not spec.detached:
        raise KeyboardInterrupt
    return outcome(path, config, overrides, ended)


def _process(composed: DictConfig, overrides: Sequence[str], extra: dict[str, str], spec: LauncherSpec) -> Ended:
    """Run a job in a process of its own: forked where this process works off many jobs, else started."""
    if spec.tied:
        with suppress(ServerGone):
            content: Any = OmegaConf.to_container(plan.task(composed), resolve=False)
            forks = server(extra.get("OMP_NUM_THREADS"))
            return forks.run(content, overrides, {**os.environ, **extra}, quiet=not spec.visible)
        server.cache_clear()
    return run_child(command(overrides), extra, quiet=not spec.visible)


def stop_marker(root: Path, sweep: int) -> Path:
    """Return the file that tells the workers of the process ``sweep`` to begin no more jobs."""
    return root / f".stopping-{sweep}"


def is_over(status: str, config: Config) -> bool:
    """Return whether a job of ``status`` needs no work: complete, or stopped early while a stop rule is set."""
    return not config.rerun and (status == "complete" or (status == "stopped early" and config.stop is not None))


def final_loss(run: Run) -> float:
    """Return the final val_loss of a run that is over; of one stopped early its forecast, or else its last val_loss."""
    if run.status != "stopped early":
        return run.manifest["result"]["val_loss"]
    forecast = run.manifest.get("forecast") or {}
    if "loss" in forecast:
        return float(forecast["loss"])
    measured = run.metrics().get("val_loss", np.empty(0))
    return float(next(iter(measured[np.isfinite(measured)][::-1]), LOSS_IF_FAILED))


def command(overrides: Sequence[str]) -> list[str]:
    """Return the command of one job."""
    return [*train_command(), *overrides, "hydra.mode=RUN"]


def threads(spec: LauncherSpec) -> dict[str, str]:
    """Return the environment that gives a job, all its processes together, its share of the cores."""
    return {} if spec.threads is None else {"OMP_NUM_THREADS": str(spec.threads)}


def outcome(path: Path, config: Config, overrides: Sequence[str], ended: Ended) -> float:
    """Return the loss of a job whose process has ended, and record a failure that it could not record itself."""
    status = plan.status(path)
    if ended.code == 0 and status in ("complete", "stopped early"):
        return final_loss(Run(path))
    if status == "running":
        return LOSS_IF_LOCKED
    if ended.code not in STOPPED_CODES:
        record_failure(path, config, overrides, ended.reason)
    return LOSS_IF_FAILED


def record_failure(path: Path, config: Config, overrides: Sequence[str], reason: str) -> None:
    """Mark a run whose process died without marking it; a run that never began gets a manifest with the reason."""
    handle = acquire_run(path, rerun=False)
    try:
        if handle.state == "new":
            handle.record(
                id=path.name.rpartition("-")[2],
                name=path.name,
                study=config.study,
                overrides=list(overrides),
                started=provenance.now(),
            )
        if handle.state == "new" or (handle.state == "resume" and handle.manifest.get("status") == "running"):
            handle.record(format=FORMAT, status="failed", reason=reason, ended=provenance.now())
    finally:
        handle.release()
