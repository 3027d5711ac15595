"""Loss curves: what was logged, with the rate of every update, from run directories, tables and wandb.

Convention: state i is the model before update i, so a loss logged at step i belongs to the update that uses ``eta[i]``,
and a loss measured after the last update has step ``len(eta)``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analysis import rates, tables, wandb_runs
from rwkv_lab.config.errors import UserError, nearest

DENSE = 50  # points from which a held-out loss is worth fitting instead of the training loss


@dataclass(frozen=True, eq=False)
class LossCurve:
    """One run: ``loss [n]`` in nats per token at the states ``step [n]``, and the rate ``eta [T]`` of every update.

    ``meta`` may hold name, path, column, batch_size and notes (sentences on what was repaired or assumed).
    """

    step: np.ndarray
    loss: np.ndarray
    eta: np.ndarray
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        step, loss, eta = np.asarray(self.step), np.asarray(self.loss, float), np.asarray(self.eta, float)
        if step.ndim != 1 or loss.shape != step.shape or eta.ndim != 1:
            raise UserError(f"{self.name}: step and loss must be one-dimensional and equally long, eta one-dimensional")
        if len(step) == 0:
            raise UserError(f"{self.name}: no point with a finite loss")
        if not np.isfinite(loss).all() or not np.isfinite(step).all():
            raise UserError(f"{self.name}: step and loss must be finite")
        if not np.isfinite(eta).all() or (eta < 0).any() or not (eta > 0).any():
            raise UserError(f"{self.name}: every rate must be finite and at least 0, and one above 0")
        if (loss <= 0).any():
            raise UserError(f"{self.name}: every loss must be above 0 nats per token")
        step = np.rint(step).astype(int)
        if (np.diff(step) <= 0).any():
            raise UserError(f"{self.name}: steps must rise and none be given twice")
        if step[0] < 0 or step[-1] > len(eta):
            raise UserError(
                f"{self.name}: steps must lie between 0 and the {len(eta)} updates that eta gives rates for"
            )
        for key, value in (("step", step), ("loss", loss), ("eta", eta)):
            object.__setattr__(self, key, value)

    @property
    def name(self) -> str:
        return str(self.meta.get("name", "curve"))

    @property
    def notes(self) -> list[str]:
        return list(self.meta.get("notes", []))


def bin_means(step: np.ndarray, value: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean step (rounded), mean value and count of at most ``bins`` groups of neighbouring points, arrays ``[m]``."""
    if len(step) <= bins:
        return step, value, np.ones(len(step))
    first = np.linspace(0, len(step), bins, endpoint=False).astype(int)
    count = np.diff(np.append(first, len(step))).astype(float)
    mean_step = np.rint(np.add.reduceat(step, first) / count).astype(int)
    return mean_step, np.add.reduceat(value, first) / count, count


def loss_column(columns: Mapping[str, np.ndarray], wanted: str | None, where: str) -> str:
    """The column to fit: ``wanted``, else loss, else val_loss where it is dense, else train_loss."""
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


def from_columns(
    columns: Mapping[str, np.ndarray],
    *,
    where: str,
    name: str,
    column: str | None = None,
    eta: np.ndarray | None = None,
    completed: bool = False,
    meta: Mapping[str, Any] | None = None,
) -> LossCurve:
    """A curve from the columns of a log.

    ``eta`` gives every update's rate where it is known, else the logged rates are interpolated. ``completed``: step
    counts completed updates, as in metrics.csv, so the row's rate and train_loss belong to update ``step - 1``.
    """
    step_name = tables.pick(columns, tables.STEP_NAMES)
    if step_name is None:
        raise UserError(f"{where}: no column 'step' with numbers; it has {', '.join(columns) or 'no columns'}")
    loss_name = loss_column(columns, column, where)
    rate_name = tables.pick(columns, tables.RATE_NAMES)
    rate = columns[rate_name] if rate_name else np.full(len(columns[step_name]), np.nan)
    (step, loss, rate), notes = tables.clean(columns[step_name], columns[loss_name], rate)
    if len(step) == 0:
        raise UserError(f"{where}: no row with a finite step and {loss_name}")
    update = np.maximum(step - 1, 0) if completed else step
    if loss_name == "train_loss":
        step = update
    if eta is not None and len(eta) < step[-1]:
        notes.append(f"the schedule known has {len(eta)} updates and the log goes to {step[-1]}: logged rates used")
        eta = None
    if eta is None:
        if not np.isfinite(rate).any():
            raise UserError(f"{where}: no rates: give a column lr, or a schedules.json beside it with '{name}'")
        eta = rates.of_column(update, rate)
        notes.append("rates interpolated between the logged ones")
        if update[0] > 1:
            notes.append(f"the rate before the first logged update ({update[0]}) is taken to be that update's")
        if step[-1] > len(eta):
            eta = np.append(eta, np.full(step[-1] - len(eta), eta[-1]))
    return LossCurve(step, loss, eta, {"name": name, "column": loss_name, "notes": notes, **(meta or {})})


