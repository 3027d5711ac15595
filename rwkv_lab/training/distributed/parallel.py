"""A run by several processes: rank 0 takes the run directory and decides, all train, all leave."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.schema import Config
from rwkv_lab.runs.store import Claim, claim
from rwkv_lab.training.distributed import torchrun
from rwkv_lab.training.distributed.world import World, join, leave


def run(config: Config, path: Path, work: Callable[[Claim, World], tuple[int, float]]) -> tuple[int, float]:
    """Does ``work`` on every rank with the claim of the run directory ``path``; its (exit code, final val_loss)."""
    world = join(config.trainer)
    held = _claim_together(path, config.rerun, world)
    try:
        with _one_voice(world):
            code, loss = work(held, world)
        if code in torchrun.ENDED_TOGETHER or held.state == "busy":
            leave()
        # Otherwise this rank may be the only one that failed: elastic stops the others, which wait for it in vain.
        return code, loss
    finally:
        held.release()


def _claim_together(path: Path, rerun: bool, world: World) -> Claim:
    """Rank 0's claim, which holds the lock, and what it found on every other rank."""
    held, mistake = None, None
    if world.writes:
        try:
            held = claim(path, rerun)
        except UserError as error:
            mistake = str(error)
    found = world.broadcast((held.state, held.manifest) if held else mistake)
    if isinstance(found, str):
        raise UserError(found)
    state, manifest = found
    if held is None:
        held = Claim(path, state, manifest)
    before = manifest.get("world_size")
    if state == "resume" and before not in (None, world.size):
        held.release()
        raise UserError(
            f"the run was started by {before} processes and would go on with {world.size}, which changes its rounding: "
            f"use torchrun --nproc-per-node {before} run.py, or start afresh with rerun=true"
        )
    return held


@contextlib.contextmanager
def _one_voice(world: World) -> Iterator[None]:
    """Only the rank that writes speaks on standard output."""
    if world.writes:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
