"""``python -m analysis COMMAND``: read runs, fit laws of loss against learning rate, compare runs.

A command is one module of this package with ``SUMMARY``, ``add_arguments(parser)`` and ``run(args) -> int``. Modules
are light to import: what they need is imported when they run.
"""

import importlib
import pkgutil
from types import ModuleType

from rwkv_lab.cli.arguments import Arguments
from rwkv_lab.config.errors import UserError, nearest
from rwkv_lab.util.paths import as_typed


def commands() -> dict[str, ModuleType]:
    """Return the commands by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}


def usage() -> str:
    """Return the text of ``--help``."""
    known = commands()
    width = max(map(len, known))
    lines = [f"  {name:<{width}}  {module.SUMMARY}" for name, module in known.items()]
    return "\n".join(
        ["usage: python -m analysis COMMAND ... (options: python -m analysis COMMAND --help)", "", "commands:", *lines]
    )


def main(arguments: list[str]) -> int:
    """Run the command line ``arguments`` (without the program's name); return its exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    name, *rest = arguments
    known = commands()
    if name not in known:
        raise UserError(f"command '{name}' is unknown{nearest(name, known)}; choose one of {', '.join(known)}")
    module = known[name]
    parser = Arguments(
        prog=as_typed(f"python -m analysis {name}"), description=module.SUMMARY[0].upper() + module.SUMMARY[1:] + "."
    )
    module.add_arguments(parser)
    return module.run(parser.parse_args(rest))
