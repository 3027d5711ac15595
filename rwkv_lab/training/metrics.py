"""metrics.csv: one row per logged step, append-only and flushed, so that a crash loses at most one row."""

import os
from pathlib import Path
from typing import TextIO

from rwkv_lab.util.paths import write_atomic

COLUMNS = (
    "step",  # completed updates
    "tokens",  # training tokens seen
    "lr",  # rate of the last update
    "train_loss",  # nats per token, of the last update's batch, before that update
    "val_loss",  # nats per token on the fixed held-out part, after the update
    "val_bpb",  # the same in bits per byte
    "grad_norm",  # L2 norm before clipping
    "seconds",  # training time so far, all sessions of the run together
    "tokens_per_second",  # since the row before
)


def _text(value: float | int | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.9g}"


class MetricsLog:
    """Writer of one run's metrics.csv."""

    def __init__(self, path: Path, completed_steps: int):
        """Opens ``path`` for appending, keeping its whole rows up to ``completed_steps`` only."""
        kept = [line for line in _whole_lines(path)[1:] if _step_of(line) <= completed_steps]
        self.kept = len(kept)  # rows of earlier sessions
        write_atomic(path, "".join(line + "\n" for line in (",".join(COLUMNS), *kept)).encode())
        self._file: TextIO = open(path, "a")  # noqa: SIM115 (closed by close)

    def append(self, row: dict[str, float | int | None]) -> None:
        self._file.write(",".join(_text(row.get(column)) for column in COLUMNS) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Makes every row so far survive a power cut."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _whole_lines(path: Path) -> list[str]:
    text = path.read_text(errors="replace") if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def _step_of(line: str) -> float:
    cells = line.split(",")
    return int(cells[0]) if len(cells) == len(COLUMNS) and cells[0].isdigit() else float("inf")
