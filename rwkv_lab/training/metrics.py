"""metrics.csv: one row per logged step, append-only and flushed, so that a crash loses at most one row.

A column is a function registered under its name::

    @register("metric", "weight_norm")
    def weight_norm(update: Update) -> float:
        return float(sum(p.square().sum() for p in update.model.parameters()) ** 0.5)

The columns of ``FIRST`` come first and in this order, which is the file's format; others follow by name. A resumed run
keeps the rows of earlier sessions whatever columns they have. Imports no torch.
"""

import hashlib
import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rwkv_lab.config import registry
from rwkv_lab.config.registry import register
from rwkv_lab.util.io import write_atomic

if TYPE_CHECKING:
    from rwkv_lab.models.lm import LM
    from rwkv_lab.training.evaluate import Evaluation

Value = float | int | None
FIRST = (
    "step",
    "tokens",
    "lr",
    "train_loss",
    "val_loss",
    "val_bpb",
    "grad_norm",
    "seconds",
    "tokens_per_second",
)
OPTIONAL = ("val_accuracy", "skipped_updates")  # columns of the runs that measure them


@dataclass(frozen=True)
class Update:
    """The update a row is about, after it was made."""

    step: int  # completed updates
    tokens: int  # training tokens seen
    lr: float  # rate of this update
    train_loss: float  # nats per token of its batch, before it
    grad_norm: float  # L2 norm before clipping
    held_out: "Evaluation | None"  # of the fixed held-out part after it, if it was measured
    seconds: float  # training time, all sessions of the run together
    new_tokens: int  # since the row before
    new_seconds: float  # since the row before
    model: "LM"
    flops_per_token: float = 0.0  # forward and backward
    peak_flops: float = 0.0  # a second, of all devices together; 0 if not known
    skipped: int = 0  # updates that loss scaling skipped, all sessions together


@register("metric", "step")
def step(update: Update) -> int:
    """Completed updates."""
    return update.step


@register("metric", "tokens")
def tokens(update: Update) -> int:
    """Training tokens seen."""
    return update.tokens


@register("metric", "lr")
def lr(update: Update) -> float:
    """Learning rate of the last update."""
    return update.lr


@register("metric", "train_loss")
def train_loss(update: Update) -> float:
    """Nats per token of the last update's batch, before that update."""
    return update.train_loss


@register("metric", "val_loss")
def val_loss(update: Update) -> float | None:
    """Nats per token on the fixed held-out part, after the update."""
    return update.held_out.loss if update.held_out else None


@register("metric", "val_bpb")
def val_bpb(update: Update) -> float | None:
    """The same in bits per byte; None if the tokens came without text."""
    return update.held_out.bpb if update.held_out and math.isfinite(update.held_out.bpb) else None


@register("metric", "val_accuracy")
def val_accuracy(update: Update) -> float | None:
    """Share of the predicted held-out tokens that were the most probable; None if it was not measured."""
    return update.held_out.accuracy if update.held_out and math.isfinite(update.held_out.accuracy) else None


@register("metric", "grad_norm")
def grad_norm(update: Update) -> float:
    """L2 norm of the gradient before clipping."""
    return update.grad_norm


@register("metric", "seconds")
def seconds(update: Update) -> float:
    """Training time so far, all sessions of the run together."""
    return update.seconds


@register("metric", "tokens_per_second")
def tokens_per_second(update: Update) -> float | None:
    """Training tokens per second since the row before."""
    return update.new_tokens / update.new_seconds if update.new_seconds > 0 else None


@register("metric", "mfu")
def mfu(update: Update) -> float | None:
    """Model FLOPs utilisation since the row before (Chowdhery et al. 2022, PaLM): a share of the devices' peak."""
    if not update.peak_flops or update.new_seconds <= 0:
        return None
    return update.new_tokens * update.flops_per_token / update.new_seconds / update.peak_flops


@register("metric", "skipped_updates")
def skipped_updates(update: Update) -> int:
    """Updates that loss scaling skipped so far."""
    return update.skipped


def columns() -> dict[str, Callable[[Update], Value]]:
    """Return the function of every column, in the order of the file."""
    registered = registry.members("metric")
    return {name: registered[name] for name in (*FIRST, *(name for name in registered if name not in FIRST))}


def row(update: Update) -> dict[str, Value]:
    """Return every metric of ``update`` by column."""
    return {name: measure(update) for name, measure in columns().items()}


class MetricsLog:
    """Writer of one run's metrics.csv."""

    def __init__(self, path: Path, completed_steps: int, optional: Collection[str] = ()):
        """Open ``path`` for appending; keep only its whole rows up to ``completed_steps``.

        ``optional`` are the columns of ``OPTIONAL`` that the run measures.
        """
        header, rows = _read(path)
        own = [name for name in columns() if name not in OPTIONAL or name in optional]
        self.columns = list(dict.fromkeys((*own, *header)))
        kept = [cells for cells in rows if int(cells["step"]) <= completed_steps]
        self.kept = len(kept)  # rows of earlier sessions
        self.last: dict[str, str] = kept[-1] if kept else {}  # the last row, as written
        self._hash = hashlib.sha256()
        lines = [self._line(cells) for cells in kept]
        write_atomic(path, "".join((",".join(self.columns) + "\n", *lines)).encode())
        self._file: TextIO = open(path, "a")  # noqa: SIM115 (closed by close)

    def append(self, row: Mapping[str, Value]) -> None:
        self.last = {column: _text(row.get(column)) for column in self.columns}
        self._file.write(self._line(self.last))
        self._file.flush()

    def sync(self) -> str:
        """Make every row so far survive a power cut; return their sha256."""
        os.fsync(self._file.fileno())
        return self.sha256

    @property
    def sha256(self) -> str:
        """Hash of all rows, as ``FIRST`` columns so that a column added later does not change it."""
        return self._hash.hexdigest()

    def close(self) -> None:
        self._file.close()

    def _line(self, cells: Mapping[str, str]) -> str:
        self._hash.update(",".join(cells.get(column, "") for column in FIRST).encode() + b"\n")
        return ",".join(cells.get(column, "") for column in self.columns) + "\n"


def take_rows(source: Path, target: Path, step: int, log_every: int, eval_every: int) -> None:
    """Write the rows of another run's metrics.csv up to ``step`` that a run with these intervals has as well."""
    header, rows = _read(source)
    lines = [",".join(header)]
    for cells in rows:
        done = int(cells["step"])
        evaluated = bool(eval_every) and done % eval_every == 0
        if done <= step and (evaluated or done % log_every == 0):
            kept = cells if evaluated else {**cells, "val_loss": "", "val_bpb": "", "val_accuracy": ""}
            lines.append(",".join(kept[column] for column in header))
    write_atomic(target, ("\n".join(lines) + "\n").encode())


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return header and whole rows, each cell as written; a row without a step is left out."""
    text = path.read_text(errors="replace") if path.exists() else ""
    lines = text[: text.rfind("\n") + 1].splitlines()
    header = lines[0].split(",") if lines else []
    rows = [cells for line in lines[1:] if len(cells := line.split(",")) == len(header)]
    named = [dict(zip(header, cells, strict=True)) for cells in rows]
    return header, [cells for cells in named if cells.get("step", "").isdecimal()]


def _text(value: Value) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.9g}"
