"""Tables of logged rows: CSV or JSONL with gaps, NaN, repeats, resumed stretches and rows out of order."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from rwkv_lab.config.errors import UserError

STEP_NAMES = ("step", "Step", "global_step", "trainer/global_step", "train/global_step", "iteration", "iter", "_step")
RATE_NAMES = ("lr", "learning_rate", "eta", "train/lr", "train/learning_rate")


def _number(text: object) -> float:
    """Return the number in a cell, or NaN."""
    try:
        return float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def to_columns(rows: Iterable[Mapping[str, object]]) -> dict[str, np.ndarray]:
    """Return columns ``[n]`` of float64 from rows of cells; NaN for a cell without a number."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row if name is not None)
    return {name: np.array([_number(row.get(name)) for row in rows]) for name in names}


def read_jsonl(path: Path) -> dict[str, np.ndarray]:
    """Read the columns of a JSONL file."""
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}: line {number} is not JSON ({error.msg})") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}: line {number} is not an object with step, lr and loss")
            rows.append(row)
    return to_columns(rows)


def pick(columns: Mapping[str, np.ndarray], names: Iterable[str]) -> str | None:
    """Return the first of ``names`` that is a column with at least one number."""
    return next((name for name in names if name in columns and np.isfinite(columns[name]).any()), None)


def superseded(step: np.ndarray) -> np.ndarray:
    """Return ``[n]`` whether a row was logged again after the run resumed from an earlier step.

    A later stretch that goes back and repeats a step replaces all earlier rows from its first step on. A stretch that
    goes back without repeating a step is only out of order.
    """
    dropped = np.zeros(len(step), dtype=bool)
    for start in np.flatnonzero(np.diff(step) < 0) + 1:
        before = np.flatnonzero(~dropped[:start])
        stop = start + 1 + int(np.argmax(np.append(np.diff(step[start:]) < 0, True)))
        overlap = before[(step[before] >= step[start])]
        if np.isin(step[start:stop], step[overlap]).any():
            dropped[overlap] = True
    return dropped


def clean(step: np.ndarray, *values: np.ndarray) -> tuple[list[np.ndarray], list[str]]:
    """Return steps (integers, strictly rising) with their ``values``, and one sentence for every kind of row left out.

    The first of ``values`` must be a number in every row kept. Of rows with the same step the last one written counts.
    """
    notes = []
    order = np.arange(len(step))
    usable = np.isfinite(step) & np.isfinite(values[0])
    if not usable.all():
        notes.append(f"{np.count_nonzero(~usable)} rows without a finite step and loss left out")
    order = order[usable]
    again = superseded(step[order])
    if again.any():
        notes.append(f"{np.count_nonzero(again)} rows logged again after a resumption left out")
    order = order[~again]
    if (np.diff(step[order]) < 0).any():
        notes.append("rows sorted by step")
    order = order[np.argsort(step[order], kind="stable")]
    last = np.append(np.diff(step[order]) > 0, True)
    if not last.all():
        notes.append(f"{np.count_nonzero(~last)} repeated steps: the last row of each kept")
    order = order[last]
    return [np.rint(step[order]).astype(int), *(value[order] for value in values)], notes
