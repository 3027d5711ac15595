"""A schedule put forward for training: the file that ``schedule=fitted schedule.fit=PATH`` reads."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from analysis.fit import Fit
from analysis.optimal import Optimum, best
from rwkv_lab.config.errors import UserError

LEVEL = 0.9


def propose(
    fit: Fit, steps: int, eta_max: float | None = None, warmup: int | None = None, kind: str = "free"
) -> tuple[Optimum, np.ndarray]:
    """The optimum for a whole run of ``steps`` updates and its rates ``[steps]``.

    A law that counts from its window on keeps the first run's rates before it. ``warmup``: that of the first run by
    default. Mistake where ``steps`` end before the window.
    """
    lead = len(fit.lead)
    if steps <= lead + 1:
        raise UserError(f"steps: must be above {lead + 1}, for the fit holds from step {lead} on, not {steps}")
    own = fit.runs[0].warmup if lead == 0 else 0
    warmup = min(own, (steps - lead) // 2) if warmup is None else warmup
    optimum = best(fit, steps - lead, eta_max, warmup, kind)
    return optimum, np.concatenate([optimum.lead, optimum.eta])


def as_dict(fit: Fit, optimum: Optimum, rates: np.ndarray) -> dict[str, Any]:
    """The ``proposal`` of a schedule file."""
    return {
        "steps": len(rates),
        "rates": rates.tolist(),
        "predicted_final_loss": optimum.final_loss,
        "interval": list(optimum.interval(LEVEL)),
        "level": LEVEL,
        "column": fit.runs[0].column,
        "law": fit.law,
        "kind": optimum.kind,
        "schedule": optimum.schedule,
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_schedule(path: Path, rates: np.ndarray, loss: np.ndarray) -> None:
    """A CSV with the rate of every update and the loss predicted before it."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "lr", "predicted_loss"])
        writer.writerows(
            (i, f"{rate:.9g}", f"{value:.6f}") for i, (rate, value) in enumerate(zip(rates, loss, strict=True))
        )
