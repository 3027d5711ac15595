"""Run directories as others read them: status, manifest, configuration, metrics. Imports no torch."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import lock

STATUSES = ("complete", "running", "interrupted", "failed")
FORMAT = 1
# What readers rely on, where it is there at all.
_KINDS = {"format": int, "status": str, "started": str, "ended": str, "overrides": list, "data": dict, "result": dict}


@dataclass(frozen=True)
class Run:
    """A run directory. Reading one never changes it."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def study(self) -> str:
        return self.path.parent.name

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """run.json; a Mistake where it cannot be read."""
        file = self.path / "run.json"
        try:
            manifest = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{file} is no readable manifest ({error}): start the run afresh with rerun=true") from None
        if not isinstance(manifest, dict) or any(
            not isinstance(manifest.get(key), (kind, type(None))) for key, kind in _KINDS.items()
        ):
            raise UserError(f"{file} is no readable manifest: start the run afresh with rerun=true")
        if manifest.get("format", 0) > FORMAT:
            raise UserError(f"{file} was written by a newer version of rwkv_lab (format {manifest['format']})")
        return manifest

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.yaml as plain data."""
        from omegaconf import OmegaConf

        file = self.path / "config.yaml"
        try:
            return OmegaConf.to_container(OmegaConf.load(file))  # type: ignore[return-value]
        except Exception as error:
            raise UserError(f"{file} cannot be read: {error}") from None

    @property
    def status(self) -> str:
        """complete | failed as recorded; an unfinished run is running while its lock is held, else interrupted."""
        recorded = self.manifest.get("status")
        if recorded in ("complete", "failed"):
            return recorded
        return "running" if lock.is_held(self.path) else "interrupted"

    def stale(self, fingerprint: str) -> bool:
        """Whether the run was completed by other code than ``fingerprint`` (``provenance.code_fingerprint()``)."""
        return self.manifest.get("code") != fingerprint

    def metrics(self) -> dict[str, np.ndarray]:
        """Columns of metrics.csv as float64 arrays, NaN where empty; a torn last row is left out."""
        return read_metrics(self.path / "metrics.csv")


def read_metrics(file: Path) -> dict[str, np.ndarray]:
    """Columns of a metrics.csv as float64 arrays, NaN where empty; empty columns where the file is missing."""
    text = file.read_text(errors="replace") if file.exists() else ""
    whole = text[: text.rfind("\n") + 1].splitlines()
    header = whole[0].split(",") if whole else []
    rows = [row for line in whole[1:] if len(row := line.split(",")) == len(header)]
    return {name: np.array([_number(row[i]) for row in rows]) for i, name in enumerate(header)}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def is_run(path: Path) -> bool:
    return (path / "run.json").is_file()


def load(path: Path | str) -> Run:
    """The run in the directory ``path``; a Mistake where that is none."""
    path = Path(path)
    if not is_run(path):
        raise UserError(f"{path} is not a run directory: it has no run.json")
    return Run(path.resolve())


def _below(path: Path) -> Iterator[Run]:
    for manifest in sorted((*path.glob("*/run.json"), *path.glob("*/*/run.json"))):
        yield Run(manifest.parent.resolve())


def find(*paths: Path | str) -> list[Run]:
    """The runs named by ``paths``, each a run, a study's folder or runs/ itself; a Mistake where one holds none."""
    found: dict[Path, Run] = {}
    for path in map(Path, paths):
        runs = [Run(path.resolve())] if is_run(path) else list(_below(path))
        if not runs:
            raise UserError(f"{path} {'has no runs in it' if path.exists() else 'does not exist'}")
        found |= {run.path: run for run in runs}
    return list(found.values())
