"""Installs a component of another package for one test: one file in a temporary folder, found by its entry point."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore

from rwkv_lab.config import hydra, registry

HEADER = """
from dataclasses import dataclass
from rwkv_lab.config.fields import setting
from rwkv_lab.config.kinds import *
from rwkv_lab.config.registry import register
"""


@contextmanager
def plugged_in(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str, name: str = "added") -> Iterator[None]:
    """Context in which the module ``name`` with this ``source`` is installed, for this process and those it starts."""
    information = folder / f"{name}-1.0.dist-info"
    information.mkdir(parents=True)
    (folder / f"{name}.py").write_text(HEADER + source)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[{registry.ENTRY_POINTS}]\n{name} = {name}\n")
    members = {kind: dict(found) for kind, found in registry._members.items()}
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))))
        _discover_again()
        try:
            hydra.prepare()
            yield
        finally:
            for kind, found in registry._members.items():
                for added in found.keys() - members[kind].keys():
                    del found[added]
                    for group in (kind, f"schema/{kind}"):
                        _forget(group, f"{added}.yaml")
            sys.modules.pop(name, None)
    _discover_again()


def _discover_again() -> None:
    importlib.invalidate_caches()
    registry._discover.cache_clear()
    registry._load_entry_points.cache_clear()


def _forget(group: str, option: str) -> None:
    found = ConfigStore.instance().repo
    for part in group.split("/"):
        found = found.get(part, {})
    found.pop(option, None)
