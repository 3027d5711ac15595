"""Runs trained from a fit in a comparison: what was predicted and what was measured, as cells and as a figure."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.compare.records import Record
from analysis.curves.curve import LossCurve
from analysis.curves.loading import load
from analysis.fit.model import FittedModel, Prediction
from analysis.plots.style import style
from rwkv_lab.config.errors import UserError

NONE = "–"
PANEL = (4.5, 2.8)  # inches
CSV_HEADINGS = ["predicted", "predicted_low", "predicted_high", "measured", "verdict"]
FITTED_HEADINGS = ["run", "predicted", "interval", "measured", "", "best run fitted", "gain over it"]
FITTED_TITLE = "Schedules of a fit: final losses predicted and measured (nats per token)"


def fitted_rows(records: Sequence[Record]) -> list[list[str]]:
    """Return the cells under ``FITTED_HEADINGS``, a row for every run trained from a fit."""
    rows = []
    for record in records:
        found = record.foretold
        if found is None:
            continue
        known = found.measured is not None and found.best_loss is not None
        rows.append(
            [
                f"{record.study}/{record.label or record.name}",
                f"{found.loss:.4f}",
                f"{found.low:.4f} to {found.high:.4f}",
                NONE if found.measured is None else f"{found.measured:.4f}",
                found.verdict or NONE,
                NONE if found.best_loss is None else f"{found.best_loss:.4f} ({found.best_run})",
                f"{found.best_loss - found.measured:+.4f}" if known else NONE,  # type: ignore[operator]
            ]
        )
    return rows


def csv_cells(record: Record) -> list[object]:
    """Return the cells under ``CSV_HEADINGS``, empty where nothing was predicted or measured."""
    found = record.foretold
    cells = [found.loss, found.low, found.high, found.measured, found.verdict] if found else [None] * 5
    return ["" if cell is None else cell for cell in cells]


def prediction_figure(records: Sequence[Record]) -> Any | None:
    """Measured curves over the bands that fits predicted; None if no run was trained from a fit that is still there."""
    from matplotlib.figure import Figure

    found = [(record, curve, band) for record in records if (drawn := _predicted(record)) for curve, band in [drawn]]
    if not found:
        return None
    figure = Figure(figsize=(PANEL[0] * min(2, len(found)), PANEL[1] * -(-len(found) // 2)))
    grid = figure.subplots(-(-len(found) // 2), min(2, len(found)), squeeze=False)
    for ax in grid.flat[len(found) :]:
        ax.set_visible(False)
    for ax, (record, curve, prediction) in zip(grid.flat, found, strict=False):
        first = min(len(prediction.lr) // 10, int(curve.step[-1]) - 1)
        step = np.unique(np.linspace(first, len(prediction.lr), 400).astype(int))
        low, high = (end[step] for end in prediction.band())
        look = style(0)
        ax.fill_between(step, low, high, color=look.colour, alpha=0.2, linewidth=0, label="predicted, 90 % interval")
        ax.plot(step, prediction.states[step], "--", color=look.colour, linewidth=1.0)
        kept = curve.step >= first
        ax.plot(curve.step[kept], curve.loss[kept], color=style(1).colour, linewidth=1.0, label="measured")
        known = np.concatenate([low, high, curve.loss[kept]])
        margin = 0.05 * float(np.ptp(known))
        ax.set_ylim(float(known.min()) - margin, float(known.max()) + margin)
        ax.set_title(f"fitted schedule, peak {curve.lr.max():.3g}, seed {record.seed}", loc="left")
        ax.set_xlabel("step")
        ax.set_ylabel(f"{str(curve.meta['column']).replace('_', ' ')} (nats per token)")
        ax.legend()
    return figure


def _predicted(record: Record) -> tuple[LossCurve, Prediction] | None:
    """Return the curve of a run trained from a fit and its prediction; None for others, or if the fit is gone."""
    found, file = record.foretold, Path(str((record.fact("predicted") or {}).get("fit", "")))
    if found is None or not file.is_file():
        return None
    try:
        # The file of `optimal` names the fit it was made from.
        stored = json.loads(file.read_text(encoding="utf-8"))
        model = FittedModel.load(stored["fit"]) if isinstance(stored.get("fit"), str) else FittedModel.load(file)
        curve = load(record.path, found.column)
        return curve, model.predict(curve.lr)
    except (UserError, ValueError, KeyError, AttributeError, OSError):
        return None
