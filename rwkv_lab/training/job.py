"""One job: a composed configuration becomes a finished, resumed, reported or refused run."""

import sys
import traceback
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rwkv_lab.cli import summary
from rwkv_lab.config import check, run_hash
from rwkv_lab.config.errors import UserError
from rwkv_lab.config.run_hash import run_name
from rwkv_lab.config.schema import Config
from rwkv_lab.runs import provenance
from rwkv_lab.runs.store import Claim, claim, nothing_to_do
from rwkv_lab.training.distributed import torchrun
from rwkv_lab.util.console import say, warn
from rwkv_lab.util.paths import RUNS

COMPLETE, FAILED, STOPPED = 0, 1, 130
OUT_OF_MEMORY = "out of memory: lower trainer.batch_size, or raise trainer.accumulate"
SETTINGS_OF_THE_CALL = ("rerun", "dry_run")


def run_here(composed: DictConfig, overrides: list[str]) -> tuple[int, float]:
    """Runs the job in this process; (exit code, final val_loss or infinity)."""
    config = check.check(composed)
    files = run_hash.named_files(config)
    path = RUNS / config.study / run_name(config, files)
    if config.dry_run:
        summary.dry_run(config, path)
        return COMPLETE, float("inf")
    ranks = torchrun.ranks()
    if ranks > 1 or (ranks == 1 and config.trainer.strategy):
        from rwkv_lab.training.distributed import parallel

        return parallel.run(config, path, lambda held, world: _with(held, config, overrides, world))
    if config.trainer.strategy:
        from rwkv_lab.training.distributed import launch

        found = nothing_to_do(path, config.rerun)
        return _with(found, config, overrides) if found else launch.run(config, path)
    held = claim(path, config.rerun)
    try:
        return _with(held, config, overrides)
    finally:
        held.release()


def _with(held: Claim, config: Config, overrides: list[str], world: Any = None) -> tuple[int, float]:
    if held.state == "complete":
        summary.complete(held.path, held.manifest, again=True)
        if held.manifest.get("code") != provenance.code_fingerprint():
            warn("this run was completed by other code than the present rwkv_lab/ and csrc/; add rerun=true to redo it")
        return COMPLETE, held.manifest["result"]["val_loss"]
    if held.state == "busy":
        say(f"{summary.shown(held.path)} is running in another process (pid {held.manifest.get('pid', 'unknown')})")
        return FAILED, float("inf")
    from rwkv_lab.training.distributed.world import World

    return train(held, config, overrides, config_text(config), world or World())


def train(held: Claim, config: Config, overrides: list[str], text: str, world: Any) -> tuple[int, float]:
    """Trains a claimed run; faults are recorded in its manifest and end in one sentence.

    A Mistake found before training leaves the status of an earlier session as it is.
    """
    # torch is imported here, so that everything before it answers at once.
    from rwkv_lab.training import run
    from rwkv_lab.training.distributed.launch import LOST_TOUCH
    from rwkv_lab.training.distributed.world import lost_touch
    from rwkv_lab.training.signals import Stopped
    from rwkv_lab.training.trainer import NotFinite

    try:
        training = run.prepare(config, held, overrides, text, world)
        result = run.run(training, held)
    except Stopped:
        step = training.progress.step
        say(f"stopped at step {step}; the checkpoint is saved: the same command again goes on from there")
        return STOPPED, float("inf")
    except UserError:
        raise
    except NotFinite as fault:
        _fail(held, str(fault))
        if world.writes:
            print(f"failed: {fault}", file=sys.stderr)
        return FAILED, float("inf")
    except OSError as error:
        sentence = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
        _fail(held, sentence)
        print(f"failed: {sentence}; what was saved before stays, the same command again goes on", file=sys.stderr)
        return FAILED, float("inf")
    except Exception as error:
        if _is_out_of_memory(error):
            _fail(held, OUT_OF_MEMORY)
            print(f"failed: {OUT_OF_MEMORY}", file=sys.stderr)
            return FAILED, float("inf")
        if world.size > 1 and lost_touch(error):
            _fail(held, "another process of the run ended")
            return LOST_TOUCH, float("inf")
        _fail(held, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        traceback.print_exc()
        return FAILED, float("inf")
    if world.writes:
        summary.complete(held.path, held.manifest, again=False)
    return COMPLETE, result.get("val_loss", float("inf"))


def _is_out_of_memory(error: Exception) -> bool:
    """Of Python, of a GPU, or of torch's CPU allocator, which raises a plain RuntimeError."""
    import torch

    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _fail(held: Claim, reason: str) -> None:
    """Records the failure of a run that has begun; where even that cannot be written it stays interrupted.

    Of several processes on one run, the one that holds the lock does.
    """
    if held.lock is None or "status" not in held.manifest:
        return
    try:
        held.record(status="failed", reason=reason, ended=provenance.now())
    except OSError as error:
        warn(f"the failure could not be recorded in {held.path}: {error.strerror}")


def config_text(config: Config) -> str:
    """The resolved configuration as YAML, without what belongs to this call only."""
    content = check.plain(config)
    for key in SETTINGS_OF_THE_CALL:
        content.pop(key)
    return OmegaConf.to_yaml(OmegaConf.create(content))
