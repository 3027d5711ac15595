"""``python -m analysis COMMAND``: reads runs, fits laws of loss against learning rate, compares runs.

A command is one module with ``add_arguments(parser)`` and ``run(args) -> int``, named in ``COMMANDS`` and imported only
when it is asked for.
"""

import argparse
import importlib
import io
import sys
from typing import NoReturn

from rwkv_lab.config.errors import UserError, main_guard, nearest

COMMANDS: dict[str, tuple[str, str]] = {
    "fit": ("analysis.commands.fit", "fit a law of loss against learning rate to the curves of runs"),
    "predict": ("analysis.commands.predict", "the loss a fit predicts for a schedule, with its interval"),
    "optimal": ("analysis.commands.optimal", "the schedule a fit says is best, beside the usual ones"),
    "compare": ("analysis.commands.compare", "the table, the figures and the page that compare runs"),
    "weights": ("analysis.commands.weights", "the time-decay and time_w curves a run learned"),
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence and nothing else."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        ["usage: python -m analysis COMMAND ... (python -m analysis COMMAND --help says more)", "", "commands:", *lines]
    )


def main(arguments: list[str]) -> int:
    """Runs the command line ``arguments`` (without the program's name); its exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        raise UserError(f"unknown command '{name}'{nearest(name, COMMANDS)}; choose one of {', '.join(COMMANDS)}")
    module_name, summary = COMMANDS[name]
    module = importlib.import_module(module_name)
    parser = Parser(
        prog=f"python -m analysis {name}",
        description=summary[0].upper() + summary[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return module.run(parser.parse_args(rest))


if __name__ == "__main__":
    # Where the terminal's encoding has no ± there is a question mark instead of an error.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    sys.exit(main_guard(lambda: main(sys.argv[1:])))
