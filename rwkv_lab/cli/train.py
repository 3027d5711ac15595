"""``rwkv-lab train`` and ``python run.py``: compose a configuration with Hydra and run it, a sweep of it or a study."""

import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from rwkv_lab.cli.arguments import Arguments
from rwkv_lab.config.errors import UserError, main_guard
from rwkv_lab.training.distributed import torchrun
from rwkv_lab.util.paths import CONF, as_typed
from rwkv_lab.util.signals import StopSignals
from rwkv_lab.util.subprocesses import end_with_parent

HELP = ("--help", "-h")
OTHER_RANK_SECONDS = 15.0


@dataclass
class Entry:
    """The function Hydra calls with each composed configuration, and the exit code it led to."""

    exit_code: int = 0
    error: Exception | None = None

    def run(self, composed: DictConfig) -> float:
        """Do one job in this process, or, as part of a sweep, in a process of its own; return its final val_loss.

        A job that did not complete returns infinity, as sweepers that minimise expect.
        """
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        hydra_config: Any = HydraConfig.get()
        # Unresolved: an override may take its value from another key.
        overrides: Any = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
        if hydra_config.mode == RunMode.MULTIRUN:
            from rwkv_lab.sweeps import job

            return job.run(composed, hydra_config)
        from rwkv_lab.training.run import run_here

        try:
            self.exit_code, loss = run_here(composed, overrides)
        except Exception as error:
            # Hydra would announce an exception with lines of its own.
            self.error, loss = error, float("inf")
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        from rwkv_lab.config.hydra import prepare

        # A launcher's worker process gets this object pickled and has registered nothing yet.
        prepare()
        self.__dict__.update(state)


def main(argv: list[str]) -> int:
    """Run ``argv`` (without the program's name); return the exit code: 0, 1 failed or busy, 2 mistake, 130 stopped."""
    if any(word in HELP for word in argv):
        topics = [word for word in argv if word not in HELP]
        return main_guard(lambda: _help(topics))
    return _at_work(lambda: _compose_and_run(argv))


def run_composed(content: dict[str, Any], overrides: list[str]) -> int:
    """Do the job of a composed configuration, as ``main`` does one it composes from ``overrides``; the exit code."""
    from rwkv_lab.config.hydra import prepare
    from rwkv_lab.training.run import run_here

    prepare()
    composed = OmegaConf.create(content)
    OmegaConf.set_struct(composed, True)
    return _at_work(lambda: run_here(composed, overrides).exit_code)


def _at_work(work: Callable[[], int]) -> int:
    """Return the exit code of ``work``, whatever ends it."""
    warnings.formatwarning = _as_a_sentence  # type: ignore[assignment]
    with StopSignals():
        code = main_guard(lambda: _guarded(work))
    if torchrun.ranks() and code not in torchrun.ENDED_TOGETHER:
        # Python's own way out aborts in gloo's destructors if the other ranks have gone.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _as_a_sentence(message: Warning | str, *_: Any, **__: Any) -> str:
    """Return a warning as a user reads it, without the place in the code that Python adds."""
    return f"warning: {message}\n"


def _help(topics: list[str]) -> None:
    from rwkv_lab.cli.help import fields_of, usage

    print(fields_of(topics[0]) if topics else usage())


def _guarded(work: Callable[[], int]) -> int:
    """Do ``work``; of several ranks the first reports what stops the run before or after training."""
    try:
        if torchrun.ranks():
            end_with_parent(torchrun.launcher())
        return work()
    except KeyboardInterrupt:
        if torchrun.rank() == 0:
            print("stopped: the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except OSError as error:
        _leave_it_to_the_first_rank()
        place = f": {error.filename}" if error.filename else ""
        print(f"failed: {error.strerror or error}{place}", file=sys.stderr)
        return 1
    except MemoryError:
        print("failed: out of memory", file=sys.stderr)
        return 1
    except UserError:
        _leave_it_to_the_first_rank()
        raise


def _leave_it_to_the_first_rank() -> None:
    """Wait on any rank but the first: the launcher stops the others once that one has printed the same words."""
    if torchrun.rank() > 0:
        time.sleep(OTHER_RANK_SECONDS)


def _flags(argv: list[str]) -> Any:
    """Return the parsed flags and overrides. Raises UserError for unknown flags and for those that exclude others."""
    from rwkv_lab.config import overrides
    from rwkv_lab.config.schema import Config

    parser = Arguments(prog=as_typed("python run.py"), add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--info", "-i", nargs="?", const="all")
    parser.add_argument("--shell-completion", "-sc", action="store_true")
    flags, unknown = parser.parse_known_intermixed_args(argv)
    for word in unknown:
        key, _, value = word.lstrip("-").partition("=")
        if key.partition(".")[0] in (*overrides.groups(), *(field.name for field in fields(Config))):
            raise UserError(f"{word}: keys are written without dashes, as in {key}={value or 'VALUE'}")
        parser.error(f"unrecognized arguments: {word.partition('=')[0]}")
    if flags.resolve and not flags.cfg:
        raise UserError("--resolve does nothing alone: add --cfg job")
    if sum(map(bool, (flags.multirun, flags.cfg, flags.info, flags.shell_completion))) > 1:
        raise UserError("--multirun (-m), --cfg, --info and --shell-completion exclude each other: give one")
    return flags


def _compose_and_run(argv: list[str]) -> int:
    from rwkv_lab.config import hydra, overrides
    from rwkv_lab.sweeps import plan

    flags = _flags(argv)
    hydra.prepare()
    if not flags.shell_completion:
        words = overrides.read(flags.overrides, flags.multirun)
        if plan.is_sweep(argv):
            words = words._replace(texts=plan.defer(words.texts))
        hydra.check_study(words)
        # Hydra takes flags before overrides only.
        argv = [word for word in argv if word.startswith("-") or word in (flags.cfg, flags.info)] + words.texts
    from hydra import main as hydra_main

    # Hydra prints and exits by itself otherwise, with several lines and exit code 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = ["run.py", *argv]
    job = Entry()
    entry = hydra_main(version_base="1.3", config_path=str(CONF), config_name="config")
    try:
        entry(job.run)()
        if job.error is not None:
            raise job.error
    except UserError:
        raise
    except Exception as error:
        sentence = hydra.explain(error)
        if sentence is None:
            raise
        raise UserError(sentence) from None
    return job.exit_code
