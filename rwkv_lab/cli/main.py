"""``rwkv-lab COMMAND ...``: every command of the laboratory by name, each module imported only when asked for."""

import gc
import importlib
import sys

from rwkv_lab.config.errors import UserError, main_guard, nearest

# command: (module, summary)
COMMANDS = {
    "train": ("rwkv_lab.cli.train", "train a model, or a sweep with -m"),
    "runs": ("rwkv_lab.cli.runs", "list, show, compare and remove runs"),
    "data": ("rwkv_lab.cli.data", "look at a corpus or prepare it"),
    "tracking": ("rwkv_lab.cli.tracking", "upload runs to a tracker"),
    "generate": ("rwkv_lab.cli.generate", "continue a text with a trained model"),
    "evaluate": ("rwkv_lab.cli.evaluate", "measure the loss of a trained model"),
    "convert": ("rwkv_lab.cli.convert", "convert weights to and from other formats"),
    "compare": ("analysis.__main__", "tables, figures and a page that compare runs"),
    "fit": ("analysis.__main__", "fit a loss law to the curves of runs"),
    "predict": ("analysis.__main__", "predict the loss of a schedule from a fit"),
    "optimal": ("analysis.__main__", "find the best schedule of a fit"),
    "weights": ("analysis.__main__", "plot the time weights of a run"),
}


def usage() -> str:
    """Return the list of commands."""
    lines = [f"  {name:<10} {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(["usage: rwkv-lab COMMAND ... (rwkv-lab COMMAND --help lists its options)", "", *lines])


def main(arguments: list[str]) -> int:
    """Run ``arguments`` (without the program's name); return the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        raise UserError(f"unknown command {name}{nearest(name, COMMANDS)}: choose one of {', '.join(COMMANDS)}")
    module_name = COMMANDS[name][0]
    module = importlib.import_module(module_name)
    if name == "train":
        return module.main(["rwkv-lab train", *rest])
    return module.main([name, *rest] if module_name == "analysis.__main__" else rest) or 0


def run() -> None:
    """Entry of the console script and of ``python -m rwkv_lab``."""
    code = main_guard(lambda: main(sys.argv[1:]))
    # Python would walk all of torch's objects once more on its way out, which takes as long as importing them.
    gc.freeze()
    sys.exit(code)
