"""run.json: the manifest of a run, with a checksum of its own and those of the files its result rests on."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkv_lab.config.errors import UserError
from rwkv_lab.util import hashing
from rwkv_lab.util.io import write_json

NAME = "run.json"
FORMAT = 1
# What readers rely on, if it is there at all.
_KINDS = {
    "format": int,
    "status": str,
    "reason": str,
    "forecast": dict,
    "predicted": dict,
    "started": str,
    "ended": str,
    "overrides": list,
    "data": dict,
    "result": dict,
    "files": dict,
    "resolved": dict,
}


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write run.json in one atomic step, with its checksum."""
    content = {key: value for key, value in manifest.items() if key != "checksum"}
    write_json(folder / NAME, content | {"checksum": _own_checksum(content)})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return run.json; UserError if it cannot be read, was damaged or was written by a newer version."""
    file = folder / NAME
    afresh = "start the run afresh with rerun=true"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not a readable manifest ({error}): {afresh}") from None
    if not isinstance(manifest, dict) or any(
        not isinstance(manifest.get(key), (kind, type(None))) for key, kind in _KINDS.items()
    ):
        raise UserError(f"{file} is not a readable manifest: {afresh}")
    if (manifest.get("format") or 0) > FORMAT:
        raise UserError(f"{file} was written by a newer version of rwkv_lab (format {manifest['format']})")
    # Runs made before there was a checksum have none.
    if manifest.pop("checksum", None) not in (None, _own_checksum(manifest)):
        raise UserError(f"{file} was damaged or edited, its checksum does not match: {afresh}")
    return manifest


def _own_checksum(manifest: Mapping[str, Any]) -> str:
    as_read = json.loads(json.dumps(manifest))
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the checksum of each named file of ``folder`` that exists."""
    return {name: hashing.checksum(folder / name) for name in names if (folder / name).is_file()}


def intact(folder: Path, name: str, manifest: Mapping[str, Any]) -> bool:
    """Return whether a file of a run is as its manifest recorded it; True if nothing was recorded."""
    return hashing.intact(folder / name, (manifest.get("files") or {}).get(name))


def verify(folder: Path, *names: str) -> None:
    """Raise UserError if a named file of the run in ``folder`` is not as its manifest recorded it.

    A file that does not exist, and a folder that is not a run, pass: whoever opens them reports that.
    """
    if not (folder / NAME).is_file():
        return
    manifest = read_manifest(folder)
    for name in names:
        if (folder / name).is_file() and not intact(folder, name, manifest):
            raise UserError(
                f"{folder / name} is damaged, its content does not match its recorded checksum: train the run afresh "
                "with rerun=true"
            )


@dataclass(frozen=True)
class Foretold:
    """The loss that a fitted law predicted for a run, and what came of it; losses of ``column``."""

    loss: float  # predicted for the end of the run
    low: float  # ends of its interval
    high: float
    level: float  # probability the interval claims
    law: str
    column: str  # val_loss on the fixed held-out part, or train_loss
    measured: float | None  # None until the run is complete
    best_run: str  # the run fitted that ended lowest; empty if unknown
    best_loss: float | None
    best_steps: int

    @property
    def verdict(self) -> str:
        """``inside`` or ``outside`` the interval; empty until the run is complete."""
        if self.measured is None:
            return ""
        return "inside" if self.low <= self.measured <= self.high else "outside"


def foretold(manifest: Mapping[str, Any]) -> Foretold | None:
    """Return what was predicted for a run trained from a fit; None for any other, or if the record is damaged."""
    record, result = manifest.get("predicted"), manifest.get("result") or {}
    if not record:
        return None
    try:
        low, high = map(float, record["interval"])
        column, best = str(record["column"]), record.get("best_loss")
        measured = result.get("fixed_val_loss" if column == "val_loss" else "train_loss")
        return Foretold(
            loss=float(record["final_loss"]),
            low=low,
            high=high,
            level=float(record["level"]),
            law=str(record["law"]),
            column=column,
            measured=float(measured) if measured is not None and math.isfinite(measured) else None,
            best_run=str(record.get("best_run") or ""),
            best_loss=None if best is None else float(best),
            best_steps=int(record.get("best_steps") or 0),
        )
    except (KeyError, TypeError, ValueError):
        return None
