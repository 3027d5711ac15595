"""The words of a command line, read before Hydra composes them, so that each mistake is one sentence of ours."""

import importlib.util
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import OverrideParseException

from rwkv_lab.config import registry
from rwkv_lab.config.check import without_its_group
from rwkv_lab.config.errors import UserError, nearest
from rwkv_lab.config.schema import COMPONENT_GROUPS, Config
from rwkv_lab.util.paths import REPOSITORY

STUDIES = "experiments"
ALIASES = {"experiment": STUDIES, "hydra.launcher": "hydra/launcher", "hydra.sweeper": "hydra/sweeper"}
# Words that people try, and what does what they mean.
MEANT = {
    "resume": "the same command resumes an interrupted run by itself: leave it out",
    "restart": "rerun=true starts a run afresh",
    "epochs": "the length of a run is trainer.tokens=... or trainer.steps=...",
    "gpus": "trainer=ddp trains on all GPUs; trainer.processes=N on N of them",
}
NOT_SWEPT = (STUDIES, "study", "runs_dir", "stop", "rerun", "dry_run", "hydra/launcher", "hydra/sweeper")
HYDRA_KEYS = ("hydra.mode", "hydra.launcher", "hydra.sweeper", "hydra.verbose")
PACKAGES = {  # config a launcher or sweeper is based on -> module it needs, extra that installs it
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "sweep"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "sweep"),
    "submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "sweep"),
    "ray": ("hydra_plugins.hydra_ray_launcher", "ray"),
    "optuna": ("hydra_plugins.hydra_optuna_sweeper", "search"),
}


class Words(NamedTuple):
    """The overrides of a command line, checked."""

    texts: list[str]  # as Hydra takes them
    study: str | None  # the chosen study
    launcher: str | None  # the launcher asked for


def groups() -> list[str]:
    """Return the groups a user can choose from."""
    folders = [path.name for path in (REPOSITORY / "conf").iterdir() if path.is_dir() and path.name != "hydra"]
    return [*sorted({*folders, *COMPONENT_GROUPS}), STUDIES]


def options(group: str) -> list[str]:
    """Return the options of a group: its YAML files and, for a kind of component, its registered members."""
    folder = REPOSITORY / (STUDIES if group == STUDIES else f"conf/{group}")
    names = {path.stem for path in folder.glob("*.yaml")}
    if group in registry.KINDS:
        names |= set(registry.names(group))
    elif group == "hydra/launcher":
        names |= {"basic"}
    elif group == "hydra/sweeper":
        names |= {"study"}
    return sorted(names)


def read(texts: Sequence[str], multirun: bool) -> Words:
    """Return the checked overrides. Raises UserError for the first word that no composition could accept."""
    parser = OverridesParser.create()
    parsed: list[Override] = []
    for text in with_home(texts):
        key, equals, value = text.partition("=")
        plain = key.strip("+~ ")
        if plain in ALIASES:
            text = text.replace(plain, ALIASES[plain], 1)
        if not plain or not (equals or text.startswith("~")):
            raise UserError(f"{text} is not an override: write key=value or group=option")
        try:
            parsed += parser.parse_overrides([text])
        except OverrideParseException:
            raise UserError(unreadable(key, value)) from None
    chosen = {override.key_or_group: override.value() for override in parsed}
    for override in parsed:
        if override.key_or_group in NOT_SWEPT and override.is_sweep_override():
            raise UserError(f"{override.key_or_group} cannot be swept: give one value and start a sweep for each")
    study, launcher = chosen.get(STUDIES), chosen.get("hydra/launcher")
    sweeps = multirun or bool(study) or str(chosen.get("hydra.mode")).endswith("MULTIRUN")
    for override in parsed:
        _check(override, sweeps, searching=chosen.get("hydra/sweeper") == "search")
    if launcher not in (None, "basic") and not sweeps:
        raise UserError(f"hydra/launcher={launcher} has nothing to launch: add -m for a sweep, or experiments=NAME")
    written = [str(override.input_line) for override in parsed]
    return Words(written, str(study) if study else None, str(launcher) if launcher else None)


def _check(override: Override, sweeps: bool, searching: bool) -> None:
    key, text = override.key_or_group, str(override.input_line)
    value = text.partition("=")[2]
    if override.is_delete():
        raise UserError(f"{text}: keys cannot be taken out; set another value, e.g. {key}=null")
    if override.is_interval_sweep() and not searching:
        raise UserError(
            f"{text} is a range to search, not a grid: add hydra/sweeper=search, or list values as {key}=a,b"
        )
    if override.is_sweep_override() and not sweeps:
        raise UserError(
            f"{text} is several values: add -m for a sweep over them; write a list as {key}=[a,b], "
            f"and one value with commas as {quoted(key, value)}"
        )
    top = key.partition(".")[0]
    if key.startswith("hydra"):
        _check_hydra(key, override)
    elif key in groups():
        _check_group(key, override)
    elif top not in {field.name for field in fields(Config)}:
        if key in MEANT:
            raise UserError(f"{key} is not a key: {MEANT[key]}")
        known = [*(field.name for field in fields(Config)), *groups()]
        likely = without_its_group(key) or nearest(top, known)
        raise UserError(f"{key} is unknown{likely}: the top level has {', '.join(dict.fromkeys(known))}")


