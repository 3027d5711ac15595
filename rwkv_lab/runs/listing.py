"""Runs as people read them: short names by what differs, rows of a list, a table of columns, two runs compared."""

import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.schema import PLAIN_GROUPS, Config
from rwkv_lab.runs.manifest import foretold
from rwkv_lab.runs.run import Run
from rwkv_lab.util.units import ago, count

MISSING = "-"
UNREADABLE = "unreadable"
# Groups and keys whose values cannot change a result never name a run.
_NOT_NAMING_GROUPS = ("tracker", "stop")
_NOT_NAMING = {field.name for field in dataclasses.fields(Config) if not field.metadata.get("identity", True)} | {
    f"{group}.{field.name}"
    for group, owner in PLAIN_GROUPS.items()
    for field in dataclasses.fields(owner)
    if not field.metadata.get("identity", True)
}
# The order of the parts of a name; other keys come between data and seed, in the order of the configuration.
_FIRST, _LAST = ("model.name", "schedule.name", "data.name", "branch.step"), ("seed",)
_WORDS = {
    "schedule.lr_init": "lr",
    "schedule.lr_final": "final lr",
    "trainer.batch_size": "batch",
    "branch.step": "branch at",
}
# What explains that two runs of one configuration differ.
_CIRCUMSTANCES = ("code", "git", "versions", "hardware", "resolved", "data", "parameters", "steps", "tokens", "result")


def names(runs: Sequence[Run]) -> list[str]:
    """Return a short name for each run by what differs between them: ``rwkv_v4 lr 4e-3 seed 2``, ``wsd 20 %``.

    Runs that differ in nothing but their study, or whose configuration cannot be read, get their directory's name.
    """
    configs = [_config_of(run) for run in runs]
    found = iter(labels([config for config in configs if config is not None]))
    shown = [run.name if config is None else next(found) for run, config in zip(runs, configs, strict=True)]
    return [f"{name} {run.id}" if shown.count(name) > 1 else name for name, run in zip(shown, runs, strict=True)]


def names_within_studies(runs: Sequence[Run]) -> dict[Path, str]:
    """Return a short name for each run's directory, by what differs between those of one study."""
    named: dict[Path, str] = {}
    for study in dict.fromkeys(run.path.parent for run in runs):
        members = [run for run in runs if run.path.parent == study]
        named |= dict(zip((run.path for run in members), names(members), strict=True))
    return named


