"""Runs in a few words: the row of a list, the lines of one run, the keys in which two differ."""

import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import Run

MISSING = "-"


class Row(NamedTuple):
    """One run in a list; ``age`` in seconds since it ended, or began where it has not."""

    path: str
    study: str
    run: str
    status: str
    model: str
    data: str
    seed: int | None
    val_loss: float | None
    val_bpb: float | None
    tokens_per_second: float | None
    age: float | None
    reason: str | None


def row(run: Run, now: datetime) -> Row:
    """``run`` as a row; one whose manifest cannot be read has the status ``unreadable`` and the reason."""
    try:
        manifest, status = run.manifest, run.status
    except UserError as mistake:
        manifest, status = {"reason": str(mistake)}, "unreadable"
    parts = run.name.rsplit("-", 3)
    model, data, seed = parts[:3] if len(parts) == 4 else (MISSING, MISSING, "")
    result = manifest.get("result") or {}
    return Row(
        path=str(run.path),
        study=run.study,
        run=run.name,
        status=status,
        model=model,
        data=data,
        seed=int(seed[1:]) if seed[1:].isdigit() else None,
        val_loss=result.get("val_loss"),
        val_bpb=result.get("val_bpb"),
        tokens_per_second=result.get("tokens_per_second"),
        age=age(manifest.get("ended") or manifest.get("started"), now),
        reason=manifest.get("reason"),
    )


def age(moment: str | None, now: datetime) -> float | None:
    """Seconds from an ISO 8601 ``moment`` to ``now``, never below 0 although clocks go back."""
    try:
        then = datetime.fromisoformat(moment or "")
    except ValueError:
        return None
    return max(0.0, (now - (then if then.tzinfo else then.replace(tzinfo=UTC))).total_seconds())


def ago(seconds: float | None) -> str:
    """5 s, 12 min, 3 h, 8 d."""
    if seconds is None:
        return MISSING
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def command(run: Run) -> str:
    """What was typed to start the run."""
    return shlex.join(["python", "run.py", *run.manifest.get("overrides", [])])


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    if not isinstance(tree, Mapping):
        return {prefix[:-1]: tree}
    return {key: value for name, branch in tree.items() for key, value in flat(branch, f"{prefix}{name}.").items()}


# What of the manifest explains why two runs of one configuration differ.
_CIRCUMSTANCES = ("code", "git", "versions", "hardware", "resolved", "data", "parameters", "steps", "tokens", "result")


def differences(left: Run, right: Run) -> dict[str, tuple[Any, Any]]:
    """Keys of configuration and manifest in which two runs differ, with both values; None where a run lacks one."""
    sides = [
        flat(run.config) | flat({"run.json": {key: run.manifest.get(key) for key in _CIRCUMSTANCES}})
        for run in (left, right)
    ]
    keys = dict.fromkeys((*sides[0], *sides[1]))
    return {key: (sides[0].get(key), sides[1].get(key)) for key in keys if sides[0].get(key) != sides[1].get(key)}
