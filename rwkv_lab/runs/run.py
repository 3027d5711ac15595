"""A run directory as its readers see it: status, manifest, configuration, metrics."""

import fcntl
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rwkv_lab.config.errors import UserError
from rwkv_lab.runs.manifest import read_manifest, verify
from rwkv_lab.runs.metrics import read_metrics

LOCK_NAME = ".lock"
FORECAST = "forecast.json"
CONFIG_BYTES = 1 << 18  # most that a config.yaml may have; a run writes some kilobytes
# Recorded in run.json; a run recorded as running is interrupted once nobody holds its lock.
FINISHED = ("complete", "failed", "stopped early")
STATUSES = ("complete", "stopped early", "running", "interrupted", "failed")


@dataclass(frozen=True)
class Run:
    """A run directory. Reading never changes it."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def id(self) -> str:
        """Eight hex digits at the end of the name."""
        return self.path.name.rpartition("-")[2]

    @property
    def study(self) -> str:
        return self.path.parent.name

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """run.json; UserError if it cannot be read."""
        return read_manifest(self.path)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.yaml as plain data; UserError if it cannot be read, or if the run has ended with another one."""
        self._verify_if_ended("config.yaml")
        return read_config(self.path / "config.yaml")

    @property
    def status(self) -> str:
        """One of ``STATUSES``: as recorded if the run has ended, else ``running`` or ``interrupted`` by its lock."""
        recorded = self.manifest.get("status")
        if recorded in FINISHED:
            return recorded
        return "running" if is_locked(self.path) else "interrupted"

    @property
    def forecast(self) -> dict[str, float]:
        """``loss``, ``low``, ``high`` of the final loss and the ``step`` it was forecast at; empty without a forecast.

        A process beside the run writes forecast.json; what a stop rule forecast is in run.json.
        """
        try:
            found = json.loads((self.path / FORECAST).read_text(encoding="utf-8"))
            return {key: float(found[key]) for key in ("loss", "low", "high", "step")}
        except (OSError, ValueError, KeyError, TypeError):
            return dict(self.manifest.get("forecast") or {})

    def stale(self, fingerprint: str) -> bool:
        """Return whether other code completed the run than ``fingerprint`` (``provenance.code_fingerprint()``)."""
        return self.manifest.get("code") != fingerprint

    def metrics(self) -> dict[str, np.ndarray]:
        """Columns of metrics.csv as float64 arrays, NaN where empty; a torn last row is left out.

        UserError if the run has ended with another one.
        """
        self._verify_if_ended("metrics.csv")
        return read_metrics(self.path / "metrics.csv")

    def _verify_if_ended(self, name: str) -> None:
        # The files of a run that has not ended may be newer than their checksums.
        if self.manifest.get("status") in FINISHED:
            verify(self.path, name)


class _ConfigLoader(yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # type: ignore[misc]
    """YAML as OmegaConf reads it: 1e-3 is a number."""


_ConfigLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d[\d_]*(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_config(file: Path) -> dict[str, Any]:
    """Return a config.yaml as plain data; UserError if it is too large or not a mapping without aliases."""
    try:
        size = file.stat().st_size
        if size > CONFIG_BYTES:
            raise ValueError(f"it has {size:,} bytes, more than {CONFIG_BYTES:,}")
        text = file.read_text(encoding="utf-8")
        # Aliases make a small file expand without bound, and no run has ever written one.
        if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, _ConfigLoader)):
            raise ValueError("it has YAML aliases")
        content = yaml.load(text, _ConfigLoader)
        if not isinstance(content, dict):
            raise ValueError("it is not a mapping")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{file} cannot be read: {reason}") from None
    return content


def is_locked(folder: Path) -> bool:
    """Return whether a living process holds the run's lock; works in folders that can only be read."""
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        # Locked, or a file system without such locks, where the file itself is the lock.
        return True
    finally:
        os.close(descriptor)
    return False


def is_run(path: Path) -> bool:
    """Return whether ``path`` is a run directory."""
    return (path / "run.json").is_file()


def load(path: Path | str) -> Run:
    """Return the run in the directory ``path``; UserError if it is not a run."""
    path = Path(path)
    if not is_run(path):
        raise UserError(f"{path} is not a run directory: it has no run.json")
    return Run(path.resolve())


def _below(path: Path) -> Iterator[Run]:
    for manifest in sorted((*path.glob("*/run.json"), *path.glob("*/*/run.json"))):
        yield Run(manifest.parent.resolve())


def find(*paths: Path | str) -> list[Run]:
    """Return the runs in ``paths``, each a run, a study's folder or a folder of studies.

    Raises UserError for a path without runs.
    """
    found: dict[Path, Run] = {}
    for path in map(Path, paths):
        runs = [Run(path.resolve())] if is_run(path) else list(_below(path))
        if not runs:
            raise UserError(f"{path} {'has no runs in it' if path.exists() else 'does not exist'}")
        found |= {run.path: run for run in runs}
    return list(found.values())
