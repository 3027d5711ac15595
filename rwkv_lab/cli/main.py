"""``rwkv-lab COMMAND``: the one console script. Each command is a module that is imported when it is chosen."""

import gc
import importlib
import sys
from typing import NamedTuple, NoReturn

from rwkv_lab.config.errors import UserError, main_guard, nearest


class Command(NamedTuple):
    """Where a command is, and what it does."""

    module: str  # has main(argv) -> exit code or None
    summary: str


COMMANDS = {
    "train": Command("rwkv_lab.cli.train", "train a model, a sweep or a study (the same as python run.py)"),
    "runs": Command("rwkv_lab.cli.runs", "list, show, compare, watch, remove and unlock runs"),
    "evaluate": Command("rwkv_lab.cli.evaluate", "measure the loss of a model on held-out text"),
    "generate": Command("rwkv_lab.cli.generate", "continue a text"),
    "fill": Command("rwkv_lab.cli.fill", "put tokens in place of [MASK], by a model of objective=mlm"),
    "embed": Command("rwkv_lab.cli.embed", "write the sentence embedding of each line of a text"),
    "lm-eval": Command("rwkv_lab.cli.lm_eval", "score a model on tasks of lm-evaluation-harness"),
    "convert": Command("rwkv_lab.cli.convert", "read and write models of other programs"),
    "data": Command("rwkv_lab.cli.data", "look at a corpus, or prepare its tokens"),
    "tracking": Command("rwkv_lab.cli.tracking", "upload to the tracker what it does not have yet"),
    "compare": Command("analysis", "table, figures and page of the runs of a study"),
    "fit": Command("analysis", "fit a law of loss against learning rate"),
    "forecast": Command("analysis", "predict the end of a run in progress"),
    "predict": Command("analysis", "predict the loss of a schedule"),
    "scale": Command("analysis", "fit one law to several model sizes and predict the next"),
    "optimal": Command("analysis", "find the best schedule under a fitted law"),
    "calibrate": Command("analysis", "measure the laws' errors over families of runs, and renew the priors"),
    "weights": Command("analysis", "draw the time weights a model has learned"),
}


def main(argv: list[str]) -> int:
    """Run ``argv`` (without the program's name); return the exit code. Raises UserError for an unknown command."""
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: rwkv-lab COMMAND [argument]...   (rwkv-lab COMMAND --help)\n")
        print("\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()))
        return 0
    if argv[0] == "--version":
        from rwkv_lab import __version__

        print(f"rwkv_lab {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        likely = nearest(argv[0], COMMANDS)
        raise UserError(f"{argv[0]} is not a command{likely}: choose one of {', '.join(COMMANDS)}")
    module = COMMANDS[argv[0]].module
    if module == "analysis":
        return int(importlib.import_module("analysis.__main__").main(argv) or 0)
    return int(importlib.import_module(module).main(argv[1:]) or 0)


def run() -> None:
    """Run the console script; also ``python -m rwkv_lab``."""
    leave(main_guard(lambda: main(sys.argv[1:])))


def leave(code: int) -> NoReturn:
    """End the process with the exit code ``code``."""
    # Python would walk all of torch's objects once more on its way out, which takes as long as importing them.
    gc.freeze()
    sys.exit(code)