def load_table(path: str | Path, column: str | None = None) -> LossCurve:
    """A CSV or JSONL file with step, lr and loss; a ``schedules.json`` beside it may give the rates under its stem."""
    path = Path(path)
    columns = tables.read_jsonl(path) if path.suffix in (".jsonl", ".ndjson", ".json") else tables.read_csv(path)
    return from_columns(
        columns, where=str(path), name=path.stem, column=column, eta=rates.beside(path), meta={"path": str(path)}
    )


def from_lab(
    columns: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    steps: int | None,
    *,
    where: str,
    name: str,
    column: str | None,
) -> LossCurve:
    """A curve of a run of this laboratory: rates by its ``config``, columns as in metrics.csv.

    metrics.csv counts completed updates: its train_loss was measured before update ``step - 1``, its val_loss after it.
    ``steps``: updates of the whole run, where known.
    """
    trainer = config.get("trainer") or {}
    total = steps or trainer.get("steps")
    eta = rates.of_config(config.get("schedule") or {}, int(total)) if total else None
    notes = []
    if eta is not None and {"step", "lr"} <= columns.keys():
        (step, logged), _ = tables.clean(columns["step"], columns["lr"])
        if not rates.agrees(eta, np.maximum(step - 1, 0), logged):
            notes.append("the logged rates are not those of the config: logged rates used")
            eta = None
    meta = {"path": where, "batch_size": trainer.get("batch_size"), "study": config.get("study")}
    curve = from_columns(columns, where=where, name=name, column=column, eta=eta, completed=True, meta=meta)
    curve.meta["notes"] += notes
    return curve


def load_run(path: str | Path, column: str | None = None) -> LossCurve:
    """A run directory of this laboratory: metrics.csv, config.yaml and run.json."""
    from omegaconf import OmegaConf

    path = Path(path)
    config: Any = {}
    if (path / "config.yaml").is_file():
        config = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
    manifest = json.loads((path / "run.json").read_text(encoding="utf-8")) if (path / "run.json").is_file() else {}
    columns = tables.read_csv(path / "metrics.csv")
    where = str(path / "metrics.csv")
    return from_lab(columns, config, manifest.get("steps"), where=where, name=path.name, column=column)


def from_history(
    rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any], *, where: str, name: str, column: str | None
) -> LossCurve:
    """A curve from rows logged elsewhere; of a run of this laboratory, as its config shows, by metrics.csv's rules."""
    columns = tables.to_columns(rows)
    if "schedule" in config and "trainer" in config:
        return from_lab(columns, config, None, where=where, name=name, column=column)
    return from_columns(columns, where=where, name=name, column=column, meta={"path": where})


def load(path: str | Path, column: str | None = None) -> LossCurve:
    """The curve of a run directory, a CSV or JSONL file, or a wandb run (``wandb:entity/project/id``, an offline folder
    or a .wandb file). Mistake where there is none."""
    text = str(path)
    path = Path(path)
    if text.startswith("wandb:"):
        address = text.removeprefix("wandb:")
        history = wandb_runs.read_online(address)
        return from_history(*history, where=text, name=address.rsplit("/", 1)[-1], column=column)
    if path.is_dir():
        if (path / "metrics.csv").is_file():
            return load_run(path, column)
        records = sorted(path.glob("*.wandb"))
        if not records:
            raise UserError(
                f"{path}: neither a run directory (no metrics.csv) nor an offline wandb run (no .wandb file)"
            )
        path = records[0]
    if not path.is_file():
        raise UserError(f"{path}: no such file or run directory")
    if path.suffix == ".wandb":
        return from_history(*wandb_runs.read_offline(path), where=str(path), name=path.stem, column=column)
    if path.name == "metrics.csv":
        return load_run(path.parent, column)
    return load_table(path, column)
