"""Every update's rate, from a run's config, a schedules.json beside its log, or the logged column."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rwkv_lab.config.errors import UserError
from rwkv_lab.training import schedules

KINDS = ("constant", "cosine", "exp_tail", "linear_tail", "steps")


def from_description(description: Mapping[str, Any], where: str = "schedules.json") -> np.ndarray:
    """Rates ``[total]`` of a schedule described as in ``shared/curves``: a kind, total, warmup (linear from 0), peak,
    end, decay_start and stages ``[[first update, rate], ...]``."""
    try:
        kind, total, peak = description["kind"], int(description["total"]), float(description["peak"])
        warmup, end = int(description.get("warmup", 0)), float(description.get("end", peak))
        start = int(description["decay_start"]) if kind in ("exp_tail", "linear_tail") else warmup
        stages = description["stages"] if kind == "steps" else []
    except KeyError as error:
        raise UserError(f"{where}: a schedule lacks {error}") from error
    if kind not in KINDS:
        raise UserError(f"{where}: unknown kind '{kind}'; choose one of {', '.join(KINDS)}")
    t = np.arange(total, dtype=float)
    progress = np.clip((t - start) / max(total - start, 1), 0, 1)
    if kind == "cosine":
        eta = end + (peak - end) * (1 + np.cos(np.pi * progress)) / 2
    elif kind == "exp_tail":
        eta = peak * (end / peak) ** progress
    elif kind == "linear_tail":
        eta = peak + (end - peak) * progress
    else:
        eta = np.full(total, peak)
        for first, rate in stages:
            eta[int(first) :] = rate
    eta[:warmup] = peak * t[:warmup] / max(warmup, 1)
    return eta


def beside(log: Path) -> np.ndarray | None:
    """Rates of the schedule that a ``schedules.json`` next to ``log`` gives under its stem, if there is one."""
    path = log.parent / "schedules.json"
    if not path.is_file():
        return None
    try:
        described = json.loads(path.read_text(encoding="utf-8"))["schedules"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a file of schedules (an object with 'schedules')") from error
    return from_description(described[log.stem], str(path)) if log.stem in described else None


def of_config(schedule: Mapping[str, Any], total: int) -> np.ndarray | None:
    """Rates ``[total]`` of a run's ``schedule`` group; None where its file of rates is gone or of another length."""
    parameters = dict(schedule)
    name = parameters.pop("name", None)
    if name not in schedules.SCHEDULES:
        return None
    if name == "fitted":
        path = Path(str(parameters.get("fit", "")))
        proposal = json.loads(path.read_text(encoding="utf-8")).get("proposal") if path.is_file() else None
        eta = np.array(proposal["rates"] if proposal else [], dtype=float)
        return eta if len(eta) == total else None
    if name == "piecewise":
        parameters["stages"] = [
            (stage["until"], stage["lr"], stage["shape"]) if isinstance(stage, Mapping) else tuple(stage)
            for stage in parameters["stages"]
        ]
    known = inspect.signature(schedules.SCHEDULES[name]).parameters
    return schedules.rates(name, total, **{key: value for key, value in parameters.items() if key in known})


def of_column(step: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Rates ``[last step + 1]`` interpolated between the logged ones and held before the first."""
    known = np.isfinite(rate)
    return np.interp(np.arange(int(step[-1]) + 1), step[known], rate[known])


def agrees(eta: np.ndarray, step: np.ndarray, rate: np.ndarray) -> bool:
    """Whether the rates ``eta`` are those logged, within 1 % of the largest."""
    known = np.isfinite(rate) & (step < len(eta))
    return bool(np.all(np.abs(eta[step[known]] - rate[known]) <= 0.01 * eta.max()))
