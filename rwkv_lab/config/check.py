"""The check of a composed configuration: known keys, strict types, bounds, rules across fields. Imports no torch."""

import copy
import dataclasses
import functools
import json
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rwkv_lab.config import derived, registry
from rwkv_lab.config.errors import UserError, nearest
from rwkv_lab.config.fields import instance, schema, validate
from rwkv_lab.config.kinds import Component
from rwkv_lab.config.omegaconf_messages import sentence
from rwkv_lab.config.schema import ALL_GROUPS, COMPONENT_GROUPS, OPTIONAL_GROUPS, PLAIN_GROUPS, Config


def check(composed: DictConfig) -> Config:
    """Return the configuration as checked dataclasses.

    Raises UserError, one sentence that names the key and what is allowed, for whatever is wrong with it.
    """
    try:
        content = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True, throw_on_missing=False))
    except OmegaConfBaseException as error:
        raise UserError(sentence(error)) from None
    groups = {group: _group(group, content.pop(group, None)) for group in ALL_GROUPS}
    config = Config(**_top_level(content), **groups)
    validate(config)
    config.check()
    config.trainer.check()
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


def top_level_schema(groups: bool = False) -> type:
    """Return the schema of the keys at the top level; with ``groups`` these too, each of any content."""
    fields = [
        (field.name, Any if field.name in ALL_GROUPS else field.type, dataclasses.field(default=field.default))
        for field in dataclasses.fields(Config)
        if groups or field.name not in ALL_GROUPS
    ]
    return dataclasses.make_dataclass("Top", fields)


def _top_level(content: dict[str, Any]) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(_merge("", _top_level_structure(), content)))


@functools.cache
def _top_level_structure() -> DictConfig:
    return OmegaConf.structured(top_level_schema())


def _group(group: str, content: Any) -> Any:
    """Return a group's content as an instance of its dataclass; None for an optional group that is unset."""
    if content is None and group in OPTIONAL_GROUPS:
        return None
    if not isinstance(content, dict):
        raise UserError(f"the group {group} is missing or has no fields: choose one with {group}=...")
    # Checking and building may change the instance, so each run gets its own copy.
    return copy.deepcopy(_instance(group, json.dumps(content)))


@functools.lru_cache(maxsize=256)
def _instance(group: str, content_json: str) -> Any:
    """Return a group's content as an instance; jobs of a sweep share most of their groups."""
    content = json.loads(content_json)
    owner = schema_of(group, str(content.get("name")))
    merged = _merge(f"{group}.", OmegaConf.structured(schema(owner)), content)
    missing = sorted(str(key) for key in OmegaConf.missing_keys(merged))
    if missing:
        raise UserError(f"{group}.{missing[0]} must be given")
    return instance(owner, cast(dict[str, Any], OmegaConf.to_container(merged)))


def _merge(prefix: str, schema: DictConfig, content: dict[str, Any]) -> DictConfig:
    known = [str(name) for name in schema]
    for key in content:
        if key not in known:
            place = f"{prefix[:-1]} '{content['name']}'" if content.get("name") else prefix[:-1] or "the top level"
            likely = ("" if prefix else without_its_group(str(key))) or nearest(str(key), known)
            raise UserError(f"{prefix}{key} is unknown{likely}: {place} has {', '.join(known)}")
    try:
        return cast(DictConfig, OmegaConf.merge(schema, content))
    except OmegaConfBaseException as error:
        raise UserError(sentence(error, f"{prefix}{error.full_key or 'fields'}")) from None


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


def plain(config: Config) -> dict[str, Any]:
    """Return the checked configuration as plain nested data."""
    return dataclasses.asdict(config)
