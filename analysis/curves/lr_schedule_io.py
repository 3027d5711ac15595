"""The rate of every update: from a run's config, a schedules.json beside its log, or the logged column.

Every formula is that of ``rwkv_lab.training.schedules``.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from analysis.curves import foreign, tables
from rwkv_lab.config import registry
from rwkv_lab.config.errors import UserError
from rwkv_lab.training import schedules

# Kinds of described schedules that decay, with the shape of the decay.
TAILS = {
    "cosine": "cosine",
    "exp_tail": "exponential",
    "linear_tail": "linear",
    "one_minus_sqrt_tail": "sqrt",
}
KINDS = ("constant", *TAILS, "steps")


def from_description(description: Mapping[str, Any], where: str = "schedules.json") -> np.ndarray:
    """Return the rates ``[total]`` of a described schedule.

    ``description``: kind (one of ``KINDS``), total, peak, warmup (updates, linear from 0), end, decay_start, and for
    steps the stages ``[[first update, rate], ...]``. A decay would reach ``end`` at update ``total``, one after the
    last; a cosine decays from the end of the warm-up on.
    """
    try:
        kind, total, peak = description["kind"], int(description["total"]), float(description["peak"])
        warmup, end = int(description.get("warmup", 0)), float(description.get("end", peak))
        start = int(description["decay_start"]) if kind in TAILS and kind != "cosine" else warmup
        stages = description["stages"] if kind == "steps" else []
    except KeyError as error:
        raise UserError(f"{where}: a schedule lacks {error}") from error
    if kind not in KINDS:
        raise UserError(f"{where}: unknown kind '{kind}'; choose one of {', '.join(KINDS)}")
    lr = np.full(total, peak)
    if kind in TAILS and start < total:
        try:
            tail = schedules.rates(
                "wsd", total - start + 1, lr_init=peak, lr_final=end, decay_fraction=1.0, decay_shape=TAILS[kind]
            )
        except UserError as error:
            raise UserError(f"{where}: {kind}: {error}") from error
        lr[start:] = tail[:-1]
    for first, rate in stages:
        lr[int(first) :] = rate
    lr[:warmup] = schedules.rates("linear", warmup + 1, lr_init=0.0, lr_final=peak)[:warmup][:total]
    return lr


def schedules_file(log: Path, file: Path | None = None) -> np.ndarray | None:
    """Return the rates that ``file`` gives under the stem of ``log``; None if it gives none.

    ``file`` is a JSON object with ``schedules``, by default the ``schedules.json`` beside ``log``.
    """
    path = file or log.parent / "schedules.json"
    if not path.is_file():
        if file is not None:
            raise UserError(f"--schedules {file}: no such file")
        return None
    try:
        described = json.loads(path.read_text(encoding="utf-8"))["schedules"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a file of schedules (an object with 'schedules')") from error
    return from_description(described[log.stem], str(path)) if log.stem in described else None


def read_rates(path: Path) -> np.ndarray:
    """Return the rates ``[T]`` of a CSV with a column lr: one row an update, or interpolated between its steps."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    columns = foreign.read_csv(path)
    name = tables.pick(columns, tables.RATE_NAMES)
    if name is None:
        raise UserError(f"{path} has no column lr; it has {', '.join(columns)}")
    rate = columns[name]
    steps = tables.pick(columns, tables.STEP_NAMES)
    if steps is None:
        return rate
    (step, rate), _ = tables.clean(columns[steps], rate)
    return interpolated(step - step[0] if step[0] == 1 else step, rate)


def of_config(schedule: Mapping[str, Any], total: int) -> np.ndarray | None:
    """Return the rates ``[total]`` of a run's ``schedule`` group; None if its file is gone or has another length."""
    parameters = dict(schedule)
    name = parameters.pop("name", None)
    if name not in registry.names("schedule"):
        return None
    if name == "fitted":
        path = Path(str(parameters.get("fit", "")))
        proposal = json.loads(path.read_text(encoding="utf-8")).get("proposal") if path.is_file() else None
        lr = np.array(proposal["rates"] if proposal else [], dtype=float)
        return lr if len(lr) == total else None
    known = {field.name for field in fields(registry.get("schedule", str(name)))}
    return schedules.rates(str(name), total, **{key: value for key, value in parameters.items() if key in known})


def interpolated(step: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Return rates ``[last step + 1]`` interpolated between the logged ones, constant before the first."""
    known = np.isfinite(rate)
    return np.interp(np.arange(int(step[-1]) + 1), step[known], rate[known])


def matches_logged(lr: np.ndarray, step: np.ndarray, rate: np.ndarray) -> bool:
    """Return whether the rates ``lr`` are those logged, within 1 % of the largest."""
    known = np.isfinite(rate) & (step < len(lr))
    return bool(np.all(np.abs(lr[step[known]] - rate[known]) <= 0.01 * lr.max()))