def _check_hydra(key: str, override: Override) -> None:
    if key in ("hydra/launcher", "hydra/sweeper"):
        _check_group(key, override)
        based = _base(key, str(override.value()))
        module, extra = PACKAGES.get(based, ("", ""))
        if module and _missing(module):
            raise UserError(f"{override.input_line} needs a package that is missing: pip install 'rwkv_lab[{extra}]'")
    elif not key.startswith(HYDRA_KEYS):
        raise UserError(
            f"{key} does nothing here: runs are in runs_dir=PATH, and of Hydra's own keys "
            "hydra/launcher, hydra/sweeper, their fields and hydra.mode may be set"
        )
    elif key == "hydra.mode" and override.value() not in ("RUN", "MULTIRUN"):
        raise UserError(f"hydra.mode={override.value()} is unknown: choose one of RUN, MULTIRUN")


def _base(group: str, option: str) -> str:
    """Return the config an option of ours is based on: the first entry of its defaults."""
    file = REPOSITORY / "conf" / group / f"{option}.yaml"
    content: Any = yaml.safe_load(file.read_bytes()) if file.is_file() else None
    return str(content["defaults"][0]) if content else option


def _missing(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is None
    except ModuleNotFoundError:
        return True


def _check_group(group: str, override: Override) -> None:
    if override.package is not None:
        raise UserError(f"{group}@ moves a group elsewhere, where nothing reads it: write {group}=OPTION")
    if override.is_add() or override.is_force_add():
        raise UserError(f"{group} has an option already: write {group}=OPTION without a plus")
    value: Any = override.value()
    if isinstance(value, list):
        raise UserError(f"{group} takes one option: to sweep over several add -m and write {group}=a,b")
    several = override.value_type in (ValueType.CHOICE_SWEEP, ValueType.SIMPLE_CHOICE_SWEEP)
    texts = [str(each) for each in override.sweep_string_iterator()] if several else [_text(value)]
    known = options(group)
    for text in texts:
        if text == "null" or text in known:
            continue
        if group == "data" and (proposed := file_for_corpus(text)):
            raise UserError(proposed)
        raise UserError(f"{group}={text} does not exist{nearest(text, known)}: choose one of {', '.join(known)}")


def _text(value: Any) -> str:
    return "null" if value is None else str(value)


def quoted(key: str, value: str) -> str:
    """Return ``key=value`` as a shell takes it, with the value in quotes that Hydra takes off."""
    return shlex.quote(_hydra_quoted(key, value))


def _hydra_quoted(key: str, value: str) -> str:
    # Hydra reads a backslash as itself, except before a quote.
    escaped = value.replace('\\"', '\\\\"').replace('"', '\\"')
    return f'{key}="{escaped}"'


def with_home(overrides: Sequence[str]) -> list[str]:
    """Return the overrides with ``~`` at the beginning of a value expanded, as in ``data.path=~/x``."""
    expanded = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if equals and value.startswith("~"):
            try:
                override = _hydra_quoted(key, str(Path(value).expanduser()))
            except RuntimeError:
                override = _hydra_quoted(key, value)  # the key's owner names what is missing
        expanded.append(override)
    return expanded


def unreadable(key: str, value: str) -> str:
    """Return a sentence on ``key=value`` that is outside Hydra's grammar, with the quoting that works."""
    plain = value.strip()
    if len(plain) > 1 and plain[0] == plain[-1] and plain[0] in "'\"":
        plain = plain[1:-1]
    if key == "data" and (proposed := file_for_corpus(plain)):
        return proposed
    sentence = f"{key}={value} cannot be read as key=value"
    if plain.isalnum() and plain.isascii():
        return f"{sentence}: write key.field=value"
    if plain[:1] in ("[", "{"):
        return f"{sentence}: write a list as [a,b], a mapping as {{key:value}}, and one value as {quoted(key, plain)}"
    return f"{sentence}: quote the value, as in {quoted(key, plain)}"


def file_for_corpus(path: str) -> str | None:
    """Return a sentence for ``data=FILE``, with the corpus and key to name it by; None for what is not like a file."""
    suffix = Path(path).suffix
    if "/" not in path and not suffix:
        return None
    corpora = registry.members("data")
    fitting = [name for name, member in corpora.items() if suffix in member.suffixes] or ["text"]
    name = fitting[0]
    tokenizer = " tokenizer=ids" if corpora[name].holds == "token ids" else ""
    key = f"data.path={path}"
    if not set(path) <= _PLAIN:
        key = quoted("data.path", path)
    return f"data={path} is not a corpus: for a file of your own write data={name}{tokenizer} {key}"


_PLAIN = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/.-_")
