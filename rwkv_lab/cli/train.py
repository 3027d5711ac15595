"""The command line of run.py: help, Hydra's entry point, and errors as one sentence."""

import dataclasses
import os
import sys
import time
import warnings
from typing import Any, NoReturn

from rwkv_lab.config.errors import UserError, main_guard, nearest
from rwkv_lab.sweeps.subprocesses import end_with_parent
from rwkv_lab.training.distributed import torchrun
from rwkv_lab.training.signals import like_ctrl_c
from rwkv_lab.util.paths import REPOSITORY

FLAGS_FIRST = ("-m", "--multirun")
OTHER_RANK_SECONDS = 15.0


def main(argv: list[str]) -> int:
    """Runs ``argv`` (``run.py`` and its arguments); the exit code: 0, 1 failed or busy, 2 mistake, 130 stopped."""
    arguments = argv[1:]
    if "--help" in arguments or "-h" in arguments:
        return main_guard(_help)
    # Hydra takes flags before overrides only.
    flags = [argument for argument in arguments if argument in FLAGS_FIRST]
    sys.argv = [argv[0], *flags, *(argument for argument in arguments if argument not in FLAGS_FIRST)]
    warnings.formatwarning = _as_a_sentence  # type: ignore[assignment]
    with like_ctrl_c():
        code = main_guard(_guarded)
    if torchrun.ranks() and code not in torchrun.ENDED_TOGETHER:
        # Python's own way out aborts in gloo's destructors where the other ranks are gone already.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _as_a_sentence(message: Warning | str, *_: Any, **__: Any) -> str:
    """A warning as a user reads it, without the place in the code that Python adds."""
    return f"warning: {message}\n"


def _help() -> None:
    from rwkv_lab.cli.help import usage

    print(usage(REPOSITORY))


def _guarded() -> int:
    """``_compose_and_run``; what stops it before or after training is said here, by one of several ranks."""
    try:
        if torchrun.ranks():
            end_with_parent(torchrun.launcher())
        return _compose_and_run()
    except KeyboardInterrupt:
        if torchrun.rank() == 0:
            print("stopped: the same command again goes on from what is saved", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except OSError as error:
        _let_the_first_rank_speak()
        place = f": {error.filename}" if error.filename else ""
        print(f"failed: {error.strerror or error}{place}", file=sys.stderr)
        return 1
    except MemoryError:
        print("failed: out of memory", file=sys.stderr)
        return 1
    except UserError:
        _let_the_first_rank_speak()
        raise


def _let_the_first_rank_speak() -> None:
    """Another rank is stopped as soon as the first one has ended with the same words."""
    if torchrun.rank() > 0:
        time.sleep(OTHER_RANK_SECONDS)


def _check_syntax(arguments: list[str]) -> None:
    """A Mistake for what Hydra answers with a page: unknown flags, words that are no override."""
    from hydra._internal.utils import get_args_parser

    from rwkv_lab.config.hydra import check_studies, groups
    from rwkv_lab.config.schema import Config

    parser = get_args_parser()
    flags = [name for action in parser._actions for name in action.option_strings]

    keys = {field.name for field in dataclasses.fields(Config)} | set(groups())

    def refuse(message: str) -> NoReturn:
        for argument in arguments:
            key, _, value = argument.lstrip("-").partition("=")
            if argument.startswith("-") and key.partition(".")[0] in keys:
                raise UserError(f"{argument}: keys are written without dashes, as in {key}={value or 'VALUE'}")
        word = message.rpartition(" ")[2]
        raise UserError(f"{message}{nearest(word, flags)}: see python run.py --help")

    parser.error = refuse  # type: ignore[method-assign]
    parsed = parser.parse_args(arguments)
    if parsed.resolve and not parsed.cfg:
        raise UserError("--resolve does nothing alone: add --cfg job")
    if sum(map(bool, (parsed.run, parsed.multirun, parsed.cfg, parsed.info, parsed.shell_completion))) > 1:
        raise UserError("--run, --multirun (-m), --cfg, --info and --shell-completion exclude each other: give one")
    for override in parsed.overrides:
        key, equals, value = override.partition("=")
        if key.strip("+") == "experiments" and value not in ("", "null"):
            check_studies()
        if not key.strip("+~ ") or not (equals or override.startswith("~")):
            raise UserError(f"{override} is no override: write key=value or group=option")


def _compose_and_run() -> int:
    import hydra

    from rwkv_lab.config.hydra import explain, prepare
    from rwkv_lab.training import job

    _check_syntax(sys.argv[1:])
    prepare()
    outcome = job.Outcome()

    # Hydra prints and exits by itself otherwise, with several lines and exit code 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    entry = hydra.main(version_base="1.3", config_path=str(REPOSITORY / "conf"), config_name="config")
    try:
        entry(outcome.run)()
        if outcome.error is not None:
            raise outcome.error
    except UserError:
        raise
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        raise UserError(sentence) from None
    return outcome.exit_code
