"""The check of a composed configuration: known keys, strict types, bounds, rules across fields. Imports no torch."""

import dataclasses
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rwkv_lab.config import derived, registry
from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import defaults, instance, validate
from rwkv_lab.config.kinds import Component
from rwkv_lab.config.schema import ALL_GROUPS, COMPONENT_GROUPS, OPTIONAL_GROUPS, PLAIN_GROUPS, Config


def check(composed: DictConfig) -> Config:
    """Return the configuration as checked dataclasses.

    Raises UserError, one sentence that names the key and what is allowed, for whatever is wrong with it.
    """
    try:
        content = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True, throw_on_missing=False))
    except OmegaConfBaseException as error:
        key, text = error.full_key or error.key or "the configuration", str(error.msg or error).splitlines()[0]
        raise UserError(f"{key} takes its value from another key, which fails: {text}") from None
    groups = {group: _group(group, content.pop(group, None)) for group in ALL_GROUPS}
    config = instance(Config, {**content, **groups})
    validate(config)
    config.check()
    config.trainer.check()
    derived.check_branch(config)
    derived.check_shares(config.trainer, config.trainer.processes or 1)
    chosen = [getattr(config, group) for group in (*COMPONENT_GROUPS, *OPTIONAL_GROUPS)]
    components = [cast(Component, component) for component in chosen if component is not None]
    for component in components:
        component.check()
    for component in components:
        component.check_run(config)
    return config


def schema_of(group: str, name: str) -> type:
    """Return the dataclass of the option ``name`` of ``group``; UserError lists the names if there is none."""
    if group in PLAIN_GROUPS:
        return PLAIN_GROUPS[group]
    return registry.get(group, name, f"{group}.name")


def top_level() -> dict[str, Any]:
    """Return the keys of the top level with their defaults; groups are required."""
    return defaults(Config)


def _group(group: str, content: Any) -> Any:
    """Return a group's content as an instance of its dataclass; None for an optional group that is unset."""
    if content is None and group in OPTIONAL_GROUPS:
        return None
    if not isinstance(content, dict):
        raise UserError(f"the group {group} is missing or has no fields: choose one with {group}=...")
    return instance(schema_of(group, str(content.get("name"))), content, f"{group}.")


def without_its_group(key: str) -> str:
    """Return `` (did you mean 'trainer.steps'?)`` for ``steps``, or an empty string."""
    schemas = list(PLAIN_GROUPS.items())
    for group in COMPONENT_GROUPS:
        schemas += [(group, member) for member in registry.members(group).values()]
    for group, owner in schemas:
        for each in dataclasses.fields(owner):
            if each.name == key or each.name.startswith(f"{key}_"):
                return f" (did you mean '{group}.{each.name}'?)"
    return ""


def other_owners(group: str, key: str) -> str:
    """Return `` (a key of data=npy, data=text)``, the components of ``group`` with this field, or an empty string."""
    if group not in COMPONENT_GROUPS:
        return ""
    owners = [name for name, member in registry.members(group).items() if key in member.__dataclass_fields__]
    return f" (a key of {', '.join(f'{group}={name}' for name in owners)})" if owners else ""


def plain(config: Config) -> dict[str, Any]:
    """Return the checked configuration as plain nested data."""
    return dataclasses.asdict(config)
