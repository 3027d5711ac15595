"""Logs that other tools write: nanoGPT, Hugging Face's Trainer, TensorBoard, and CSV in other dialects.

Every reader returns columns ``[n]`` of float64, NaN for an empty cell, named as this package names them.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from analysis.curves.tables import to_columns
from rwkv_lab.config.errors import UserError

MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
RANGE = ("__MIN", "__MAX")  # columns beside a mean in a CSV of wandb's page
HUGGING_FACE = {"loss": "train_loss", "eval_loss": "val_loss", "learning_rate": "lr"}
TAGS = {  # what TensorBoard logs call them, by the end of the tag
    "train_loss": "train_loss",
    "train/loss": "train_loss",
    "loss/train": "train_loss",
    "val_loss": "val_loss",
    "val/loss": "val_loss",
    "eval/loss": "val_loss",
    "loss/val": "val_loss",
    "loss": "loss",
    "lr": "lr",
    "learning_rate": "lr",
}
_EVALUATED = re.compile(r"step (\d+): train loss ([\d.]+), val loss ([\d.]+)")
_ITERATION = re.compile(r"iter (\d+): loss ([\d.]+)(?:.*?\blr ([\d.eE+-]+))?")


def text_of(path: Path) -> str:
    """Return the text of a file in UTF-8 or UTF-16, by its byte order mark."""
    content = path.read_bytes()
    encoding = next((name for mark, name in MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 or UTF-16 ({error.reason})") from None


def read_csv(path: Path) -> dict[str, np.ndarray]:
    """Read a CSV separated by commas, semicolons or tabs; with semicolons a comma is a decimal point."""
    text = text_of(path)
    header = text.split("\n", 1)[0]
    separator = max(",;\t", key=header.count)
    if separator == ";":
        text = text.replace(",", ".")
    return without_run_names(to_columns(csv.DictReader(io.StringIO(text), delimiter=separator)))


def without_run_names(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the columns of a CSV of wandb's page, ``RUN - key``, under ``key``; of several runs none is renamed."""
    kept = {name: values for name, values in columns.items() if not name.endswith(RANGE)}
    named = [name.rsplit(" - ", 1) for name in kept if " - " in name]
    if len({run for run, _ in named}) != 1:
        return kept
    return {name.rsplit(" - ", 1)[-1]: values for name, values in kept.items()}


def read_nanogpt(text: str) -> dict[str, np.ndarray]:
    """Return the losses of nanoGPT's printed log; ``train_loss`` is that of its iterations."""
    rows: dict[int, dict[str, object]] = {}
    for step, _, held_out in _EVALUATED.findall(text):
        rows.setdefault(int(step), {"step": step})["val_loss"] = held_out
    for step, loss, rate in _ITERATION.findall(text):
        rows.setdefault(int(step), {"step": step}).update({"train_loss": loss, **({"lr": rate} if rate else {})})
    return to_columns([rows[step] for step in sorted(rows)])


def read_trainer_state(history: list[Mapping[str, object]]) -> dict[str, np.ndarray]:
    """Return the columns of ``log_history`` in Hugging Face's trainer_state.json."""
    return to_columns([{HUGGING_FACE.get(key, key): value for key, value in row.items()} for row in history])


def read_events(path: Path) -> dict[str, np.ndarray]:
    """Read the scalars of a TensorBoard event file, or of the files in a folder; needs the package tensorboard."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise UserError(f"{path} is of TensorBoard: pip install 'rwkv_lab[tensorboard]' to read it") from None
    events = EventAccumulator(str(path), size_guidance={"scalars": 0})
    events.Reload()
    rows: dict[int, dict[str, object]] = {}
    for tag in events.Tags()["scalars"]:
        name = next((own for end, own in TAGS.items() if tag == end or tag.endswith("/" + end)), tag)
        for event in events.Scalars(tag):
            rows.setdefault(event.step, {"step": event.step})[name] = event.value
    return to_columns([rows[step] for step in sorted(rows)])


def is_events(path: Path) -> bool:
    """Return whether ``path`` is a TensorBoard event file, or a folder with one."""
    if path.is_dir():
        return any(path.glob("events.out.tfevents.*"))
    return path.name.startswith("events.out.tfevents.")


def read(path: Path) -> dict[str, np.ndarray] | None:
    """Return the columns of a log of one of these tools; None for any other file."""
    if is_events(path):
        return read_events(path)
    if path.suffix == ".json":
        try:
            content = json.loads(text_of(path))
        except json.JSONDecodeError:
            return None  # lines of JSON
        history = content.get("log_history") if isinstance(content, dict) else None
        return read_trainer_state(history) if isinstance(history, list) else None
    if path.suffix in (".log", ".txt", ".out"):
        found = read_nanogpt(text_of(path))
        if not found:
            raise UserError(f"{path}: no line like 'step 250: train loss 2.1, val loss 2.2' or 'iter 250: loss 2.1'")
        return found
    return None
