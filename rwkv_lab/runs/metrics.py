"""Reading metrics.csv: all of it as arrays, or only its last row."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

OBSERVATIONS = "observations.jsonl"  # what a tracker sees beside the rows; training/observations.py has the form

TAIL_BYTES = 4096  # more than any row takes


def read_metrics(file: Path) -> dict[str, np.ndarray]:
    """Return the columns of a metrics.csv as float64 arrays, NaN where empty; a torn last row is left out.

    A missing file has no columns.
    """
    text = file.read_text(errors="replace") if file.exists() else ""
    whole = text[: text.rfind("\n") + 1].splitlines()
    header = whole[0].split(",") if whole else []
    rows = [row for line in whole[1:] if len(row := line.split(",")) == len(header)]
    return {name: np.array([_number(row[i]) for row in rows]) for i, name in enumerate(header)}


def last_row(file: Path) -> dict[str, float]:
    """Return the last whole row of a metrics.csv, NaN where empty, {} if it has none; reads a few kB only."""
    try:
        with open(file, "rb") as opened:
            header = opened.readline(TAIL_BYTES).decode(errors="replace").rstrip("\n").split(",")
            begin = opened.tell()
            end = opened.seek(0, os.SEEK_END)
            opened.seek(max(begin, end - TAIL_BYTES))
            tail = opened.read().decode(errors="replace")
    except OSError:
        return {}
    for line in reversed(tail[: tail.rfind("\n") + 1].splitlines()):
        row = line.split(",")
        if len(row) == len(header):
            return dict(zip(header, map(_number, row), strict=True))
    return {}


def last_step(file: Path) -> int:
    """Return the step of the last whole row of a metrics.csv, 0 if it has none; reads the end of the file only."""
    try:
        with open(file, "rb") as rows:
            rows.seek(max(0, os.fstat(rows.fileno()).st_size - TAIL_BYTES))
            lines = rows.read().decode(errors="replace").split("\n")[:-1]
    except FileNotFoundError:
        return 0
    step = lines[-1].partition(",")[0] if lines else ""
    return int(step) if step.isascii() and step.isdecimal() else 0


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


class RowReader:
    """Reads metrics.csv as it grows: each call of ``new`` returns the rows that were added since the one before."""

    def __init__(self, file: Path):
        self._file = file
        self._offset = 0
        self._header: list[str] = []

    def new(self) -> list[dict[str, float]]:
        """Return the new whole rows in order, each without its empty cells."""
        try:
            with open(self._file, "rb") as file:
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        lines = whole.decode(errors="replace").splitlines()
        if lines and not self._header:
            self._header = lines.pop(0).split(",")
        cells = [row for line in lines if len(row := line.split(",")) == len(self._header)]
        rows = [dict(zip(self._header, map(_number, row), strict=True)) for row in cells]
        return [{name: value for name, value in row.items() if value == value} for row in rows]


def read_observations(file: Path) -> list[dict[str, Any]]:
    """Return the whole lines of observations.jsonl in order; none if there is no file."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            entry = json.loads(line) if line.endswith("\n") else None
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            found.append(entry)
    return found
