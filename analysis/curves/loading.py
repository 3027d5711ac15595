"""Reading loss curves from run directories, CSV and JSONL tables, and wandb."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from analysis.curves import foreign, lr_schedule_io, tables
from analysis.curves.curve import LossCurve
from rwkv_lab.config.errors import UserError, nearest
from rwkv_lab.runs import Run, is_run
from rwkv_lab.runs.listing import labels
from rwkv_lab.runs.provenance import recipe, setup

DENSE = 50  # points from which a held-out loss is worth fitting instead of the training loss
BITS = re.compile(r"(^|[_/])(bpb|bpc|bits)")  # in the name of a loss that is not in nats
TIMEOUT = 30  # seconds to wait for wandb


@dataclass(frozen=True)
class Reading:
    """How a log of another tool is read: the column that counts updates; tokens of an update, if it counts tokens."""

    step_column: str | None = None
    tokens_per_step: int | None = None


def load(
    path: str | Path,
    column: str | None = None,
    schedules: str | Path | None = None,
    reading: Reading = Reading(),
) -> LossCurve:
    """Load one curve; UserError if ``path`` has none.

    ``path``: a run directory, a CSV or JSONL file, a log of nanoGPT, Hugging Face's trainer_state.json, TensorBoard's
    event files, or a wandb run (``wandb:entity/project/id``, an offline folder or a .wandb file). ``column``: the loss
    to read. ``schedules``: for tables, a file of schedules that gives the rates.
    """
    text = str(path)
    path = Path(path)
    if text.startswith("wandb:"):
        address = text.removeprefix("wandb:")
        return from_history(*read_online(address), where=text, name=address.rsplit("/", 1)[-1], column=column)
    if path.is_dir():
        if (path / "metrics.csv").is_file():
            return load_run(path, column)
        if foreign.is_events(path):
            return load_table(path, column, schedules, reading)
        records = sorted(path.glob("*.wandb"))
        if not records:
            raise UserError(f"{path}: neither a run directory (no metrics.csv) nor an offline wandb run (no .wandb)")
        path = records[0]
    if not path.is_file():
        raise UserError(f"{path}: no such file or run directory")
    if path.suffix == ".wandb":
        return from_history(*read_offline(path), where=str(path), name=path.stem, column=column)
    if path.name == "metrics.csv":
        return load_run(path.parent, column)
    return load_table(path, column, schedules, reading)


def load_run(path: str | Path, column: str | None = None) -> LossCurve:
    """Load the curve of a run directory of this laboratory, from metrics.csv, config.yaml and run.json."""
    run = Run(Path(path))
    config = run.config if (run.path / "config.yaml").is_file() else {}
    steps = run.manifest.get("steps") if is_run(run.path) else None
    where = str(run.path / "metrics.csv")
    curve = from_lab(run.metrics(), config, steps, where=where, name=run.name, column=column)
    if is_run(run.path):
        curve.meta["run"] = run
        curve.meta["overrides"] = recipe(run.manifest.get("overrides") or [])
    return curve


def load_all(paths: Sequence[str | Path], ids: bool = False, **options: Any) -> list[LossCurve]:
    """Load every path as ``load`` does; runs of this laboratory are named as by ``by_schedule``.

    ``ids``: they keep the names of their directories.
    """
    curves = [load(path, **options) for path in paths]
    if ids:
        return [replace(curve, meta={**curve.meta, "named": True}) for curve in curves]
    return list(by_schedule(curves))


def by_schedule(curves: Sequence[LossCurve]) -> tuple[LossCurve, ...]:
    """Return the curves with runs of this laboratory named by their schedules and what else differs: ``wsd lr 8e-3``.

    Runs that differ in nothing keep their ids. A curve whose meta has ``named`` keeps its name.
    """
    own = [i for i, curve in enumerate(curves) if curve.meta.get("config") and not curve.meta.get("named")]
    found = [curve.name for curve in curves]
    told = labels([curves[i].meta["config"] for i in own])
    for i, label in zip(own, told, strict=True):
        schedule = str((curves[i].meta["config"].get("schedule") or {}).get("name", ""))
        if schedule not in label:
            label = schedule if len(set(told)) == 1 else f"{schedule} {label}"
        found[i] = label
    names = [f"{name} {_id(c)}" if found.count(name) > 1 else name for name, c in zip(found, curves, strict=True)]
    return tuple(
        replace(curve, meta={**curve.meta, "name": name}) if i in own else curve
        for i, (curve, name) in enumerate(zip(curves, names, strict=True))
    )


def _id(curve: LossCurve) -> str:
    run = curve.meta.get("run")
    return curve.name.rpartition("-")[2] if run is None else str(run.id)


def load_table(
    path: str | Path,
    column: str | None = None,
    schedules: str | Path | None = None,
    reading: Reading = Reading(),
) -> LossCurve:
    """Load a CSV or JSONL file with step, lr and loss, or a log of another tool.

    The rates are those of ``schedules``, or of a ``schedules.json`` beside the file, if it describes a schedule under
    the file's stem.
    """
    path = Path(path)
    columns = foreign.read(path)
    if columns is None:
        lines = path.suffix in (".jsonl", ".ndjson", ".json")
        columns = tables.read_jsonl(path) if lines else foreign.read_csv(path)
    columns = counted(columns, reading, str(path))
    described = lr_schedule_io.schedules_file(path, Path(schedules) if schedules else None)
    return from_columns(
        columns, where=str(path), name=path.stem, column=column, lr=described, meta={"path": str(path)}
    )  # fmt: skip


def counted(columns: Mapping[str, np.ndarray], reading: Reading, where: str) -> dict[str, np.ndarray]:
    """Return the columns with a column ``step`` that counts updates."""
    name = reading.step_column or tables.pick(columns, tables.STEP_NAMES)
    if reading.step_column and tables.pick(columns, [reading.step_column]) is None:
        raise UserError(f"{where}: no column '{name}' with numbers{nearest(str(name), columns)}")
    if name is None or (reading == Reading() and name in ("step", "_step")):
        return dict(columns)
    step = columns[name] / (reading.tokens_per_step or 1)
    return {**{key: values for key, values in columns.items() if key not in tables.STEP_NAMES}, "step": step}


def from_lab(
    columns: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    steps: int | None,
    *,
    where: str,
    name: str,
    column: str | None,
) -> LossCurve:
    """Return a curve of a run of this laboratory: rates by its ``config``, columns as in metrics.csv.

    metrics.csv counts completed updates: its train_loss was measured before update ``step - 1``, its val_loss after it.
    ``steps``: updates of the whole run, if known.
    """
    trainer = config.get("trainer") or {}
    total = steps or trainer.get("steps")
    lr = lr_schedule_io.of_config(config.get("schedule") or {}, int(total)) if total else None
    notes = []
    if lr is not None and {"step", "lr"} <= columns.keys():
        (step, logged), _ = tables.clean(columns["step"], columns["lr"])
        if not lr_schedule_io.matches_logged(lr, np.maximum(step - 1, 0), logged):
            notes.append("the logged rates differ from those of the config: logged rates used")
            lr = None
    meta = {"path": where, "batch_size": trainer.get("batch_size"), "study": config.get("study")}
    meta |= {
        "config": dict(config),
        "about": setup(config),
        "fitted": (config.get("schedule") or {}).get("name") == "fitted",
    }
    curve = from_columns(columns, where=where, name=name, column=column, lr=lr, completed=True, meta=meta)
    curve.meta["notes"] += notes
    return curve


def from_history(
    rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any], *, where: str, name: str, column: str | None
) -> LossCurve:
    """Return a curve from rows logged elsewhere; by metrics.csv's rules if ``config`` is one of this laboratory."""
    columns = tables.to_columns(rows)
    if "schedule" in config and "trainer" in config:
        return from_lab(columns, config, None, where=where, name=name, column=column)
    return from_columns(columns, where=where, name=name, column=column, meta={"path": where})


