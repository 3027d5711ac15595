"""One run: a composed configuration becomes a finished, resumed, reported or refused run. Imports no torch at once."""

import functools
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig

from rwkv_lab.cli import summary
from rwkv_lab.config import check, derived, run_hash
from rwkv_lab.config.errors import UserError
from rwkv_lab.config.schema import Config
from rwkv_lab.runs import provenance
from rwkv_lab.runs.store import RunHandle, acquire_run, discard_if_empty, unavailable
from rwkv_lab.training.context import RunContext
from rwkv_lab.training.distributed import torchrun
from rwkv_lab.util.console import say, warn
from rwkv_lab.util.paths import runs_dir

if TYPE_CHECKING:
    from rwkv_lab.training.distributed.world import World

COMPLETE, FAILED, STOPPED = 0, 1, 130


class Outcome(NamedTuple):
    """What became of a run."""

    exit_code: int
    val_loss: float = float("inf")  # final, nats per token; infinity unless the run is complete


def run_here(composed: DictConfig, overrides: list[str]) -> Outcome:
    """Do the run in this process, or in processes it starts if the configuration asks for several."""
    config = check.check(composed)
    if config.dry_run:
        summary.dry_run(config)
        return Outcome(COMPLETE)
    path = runs_dir(config.runs_dir) / config.study / run_hash.run_name(config, run_hash.named_files(config))
    early = config.stop is not None
    if config.model.start_files and not unavailable(path, config.rerun, early):
        _check_start(config)
    parent_first = derived.has_implied_parent(config)
    ranks = torchrun.ranks()
    if ranks > 1 or (ranks == 1 and config.trainer.strategy):
        from rwkv_lab.training.distributed import parallel

        def work(held: RunHandle, world: "World") -> Outcome:
            return go_on(RunContext(config, held, overrides), world)

        def before(acquire: Callable[[Path], RunHandle], world: "World") -> int:
            from rwkv_lab.training import lineage

            return lineage.train_parent(config, overrides, acquire, lambda context: go_on(context, world).exit_code)

        return Outcome(*parallel.run(config, path, work, before if parent_first else None))
    if config.trainer.strategy:
        from rwkv_lab.training.distributed import launch

        found = unavailable(path, config.rerun, early)
        return report(found) if found else Outcome(*launch.run(config, path))
    if parent_first and not unavailable(path, config.rerun, early):
        from rwkv_lab.training import lineage

        acquire = functools.partial(acquire_run, rerun=False)
        code = lineage.train_parent(config, overrides, acquire, lambda context: go_on(context, None).exit_code)
        if code:
            return Outcome(code)
    held = acquire_run(path, config.rerun, early)
    try:
        return go_on(RunContext(config, held, overrides), None)
    except UserError:
        discard_if_empty(held)
        raise
    finally:
        held.release()


def _check_start(config: Config) -> None:
    """Raise UserError for weights to start from that are damaged or not of the text, before a directory is made."""
    from rwkv_lab import data, models
    from rwkv_lab.models.weights import weights_file
    from rwkv_lab.runs.manifest import verify

    for name, text in config.model.start_files.items():
        file = weights_file(text, f"model.{name}", config.runs_dir)
        verify(file.parent, file.name, "tokenizer.json")
    tokenizer = data.load(config.data, config.tokenizer).tokenizer
    models.check_init(config.model, tokenizer, config.objective.extra_tokens)


def go_on(context: RunContext, world: "World | None") -> Outcome:
    """Report a run that is over or locked; train one that was taken, as one of ``world`` or alone."""
    if context.claim.state in ("complete", "stopped early", "locked"):
        return report(context.claim)
    # torch is imported here, so that everything before it answers at once.
    from rwkv_lab.training.distributed.world import World

    return train(context, world or World())


def report(found: RunHandle) -> Outcome:
    """Print what is known of a run that is over, or running in another process."""
    if found.state == "locked":
        say(f"{summary.shown(found.path)} is running in another process (pid {found.manifest.get('pid', 'unknown')})")
        return Outcome(FAILED)
    if found.state == "stopped early":
        say(f"{summary.shown(found.path)} was stopped early: {found.manifest.get('reason')}")
        say("the same command without stop= goes on from there")
        return Outcome(COMPLETE, forecast_loss(found.manifest))
    require_result(found.path, found.manifest)
    summary.complete(found.path, found.manifest, again=True)
    if found.manifest.get("code") != provenance.code_fingerprint():
        warn("this run was completed by other code than the present rwkv_lab/ and csrc/; add rerun=true to redo it")
    return Outcome(COMPLETE, found.manifest["result"]["val_loss"])


def forecast_loss(manifest: dict[str, Any]) -> float:
    """Return the final loss that a stop rule forecast for a run; infinity if it made no forecast."""
    return float((manifest.get("forecast") or {}).get("loss", float("inf")))


def require_result(path: Path, manifest: dict[str, Any]) -> None:
    """Raise UserError if the manifest of a complete run lacks what its summary shows."""
    result = manifest.get("result") or {}
    numbers = [result.get("val_loss"), result.get("train_loss"), result.get("tokens_per_second")]
    numbers += [manifest.get("tokens"), manifest.get("seconds")]
    if not all(isinstance(number, (int, float)) for number in numbers) or "val_bpb" not in result:
        raise UserError(f"{path / 'run.json'} lacks the result of a complete run: start it afresh with rerun=true")


def train(context: RunContext, world: "World") -> Outcome:
    """Train a run that was taken; a fault is recorded in its manifest and ends in one sentence.

    A UserError found before training leaves the status of an earlier session as it is.
    """
    from rwkv_lab.training import session
    from rwkv_lab.training.distributed.world import lost_touch
    from rwkv_lab.training.trainer import NotFinite, StoppedEarly
    from rwkv_lab.util.signals import Stopped

    try:
        result = session.run(context, world)
    except UserError:
        raise
    except Stopped as stopped:
        say(f"stopped at step {stopped.step}; the checkpoint is saved: the same command again goes on from there")
        return Outcome(STOPPED)
    except StoppedEarly as verdict:
        say(f"stopped early at step {verdict.step}: {verdict}; the same command without stop= goes on from there")
        return Outcome(COMPLETE, forecast_loss(context.manifest))
    except (NotFinite, session.OutOfMemory) as fault:
        context.fail(str(fault))
        if world.writes:
            print(f"failed: {fault}", file=sys.stderr)
        return Outcome(FAILED)
    except OSError as error:
        sentence = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
        context.fail(sentence)
        print(f"failed: {sentence}; what was saved before stays, the same command again goes on", file=sys.stderr)
        return Outcome(FAILED)
    except Exception as error:
        if world.size > 1 and lost_touch(error):
            context.fail("another process of the run ended")
            return Outcome(torchrun.LOST_TOUCH)
        context.fail(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        traceback.print_exc()
        return Outcome(FAILED)
    if world.writes:
        session.decorate("the summary", lambda: summary.complete(context.path, context.manifest, again=False))
    return Outcome(COMPLETE, result.get("val_loss", float("inf")))
