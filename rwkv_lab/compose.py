"""Hydra as this project uses it: schemas, resolvers and its errors in one sentence."""

import re
from collections.abc import Iterator

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rwkv_lab.config import register
from rwkv_lab.errors import nearest
from rwkv_lab.paths import REPOSITORY, RUNS


def prepare() -> None:
    """Registers schemas and the resolvers ``repository``, ``runs`` and ``pick``; safe to call again."""
    register()
    OmegaConf.register_new_resolver("repository", lambda: str(REPOSITORY), replace=True)
    OmegaConf.register_new_resolver("runs", lambda: str(RUNS), replace=True)
    # ${pick:${model.name},{mha_pro:4e-4},6e-4}: a value by another key's, so that a study can state a recipe per model.
    OmegaConf.register_new_resolver("pick", lambda key, table, other: table.get(key, other), replace=True)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def explain(error: Exception) -> str | None:
    """One sentence for a mistake Hydra or OmegaConf found, or None where the error is no user's mistake."""
    chain = [link for link in _chain(error) if isinstance(link, (HydraException, OmegaConfBaseException))]
    if not chain:
        return None
    text = " ".join(str(link) for link in chain)
    return _unknown_option(text) or _unknown_key(text, chain) or _wrong_value(chain) or _first_line(str(chain[0]))


def _first_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines() if line.strip())[:300].rstrip(".")


def _unknown_option(text: str) -> str | None:
    found = re.search(r"Could not find '([^']*)/([^'/]*)'", text)
    if found:
        group, option = found.groups()
        folder = REPOSITORY / (group if group == "experiments" else f"conf/{group}")
        options = sorted(path.stem for path in folder.glob("*.yaml"))
        if not options:
            return f"{group}={option}: there is no group '{group}'{nearest(group, groups())}"
        return f"{group}={option} does not exist{nearest(option, options)}: choose one of {', '.join(options)}"
    found = re.search(r"Could not override '([^'@]*)", text)
    if found and "No match in the defaults list" in text:
        return f"{found[1]} is no group or key{nearest(found[1], groups())}: the groups are {', '.join(groups())}"
    return None


def groups() -> list[str]:
    """The configuration groups a user can choose from."""
    folders = sorted(path.name for path in (REPOSITORY / "conf").iterdir() if path.is_dir() and path.name != "hydra")
    return [*folders, "experiments"]


def _unknown_key(text: str, chain: list[BaseException]) -> str | None:
    found = re.search(r"(?:Key|key) '([^']*)' (?:is not in struct|not in '([^']*)')", text)
    if not found:
        return None
    key = found[1]
    full = next((str(link.full_key) for link in chain if getattr(link, "full_key", None)), key)
    parent = next((link.parent_node for link in chain if getattr(link, "parent_node", None) is not None), None)
    known = [str(name) for name in parent] if parent is not None else []
    allowed = f": {full.rpartition('.')[0] or 'the top level'} has {', '.join(known)}" if known else ""
    return f"{full} is unknown{nearest(key, known)}{allowed}"


def _wrong_value(chain: list[BaseException]) -> str | None:
    for link in chain:
        if isinstance(link, OmegaConfBaseException) and getattr(link, "full_key", None):
            return f"{link.full_key}: {_first_line(str(link.msg or link).splitlines()[0])}"
    return None