def from_columns(
    columns: Mapping[str, np.ndarray],
    *,
    where: str,
    name: str,
    column: str | None = None,
    lr: np.ndarray | None = None,
    completed: bool = False,
    meta: Mapping[str, Any] | None = None,
) -> LossCurve:
    """Return a curve from the columns of a log.

    ``lr`` gives every update's rate if it is known; otherwise the logged rates are interpolated. ``completed``: step
    counts completed updates, as in metrics.csv, so the row's rate and train_loss belong to update ``step - 1``.
    """
    step_name = tables.pick(columns, tables.STEP_NAMES)
    if step_name is None:
        raise UserError(f"{where}: no column 'step' with numbers; it has {', '.join(columns) or 'no columns'}")
    loss_name = loss_column(columns, column, where)
    if completed and loss_name == "val_loss":  # which most rows have no need of
        measured = np.isfinite(columns[loss_name])
        columns = {key: values[measured] for key, values in columns.items()}
    rate_name = tables.pick(columns, tables.RATE_NAMES)
    rate = columns[rate_name] if rate_name else np.full(len(columns[step_name]), np.nan)
    (step, loss, rate), notes = tables.clean(columns[step_name], columns[loss_name], rate)
    if len(step) == 0:
        raise UserError(f"{where}: no row with a finite step and {loss_name}")
    if BITS.search(loss_name):
        loss = loss * np.log(2)
        notes.append(f"{loss_name} is in bits: converted to nats, of the same unit of text")
    if step_name == "_step":
        notes.append("_step counts the rows that wandb logged; give --step-column if another column counts updates")
    update = np.maximum(step - 1, 0) if completed else step
    if loss_name == "train_loss":
        step = update
    if lr is not None and len(lr) < step[-1]:
        notes.append(f"the schedule known has {len(lr)} updates and the log goes to {step[-1]}: logged rates used")
        lr = None
    if lr is None:
        if not np.isfinite(rate).any():
            raise UserError(f"{where}: no rates: give a column lr, or --schedules FILE with '{name}'")
        lr = lr_schedule_io.interpolated(update, rate)
        notes.append("rates interpolated between the logged ones")
        if update[0] > 1:
            notes.append(f"the rate before the first logged update ({update[0]}) is taken to be that update's")
        if step[-1] > len(lr):
            lr = np.append(lr, np.full(step[-1] - len(lr), lr[-1]))
    return LossCurve(step, loss, lr, {"name": name, "column": loss_name, "notes": notes, **(meta or {})})


