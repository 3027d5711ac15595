"""Which runs a command line means: paths, studies, names and ids."""

from collections.abc import Sequence
from pathlib import Path

from rwkv_lab.config.errors import UserError, nearest
from rwkv_lab.runs import Run, find, is_run, load
from rwkv_lab.util.paths import RUNS


def studies(names: Sequence[str], root: Path = RUNS) -> list[Run]:
    """The runs of the studies (names below ``root``, or paths), all runs below ``root`` where none is named."""
    if not names:
        return find(root) if root.exists() and any(root.glob("*/*/run.json")) else []
    found: dict[Path, Run] = {}
    for name in names:
        folder = root / name if (root / name).is_dir() else Path(name)
        if not folder.is_dir():
            known = sorted(path.name for path in root.glob("*") if path.is_dir() and not path.name.startswith("."))
            raise UserError(f"there is no study {name}{nearest(name, known)}: {root} has {', '.join(known) or 'none'}")
        found |= {run.path: run for run in find(folder)}
    return list(found.values())


def one(text: str, root: Path = RUNS) -> Run:
    """The run that ``text`` names: a path, STUDY/NAME, or the whole or the start of a name or an id."""
    for path in (Path(text), root / text):
        if is_run(path):
            return load(path)
    for path in (root / text, Path(text)):
        below = find(path) if text.strip("./") and path.is_dir() and any(path.glob("**/run.json")) else []
        if below:
            raise UserError(f"{text} holds {len(below)} runs: name one, such as {below[0].study}/{below[0].name}")
    wanted = Path(text).name or text or "''"
    every = [manifest.parent for manifest in sorted(root.glob("*/*/run.json"))]
    matching = [path for path in every if path.name.startswith(wanted) or path.name.rpartition("-")[2] == wanted]
    if len(matching) == 1:
        return load(matching[0])
    if matching:
        shown = ", ".join(f"{path.parent.name}/{path.name}" for path in matching[:5])
        raise UserError(f"{text} is the name of {len(matching)} runs: {shown}{', ...' if len(matching) > 5 else ''}")
    raise UserError(
        f"there is no run {text}{nearest(wanted, [path.name for path in every])}: see python -m rwkv_lab.runs list"
    )
