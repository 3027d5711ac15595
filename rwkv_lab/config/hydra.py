"""Hydra as this project uses it: schemas and resolvers, safe studies, and its errors as one sentence."""

from collections.abc import Iterator, Sequence
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
)

from rwkv_lab.config import registry
from rwkv_lab.config.check import other_owners, top_level, without_its_group
from rwkv_lab.config.errors import UserError, nearest
from rwkv_lab.config.fields import defaults
from rwkv_lab.config.overrides import Words, read
from rwkv_lab.config.schema import COMPONENT_GROUPS, OPTIONAL_GROUPS, PLAIN_GROUPS
from rwkv_lab.util.paths import REPOSITORY, runs_dir

STUDY_MAY_SET = ("mode", "sweeper.params")


def prepare() -> None:
    """Register schemas and the resolvers ``repository``, ``runs``, ``gpus`` and ``pick``; safe to call again."""
    from rwkv_lab.sweeps.launchers import visible_gpus

    _register_schemas()
    OmegaConf.register_new_resolver("repository", lambda: str(REPOSITORY), replace=True)
    OmegaConf.register_new_resolver("runs", lambda folder: str(runs_dir(folder)), replace=True)
    OmegaConf.register_new_resolver("gpus", lambda: max(1, len(visible_gpus())), replace=True)
    # ${pick:${model.name},{mha_pro:4e-4},6e-4}: a value by another key's, so that a study can state a recipe per model.
    OmegaConf.register_new_resolver("pick", lambda key, table, other: table.get(key, other), replace=True)


def _register_schemas() -> None:
    """Put the defaults of every schema into Hydra's config store as ``schema/<group>[/<name>]``.

    Values are untyped there: ``check`` converts them, with our messages. A component without a YAML, as another package
    adds it, is an option of its group all the same.
    """
    store = ConfigStore.instance()
    store.store(group="schema", name="config", node=top_level())
    for group, owner in PLAIN_GROUPS.items():
        store.store(group="schema", name=group, node=defaults(owner))
    for group in (*COMPONENT_GROUPS, *OPTIONAL_GROUPS):
        for name, member in registry.members(group).items():
            node = {**defaults(member), "name": name}
            store.store(group=f"schema/{group}", name=name, node=node)
            if not (REPOSITORY / "conf" / group / f"{name}.yaml").is_file():
                store.store(group=group, name=name, node=node)


def compose(overrides: Sequence[str]) -> DictConfig:
    """Return the composed configuration, Hydra's own part included. Raises UserError for what cannot be composed."""
    try:
        with hydra.initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
            return hydra.compose("config", overrides=list(overrides), return_hydra_config=True)
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        raise UserError(sentence) from None


def check_study(words: Words) -> None:
    """Raise UserError for a study that changes more of Hydra than its sweep, in whatever form.

    Hydra instantiates callbacks, launchers and log handlers by the names its configuration holds, so a study that could
    set them could run code.
    """
    if words.study is None:
        return
    parser = OverridesParser.create()
    # A single configuration has no place for several values.
    texts = [text for text in words.texts if not parser.parse_overrides([text])[0].is_sweep_override()]
    with_study = compose(texts).hydra
    # Keys of a run may need a group that the study chooses, and change nothing of Hydra.
    without = compose([text for text in texts if text.startswith("hydra")]).hydra
    changed = sorted(_leaves(with_study).items() ^ _leaves(without).items())
    for key, _ in changed:
        if not key.startswith((*STUDY_MAY_SET, "overrides.", "job.override_dirname", "runtime.choices.")):
            raise UserError(
                f"experiments={words.study} sets hydra.{key}: a study sets hydra.mode and hydra.sweeper.params only"
            )
    swept = [f"{key!s}={value}" for key, value in dict(with_study.sweeper.params or {}).items()]
    for text in swept:
        if text.lstrip("+~").startswith("hydra"):
            raise UserError(
                f"experiments={words.study} sweeps {text.partition('=')[0]}: only keys of a run can be swept"
            )
    read(swept, multirun=True)


def _leaves(node: Any, prefix: str = "") -> dict[str, str]:
    """Return dotted keys and the text of every value below ``node``, interpolations as they are written."""
    plain = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else node
    if isinstance(plain, dict) and plain:
        below = [_leaves(value, f"{prefix}{name!s}.") for name, value in plain.items()]
        return {key: text for leaves in below for key, text in leaves.items()}
    return {prefix[:-1]: repr(plain)}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def explain(error: Exception) -> str | None:
    """Return a mistake that Hydra or OmegaConf found as one sentence; None for an error that is not a user's."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name} is not readable YAML: {error.problem}, line {mark.line + 1}"
    chain = [link for link in _chain(error) if isinstance(link, (HydraException, OmegaConfBaseException))]
    for link in chain:
        if isinstance(link, MissingConfigException) and link.missing_cfg_file:
            options = list(link.options or ())
            name = str(link.missing_cfg_file)
            return f"{name} does not exist{nearest(name, options)}" + (
                f": choose one of {', '.join(options)}" if options else ""
            )
    for link in chain:
        if isinstance(link, OmegaConfBaseException):
            return explain_omegaconf(link)
    return one_line(str(chain[0])) if chain else None


def explain_omegaconf(error: OmegaConfBaseException) -> str:
    """Return an error of OmegaConf as one sentence that names the key."""
    key = str(error.full_key or error.key or "the configuration")
    if isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        parent: Any = error.parent_node
        known = [str(name) for name in parent if name != "hydra"] if isinstance(parent, DictConfig) else []
        place, _, last = key.rpartition(".")
        likely = (other_owners(place, last) if place else without_its_group(last)) or nearest(last, known)
        return f"{key} is unknown{likely}" + (f": {place or 'the top level'} has {', '.join(known)}" if known else "")
    if isinstance(error, (InterpolationResolutionError, UnsupportedInterpolationType)):
        return f"{key} takes its value from another key, which fails: {one_line(str(error.msg or error))}"
    return f"{key}: {one_line(str(error.msg or error))}"


def one_line(text: str) -> str:
    """Return the first line with content, without a full stop."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "").rstrip(".")