def loss_column(columns: Mapping[str, np.ndarray], wanted: str | None, where: str) -> str:
    """Return the column to fit: ``wanted``, else loss, else val_loss if it is dense, else train_loss."""
    if wanted is not None:
        if tables.pick(columns, [wanted]) is None:
            raise UserError(
                f"{where}: no column '{wanted}' with numbers{nearest(wanted, columns)}; it has {', '.join(columns)}"
            )
        return wanted
    held_out = columns.get("val_loss")
    dense = held_out is not None and np.count_nonzero(np.isfinite(held_out)) >= DENSE
    found = tables.pick(columns, ["loss", *(["val_loss"] if dense else []), "train_loss", "train/loss", "val_loss"])
    if found is None:
        raise UserError(f"{where}: no column loss, val_loss or train_loss; it has {', '.join(columns) or 'no columns'}")
    return found


class History(NamedTuple):
    """Rows that a wandb run logged, and its configuration."""

    rows: list[Mapping[str, Any]]
    config: dict[str, Any]


def read_online(path: str) -> History:
    """Read the wandb run ENTITY/PROJECT/ID; UserError if it cannot be reached."""
    import wandb

    try:
        run = wandb.Api(timeout=TIMEOUT).run(path)
        return History(list(run.scan_history()), dict(run.config))
    except (wandb.Error, ValueError) as error:
        raise UserError(f"wandb:{path}: cannot be read ({str(error).splitlines()[0]})") from error


def read_offline(path: Path) -> History:
    """Read a .wandb file through ``wandb leet inspect --json``; UserError if it has no logged rows."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    rows: list[Mapping[str, Any]] = []
    config: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        record = json.loads(line)
        if record.get("type") == "history":
            rows.append(record["history"].get("item", {}))
        elif record.get("type") == "run":
            config |= record["run"].get("config", {}).get("update", {})
    if not rows:
        reason = done.stderr.strip().splitlines()
        raise UserError(f"{path}: no logged rows in this wandb file{f' ({reason[-1]})' if reason else ''}")
    return History(rows, config)
