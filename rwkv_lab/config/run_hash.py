"""The identity of a run: a hash of everything in its checked configuration that can change its result."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from rwkv_lab.config.kinds import Component
from rwkv_lab.config.schema import COMPONENT_GROUPS, Config


def canonical(config: Any, files: Mapping[str, str], prefix: str = "") -> Any:
    """What is hashed: plain data of a dataclass tree, without None, False and fields marked ``identity=False``.

    False stays where the default is None, because unset means something else there.
    ``files`` maps a dotted key that names a file to the sha256 of its content, which stands in for the name.
    """
    if dataclasses.is_dataclass(config):
        kept = {}
        for field in dataclasses.fields(config):
            key = f"{prefix}{field.name}"
            value = getattr(config, field.name)
            off = value is None or (value is False and field.default is not None)
            off |= not field.metadata.get("hash_default", True) and value == _default(field)
            if off or not field.metadata.get("identity", True):
                continue
            kept[field.name] = {"sha256": files[key]} if key in files else canonical(value, files, key + ".")
        return kept
    if isinstance(config, (list, tuple)):
        return [canonical(value, files, prefix) for value in config]
    return config


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def named_files(config: Config) -> dict[str, str]:
    """Return the sha256 of every file a key names, by dotted key: what the hash counts in place of the names."""
    components: list[tuple[str, Component]] = [(group, getattr(config, group)) for group in COMPONENT_GROUPS]
    return {key: sha256 for group, component in components for key, sha256 in component.file_hashes(group).items()}


def identity(config: Config, files: Mapping[str, str]) -> str:
    """Eight hex digits that name a run. ``files`` also carries sources no key names, such as the built-in corpus."""
    content = {"config": canonical(config, files), "sources": dict(sorted(files.items()))}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_name(config: Config, files: Mapping[str, str]) -> str:
    """``<model>-<data>-s<seed>-<hash8>``."""
    return f"{config.model.name}-{config.data.name}-s{config.seed}-{identity(config, files)}"
