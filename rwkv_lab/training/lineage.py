"""Runs that begin where another one already is: longer ones, and branches with a schedule of their own.

Whatever leads to update k (model, data, seed, rates) decides the state at k. A new run whose first updates another run
has made, and kept a checkpoint of, takes that checkpoint over and ends with the numbers of a run made from the start.
"""

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from omegaconf import OmegaConf

from rwkv_lab.config import check, derived, run_hash
from rwkv_lab.config.errors import UserError
from rwkv_lab.config.schema import Config
from rwkv_lab.runs import Run, listing
from rwkv_lab.runs.store import RunHandle, select
from rwkv_lab.training import checkpoint, metrics
from rwkv_lab.training.context import RunContext
from rwkv_lab.training.device import Resolved
from rwkv_lab.util.console import say
from rwkv_lab.util.paths import runs_dir

Rates = Callable[[int], float]
WAIT_SECONDS = 1.0


def rates(config: Config) -> Rates:
    """Return the rate of every update: the schedule's, or of a branch, its parent's up to ``branch.step``.

    The schedule of a branch has the updates after that step to itself. If the parent is implied, a warm-up is part of
    the parent only.
    """
    total, first = derived.total_steps(config), config.branch.step
    if first is None:
        return config.schedule.build(total)
    before, schedule = rates(run_hash.parent_of(config)), config.schedule
    if config.branch.parent is None:
        schedule = copy.deepcopy(schedule)
        schedule.warmup_steps = 0  # type: ignore[attr-defined]
    after = schedule.build(total - first)
    return lambda update: before(update) if update < first else after(update - first)


def inherit(context: RunContext, resolved: Resolved, data_sha256: dict[str, str], processes: int) -> bool:
    """Give a new run the newest checkpoint, and the metrics up to it, of a run that went the same way so far.

    False if there is none, or ``rerun`` asks for a fresh start. A note tells why a run that only differs in length
    cannot be gone on from, and what to type.
    """
    config = context.config
    if context.claim.state != "new" or config.rerun:
        return False
    own, total, best, reason = rates(config), derived.total_steps(config), (0, Run(context.path)), ""
    for run, other in _relatives(context):
        manifest = run.manifest
        # Earlier runs had no choice of compiling.
        same = {"compile": False} | manifest.get("resolved", {}) == dataclasses.asdict(resolved) and manifest.get(
            "world_size"
        ) == processes
        if not same or (manifest.get("data") or {}).get("sha256") != data_sha256:
            continue
        shared = _shared(own, rates(other), min(total, derived.total_steps(other)))
        steps = checkpoint.kept_steps(run.path / "checkpoints")
        usable = [step for step in steps if step <= shared and step < total]
        if usable:
            best = max(best, (usable[-1], run), key=lambda pair: pair[0])
        elif steps:
            reason = _why_not(config, run, shared, steps)
    step, run = best
    if not step or not checkpoint.adopt(run.path / "checkpoints", step, context.path / "checkpoints"):
        if reason:
            say(f"note: {reason}")
        return False
    trainer = config.trainer
    target = context.path / "metrics.csv"
    metrics.take_rows(run.path / "metrics.csv", target, step, trainer.log_every, trainer.eval_every)
    context.claim.manifest["origin"] = {"run": f"{run.study}/{run.name}", "step": step}
    say(f"goes on from step {step} of {run.study}/{listing.name_of(run)}")
    return True


def _relatives(context: RunContext) -> Iterator[tuple[Run, Config]]:
    """Yield the runs that may have made this one's first updates, with their configurations."""
    config = context.config
    siblings = context.path.parent.glob(f"{context.path.name.rpartition('-')[0]}-*/run.json")
    paths = {manifest.parent for manifest in siblings} - {context.path}
    parent = select(config.branch.parent, runs_dir(config.runs_dir)).path if config.branch.parent else None
    way = run_hash.trajectory(config)
    for path in sorted(paths | ({parent} if parent else set())):
        try:
            run = Run(path)
            other = check.check(OmegaConf.create(run.config))
            # Files of a running run may vanish; the parent of a branch is checked by ``parent_of``.
            if path == parent or (run.status != "running" and run_hash.trajectory(other) == way):
                yield run, other
        except UserError:
            # A run that cannot be read is not a relative.
            continue


def _shared(own: Rates, other: Rates, most: int) -> int:
    """Return how many updates from the first have equal rates."""
    return next((update for update in range(most) if own(update) != other(update)), most)


def _why_not(config: Config, run: Run, shared: int, steps: list[int]) -> str:
    name = f"{run.study}/{listing.name_of(run)}"
    if shared < min(steps) and shared <= 1:
        return (
            f"{name} differs in length only, but so does the rate of every update under schedule="
            f"{config.schedule.name}: this run begins afresh; schedule=constant and wsd can be gone on with"
        )
    return (
        f"{name} has the same first {shared} updates, but its first checkpoint is of step {steps[0]}: this run begins "
        "afresh; trainer.keep_every=N keeps checkpoints to go on from"
    )


def train_parent(
    config: Config,
    overrides: list[str],
    acquire: Callable[[Path], RunHandle],
    train: Callable[[RunContext], int],
) -> int:
    """Train the implied parent of a branch unless it is complete; return 0, or the exit code that stops the branch.

    Another process that trains it is waited for. Several processes on one run ``acquire`` it together.
    """
    parent = run_hash.parent_of(config)
    path = runs_dir(parent.runs_dir) / parent.study / run_hash.run_name(parent, run_hash.named_files(parent))
    own = _parent_overrides(overrides, parent)
    name, waiting = listing.typed_name(check.plain(parent), own), False
    while True:
        handle = acquire(path)
        if handle.state == "complete":
            return 0
        if handle.state != "locked":
            break
        if not waiting:
            say(f"waiting for {name}, the parent of this branch, which another process trains")
        waiting = True
        time.sleep(WAIT_SECONDS)
    say(f"training {name} first, the parent of this branch")
    try:
        code = train(RunContext(parent, handle, own))
    finally:
        handle.release()
    # A rank that does not write may look before the first one has recorded the end.
    return code if code or handle.lock is None else (0 if Run(path).status == "complete" else 1)


def _parent_overrides(overrides: list[str], parent: Config) -> list[str]:
    """Return what would be typed for the parent alone."""
    replaced = ("branch.", "schedule=", "schedule.", "trainer.steps=", "trainer.tokens=", "rerun=", "stop")
    kept = [word for word in overrides if not word.lstrip("+").startswith(replaced)]
    own = [f"schedule.{key}={getattr(parent.schedule, key)}" for key in ("lr_init", "warmup_steps")]
    return [*kept, "schedule=constant", *own, f"trainer.steps={parent.trainer.steps}"]