def labels(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a short name for each configuration (plain nested data) by what differs between them.

    A single configuration, or equal ones, are named by model, data and seed.
    """
    flats = [flat(config) for config in configs]
    chosen = telling_keys(flats) or ["model.name", "data.name", "seed"]
    return [" ".join(filter(None, (part(key, each, chosen) for key in chosen))) or MISSING for each in flats]


def name_of(run: Run) -> str:
    """Return a short name for one run by what was typed for it: the keys of its command that can name a run, and model.

    Unlike ``names`` it does not depend on the other runs of the study, so a job is named when it begins.
    """
    config = _config_of(run)
    return MISSING if config is None else typed_name(config, list(run.manifest.get("overrides") or []))


def typed_name(config: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """Return a short name for a run of the plain ``config`` by the keys of its command line ``overrides``."""
    each = flat(config)
    typed = [word.partition("=")[0].lstrip("+") for word in overrides if "=" in word]
    typed = [key if key in each else f"{key}.name" for key in typed]
    wanted = {"model.name", *(key for key in typed if key in each and _can_name(key))}
    if len(wanted) == 1:
        wanted |= {"data.name", "seed"}
    middle = [key for key in each if key not in (*_FIRST, *_LAST)]
    chosen = [key for key in (*_FIRST, *middle, *_LAST) if key in wanted]
    return " ".join(filter(None, (part(key, each, chosen) for key in chosen)))


def telling_keys(flats: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys that tell flat configurations apart, most general first.

    A key is left out if its value follows from those before it, such as a rate that a study sets by model.
    """
    every = list(dict.fromkeys(key for each in flats for key in each if _can_name(key)))
    middle = [key for key in every if key not in (*_FIRST, *_LAST)]
    # Names of components come before their settings, which often follow from them.
    middle.sort(key=lambda key: not key.endswith(".name"))
    chosen: list[str] = []
    classes: list[tuple[str, ...]] = [() for _ in flats]
    for key in (*_FIRST, *middle, *_LAST):
        finer = [(*old, repr(each.get(key))) for old, each in zip(classes, flats, strict=True)]
        if len(set(finer)) > len(set(classes)):
            chosen.append(key)
            classes = finer
    return chosen


def _can_name(key: str) -> bool:
    return key not in _NOT_NAMING and key.partition(".")[0] not in _NOT_NAMING_GROUPS


def _config_of(run: Run) -> dict[str, Any] | None:
    try:
        return run.config
    except UserError:
        return None


def part(key: str, config: Mapping[str, Any], chosen: Sequence[str]) -> str:
    """Return the words of one key: ``rwkv_v4``, ``lr 4e-3``, ``no small_init_emb``; empty if the run lacks the key.

    A key whose last part another one of the ``chosen`` has too is written in full.
    """
    leaf = key.rpartition(".")[2]
    alone = sum(other.rpartition(".")[2] == leaf for other in chosen) == 1
    value, word = config.get(key), _WORDS.get(key, leaf if alone else key)
    if value is None:
        return ""
    if key == "data.name":
        own = config.get("data.path") or config.get("data.train_path")
        return PurePath(str(own)).name if own else str(value)
    if key.endswith(".name"):
        return str(value)
    if isinstance(value, bool):
        return word if value else f"no {word}"
    if key.endswith("_fraction"):
        named = "" if f"{key.partition('.')[0]}.name" in chosen else config.get(f"{key.partition('.')[0]}.name", word)
        return f"{named} {100 * value:.3g} %".strip()
    if key in ("trainer.tokens", "trainer.steps"):
        return f"{count(value)} {word}"
    if isinstance(value, str) and ("/" in value or key.endswith("path")):
        return PurePath(value).name
    return f"{word} {short(value)}"


def short(value: Any) -> str:
    """Return a value in few characters: 4e-3, 0.25, 2000, [a,b]; ``-`` for None."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isfinite(value) and value != 0 and not 1e-2 <= abs(value) < 1e6:
        digits, _, power = f"{value:.2e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return "[" + ",".join(map(short, value)) + "]"
    return str(value)


@dataclasses.dataclass(frozen=True)
class Row:
    """One run in a list; ``age`` in seconds since it ended, or since it started if it has not ended."""

    path: str
    study: str
    run: str
    name: str
    status: str
    model: str
    data: str
    seed: int | None
    val_loss: float | None
    val_bpb: float | None
    tokens_per_second: float | None
    predicted: float | None  # final loss by the fit that its schedule is of
    interval: tuple[float, float] | None  # of it
    measured: float | None  # the loss that was predicted, at the end
    forecast: dict[str, float]  # loss, low, high and step of a run that is not over; empty without one
    age: float | None
    reason: str | None
    config: dict[str, Any]  # flat


def rows(runs: Sequence[Run], now: datetime) -> list[Row]:
    """Return the runs as rows, each named by what differs within its study."""
    named = names_within_studies(runs)
    return [_row(run, named[run.path], now) for run in runs]


def _row(run: Run, name: str, now: datetime) -> Row:
    try:
        manifest, status = run.manifest, run.status
    except UserError as error:
        manifest, status = {"reason": str(error)}, UNREADABLE
    parts = run.name.rsplit("-", 3)
    model, data, seed = parts[:3] if len(parts) == 4 else (MISSING, MISSING, "")
    result, fitted = manifest.get("result") or {}, foretold(manifest)
    return Row(
        path=str(run.path),
        study=run.study,
        run=run.name,
        name=name,
        status=status,
        model=model,
        data=data,
        seed=int(seed[1:]) if seed[1:].isdecimal() and seed[1:].isascii() else None,
        val_loss=result.get("val_loss"),
        val_bpb=result.get("val_bpb"),
        tokens_per_second=result.get("tokens_per_second"),
        predicted=fitted.loss if fitted else None,
        interval=(fitted.low, fitted.high) if fitted else None,
        measured=fitted.measured if fitted else None,
        forecast=run.forecast if status in ("running", "interrupted") else {},
        age=age(manifest.get("ended") or manifest.get("started"), now),
        reason=manifest.get("reason"),
        config=flat(_config_of(run) or {}),
    )


def table(runs: Sequence[Run]) -> dict[str, np.ndarray]:
    """Return the runs as columns: name, run, study, status, every key that differs, and the final numbers.

    Numbers are float64, NaN if missing; everything else is an array of objects, None if missing.
    """
    listed = rows(runs, datetime.now(UTC))
    columns: dict[str, list[Any]] = {key: [getattr(row, key) for row in listed] for key in ("name", "run", "study")}
    columns["status"] = [row.status for row in listed]
    for key in telling_keys([row.config for row in listed]):
        columns[key] = [row.config.get(key) for row in listed]
    for key in ("val_loss", "val_bpb", "tokens_per_second"):
        columns[key] = [math.nan if (value := getattr(row, key)) is None else value for row in listed]
    return {key: _array(values) for key, values in columns.items()}


def _array(values: Sequence[Any]) -> np.ndarray:
    numeric = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if numeric and len(numeric) + sum(value is None for value in values) == len(values):
        return np.array([math.nan if value is None else float(value) for value in values])
    return np.array([*values, None], dtype=object)[:-1]


def age(moment: str | None, now: datetime) -> float | None:
    """Return the seconds from an ISO 8601 ``moment`` to ``now``; never below 0, although clocks go back."""
    try:
        then = datetime.fromisoformat(moment or "")
    except ValueError:
        return None
    return max(0.0, (now - (then if then.tzinfo else then.replace(tzinfo=UTC))).total_seconds())


def shown_age(seconds: float | None) -> str:
    """Return 5 s, 12 min, 3 h or 8 d; ``-`` if unknown."""
    return MISSING if seconds is None else ago(seconds)


def command(run: Run) -> str:
    """Return the command that started the run."""
    return shlex.join(["python", "run.py", *map(str, run.manifest.get("overrides") or [])])


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one with dotted keys."""
    if not isinstance(tree, Mapping):
        return {prefix[:-1]: tree}
    return {key: value for name, branch in tree.items() for key, value in flat(branch, f"{prefix}{name}.").items()}


def differences(left: Run, right: Run) -> dict[str, tuple[Any, Any]]:
    """Return the keys of configuration and manifest in which two runs differ, with both values; None if absent."""
    sides = [
        flat(run.config) | flat({"run.json": {key: run.manifest.get(key) for key in _CIRCUMSTANCES}})
        for run in (left, right)
    ]
    keys = dict.fromkeys((*sides[0], *sides[1]))
    return {key: (sides[0].get(key), sides[1].get(key)) for key in keys if sides[0].get(key) != sides[1].get(key)}
