"""A run by several processes: rank 0 takes the run directory and decides, all train, all leave."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.schema import Config
from rwkv_lab.runs.store import RunHandle, acquire_run, unavailable
from rwkv_lab.training.distributed import torchrun
from rwkv_lab.training.distributed.world import World, join, leave

Acquire = Callable[[Path], RunHandle]


def run(
    config: Config,
    path: Path,
    work: Callable[[RunHandle, World], tuple[int, float]],
    before: Callable[[Acquire, World], int] | None = None,
) -> tuple[int, float]:
    """Do ``work`` on every rank with the handle of ``path``; return its exit code and final val_loss.

    ``before`` is done first, unless the run is over: it trains what the run starts from and returns an exit code, 0 to
    go on.
    """
    world = join(config.trainer)
    if before is not None and world.broadcast(unavailable(path, config.rerun, config.stop is not None) is None):
        with _one_voice(world):
            code = before(lambda needed: _acquire_together(needed, False, False, world), world)
        if code:
            if code in torchrun.ENDED_TOGETHER:
                leave(world)
            return code, float("inf")
    held = _acquire_together(path, config.rerun, config.stop is not None, world, config.trainer.strategy == "fsdp")
    try:
        with _one_voice(world):
            code, loss = work(held, world)
        if code in torchrun.ENDED_TOGETHER or held.state == "locked":
            leave(world)
        # Otherwise this rank may be the only one that failed: elastic stops the others, which wait for it in vain.
        return code, loss
    finally:
        held.release()


def _acquire_together(path: Path, rerun: bool, early: bool, world: World, shares: bool = False) -> RunHandle:
    """Return rank 0's handle, which holds the lock, and on every other rank one with what it found.

    Only a run whose checkpoints are in ``shares`` can go on with another number of processes.
    """
    held, mistake = None, None
    if world.writes:
        try:
            held = acquire_run(path, rerun, early)
        except UserError as error:
            mistake = str(error)
    found = world.broadcast((held.state, held.manifest) if held else mistake)
    if isinstance(found, str):
        raise UserError(found)
    state, manifest = found
    if held is None:
        held = RunHandle(path, state, manifest)
    before = manifest.get("world_size")
    if state == "resume" and before not in (None, world.size) and not shares:
        held.release()
        raise UserError(
            f"the run was started by {before} processes and would go on with {world.size}, which changes its rounding: "
            f"use torchrun --nproc-per-node {before} run.py, or start afresh with rerun=true"
        )
    return held


@contextlib.contextmanager
def _one_voice(world: World) -> Iterator[None]:
    """Context manager: drops standard output of ranks that do not write."""
    if world.writes:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
