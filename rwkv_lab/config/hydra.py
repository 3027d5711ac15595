"""Hydra as this project uses it: schemas, resolvers and its errors in one sentence."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rwkv_lab.config.errors import UserError, nearest
from rwkv_lab.config.omegaconf_messages import one_line, sentence
from rwkv_lab.config.schema import register, without_its_group
from rwkv_lab.sweeps.gpu_locks import visible_gpus
from rwkv_lab.sweeps.launchers import EXTRAS
from rwkv_lab.util.paths import REPOSITORY, RUNS


def prepare() -> None:
    """Registers schemas and the resolvers ``repository``, ``runs``, ``gpus`` and ``pick``; safe to call again."""
    register()
    OmegaConf.register_new_resolver("repository", lambda: str(REPOSITORY), replace=True)
    OmegaConf.register_new_resolver("runs", lambda: str(RUNS), replace=True)
    OmegaConf.register_new_resolver("gpus", lambda: max(1, len(visible_gpus())), replace=True)
    # ${pick:${model.name},{mha_pro:4e-4},6e-4}: a value by another key's, so that a study can state a recipe per model.
    OmegaConf.register_new_resolver("pick", lambda key, table, other: table.get(key, other), replace=True)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def explain(error: Exception) -> str | None:
    """One sentence for a mistake Hydra or OmegaConf found, or None where the error is no user's mistake."""
    if isinstance(error, ValueError) and str(error).startswith("Config group override must be"):
        return f"a group takes the name of one of its options: the groups are {', '.join(groups())}"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name} is no readable YAML: {error.problem}, line {mark.line + 1}"
    chain = [link for link in _chain(error) if isinstance(link, (HydraException, OmegaConfBaseException))]
    if not chain:
        return None
    text = " ".join(str(link) for link in chain)
    return (
        _unreadable(chain)
        or _missing_plugin(text)
        or _unknown_option(text)
        or _several_values(text)
        or _unknown_key(text, chain)
        or next((sentence(link) for link in chain if isinstance(link, OmegaConfBaseException)), None)
        or one_line(str(chain[0]))
    )


def _unreadable(chain: Sequence[BaseException]) -> str | None:
    for link in chain:
        if isinstance(link, OverrideParseException):
            return (
                f"{link.override} cannot be read as key=value: a value with commas, spaces, braces or quotes is quoted"
            )
    return None


def _missing_plugin(text: str) -> str | None:
    found = re.search(r"In '(hydra/\w+)/(\w+)': Could not load 'hydra/\w+/(\w+)'", text)
    if found and found[3] in EXTRAS:
        return f"{found[1]}={found[2]} needs a package that is missing: pip install -e '.[{EXTRAS[found[3]]}]'"
    return None


def _unknown_option(text: str) -> str | None:
    found = re.search(r"Could not find '([^']*)/([^'/]*)'", text)
    if found:
        group, option = found.groups()
        group = group.rpartition("hydra/config/")[2]
        listed = re.search(r"Available options in '[^']*':((?:\n\t\S+)+)", text)
        options = listed[1].split() if listed else studies() if group == "experiments" else []
        if not options:
            return f"{group}={option}: there is none to choose"
        return f"{group}={option} does not exist{nearest(option, options)}: choose one of {', '.join(options)}"
    found = re.search(r"Cannot find primary config '([^']*)'", text)
    if found:
        return f"--config-name={found[1]} does not exist: leave it out"
    if "Primary config directory not found" in text:
        return "--config-path names a folder that does not exist: leave it out"
    found = re.search(r"Could not override '([^'@]*)(@?)", text)
    if found and found[2]:
        return f"{found[1]}@ moves a group elsewhere, where nothing reads it: write {found[1]}=OPTION"
    if found and "No match in the defaults list" in text:
        return f"{found[1]} is no group or key{nearest(found[1], groups())}: the groups are {', '.join(groups())}"
    found = re.search(r"Could not delete(?: from config)?\. '(.*)' does not exist", text)
    return f"{found[1]} cannot be taken out: there is none" if found else None


def _several_values(text: str) -> str | None:
    found = re.search(r"Ambiguous value for argument '([^']*)'", text)
    if found:
        return f"{found[1]} is several values: add -m for a sweep over them, or write a list as [a,b]"
    found = re.search(r"(?:Multiple values for |force-add of config groups is not supported: '\+*)(\w+)", text)
    if found:
        return f"{found[1]} has an option already: write {found[1]}=OPTION without a plus"
    if re.search(r"Merge error: \w+ is not a subclass of", text):
        return "two options of one group cannot be merged: choose one, or add -m and write a,b for a sweep over them"
    return None


def groups() -> list[str]:
    """The configuration groups a user can choose from."""
    folders = sorted(path.name for path in (REPOSITORY / "conf").iterdir() if path.is_dir() and path.name != "hydra")
    return [*folders, "experiments"]


def studies() -> list[str]:
    """The studies a user can choose from."""
    return sorted(path.stem for path in (REPOSITORY / "experiments").glob("*.yaml"))


def check_studies() -> None:
    """A Mistake for a study that sets more of Hydra than its sweep: some of those settings name code to run."""
    for path in sorted((REPOSITORY / "experiments").glob("*.yaml")):
        try:
            settings = (yaml.safe_load(path.read_bytes()) or {}).get("hydra") or {}
        except (yaml.YAMLError, AttributeError):
            # Composing it says where it is broken.
            continue
        set_here = {"hydra." + key for key in settings if key != "sweeper"}
        set_here |= {"hydra.sweeper." + key for key in settings.get("sweeper") or {}}
        for key in sorted(set_here - {"hydra.mode", "hydra.sweeper.params"}):
            raise UserError(f"{path} sets {key}: a study sets hydra.mode and hydra.sweeper.params only")


def _unknown_key(text: str, chain: Sequence[BaseException]) -> str | None:
    found = re.search(r"(?:Key|key) '([^']*)' (?:is not in struct|not in '([^']*)')", text)
    if not found:
        return None
    key = found[1]
    found_in = [link for link in chain if isinstance(link, OmegaConfBaseException)]
    full = next((str(link.full_key) for link in found_in if link.full_key), key)
    parent: Any = next((link.parent_node for link in found_in if link.parent_node is not None), None)
    known = [str(name) for name in parent if name != "hydra"] if parent is not None else []
    place = full.rpartition(".")[0] or ("the top level" if "study" in known else "this place")
    likely = nearest(key, known)
    if place == "the top level":
        likely = without_its_group(key) or likely
    return f"{full} is unknown{likely}" + (f": {place} has {', '.join(known)}" if known else "")
