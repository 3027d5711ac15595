"""A fitted model: what ``fit.json`` stores, enough to predict any schedule without the curves."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analysis.fit.fit_start import Window
from analysis.fit.fitted_law import Correlations, ErrorBudget, FittedLaw, LeftOut, correlated, quantile
from analysis.fit.level_model import SURE, LevelModel
from rwkv_lab.config.errors import UserError
from rwkv_lab.training import schedules
from rwkv_lab.util.paths import as_typed

FORMAT = 1
CLOSE_PEAK = 1.05  # ratio of peaks taken as equal
CLOSE_LENGTH = 1.05  # of the longest run fitted
# Shares of the loss from which logs are taken to be of different models; those of one have 0.003 and 0.016 at most.
UNLIKE_MISFIT, UNLIKE_LEFT_OUT = 0.005, 0.022
NEAR_END = 0.02  # of the peak, by which an end may be lower


@dataclass(frozen=True)
class RunSummary:
    """A run as the figures need it: bin means of the logged loss, and the rates at those steps."""

    name: str
    column: str
    steps: int
    warmup: int
    step: list[int]
    loss: list[float]
    rate: list[float]
    notes: list[str]
    peak: float = 0.0  # highest rate; 0 in files that lack it
    end: float = 0.0  # rate of the last update
    about: dict[str, Any] = field(default_factory=dict)  # of a run of this laboratory: what a fit's runs must share
    overrides: list[str] = field(default_factory=list)  # and the overrides that gave it, without schedule and length


@dataclass(frozen=True, eq=False)
class Prediction:
    """Losses in nats per token that a model predicts for one schedule of T updates."""

    lr: np.ndarray  # [T]
    states: np.ndarray  # [T+1] loss before every update and after the last
    spread: np.ndarray  # [T+1] standard deviation over the laws, or of the level law's posterior
    error: np.ndarray  # [T+1] scale of the error in nats; intervals are multiples of it
    remarks: tuple[str, ...] = ()  # how far the schedule is from the runs, a sentence each

    @property
    def loss(self) -> np.ndarray:
        """Loss ``[T]`` before every update."""
        return self.states[:-1]

    @property
    def final_loss(self) -> float:
        """Loss after the last update."""
        return float(self.states[-1])

    def at(self, step: np.ndarray | int) -> np.ndarray:
        """Return the loss at the states ``step``, counted as in a curve; the last is T."""
        return self.states[step]

    def interval(self, level: float = 0.9) -> tuple[float, float]:
        """Return the interval that contains the measured final loss with probability ``level``."""
        low, high = self.band(level)
        return float(low[-1]), float(high[-1])

    def band(self, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Return the interval at every state, two arrays ``[T+1]``."""
        if not 0 < level < 1:
            raise UserError(f"level must be between 0 and 1, e.g. 0.9 (got {level})")
        half = quantile(level) * self.error
        return np.maximum(self.states - half, 0.0), self.states + half


@dataclass(frozen=True, eq=False)
class FittedModel:
    """A law or a mixture of laws with all that a prediction and its interval need."""

    law: str  # name of the law, or auto
    members: tuple[FittedLaw, ...]
    rivals: tuple[FittedLaw, ...]  # other laws, for the spread; none for a mixture, which has its own
    error_budget: ErrorBudget
    windows: tuple[Window, ...]  # first steps compared
    runs: tuple[RunSummary, ...]
    level: LevelModel | None  # the default model; None for a law fitted alone
    prefix_lrs: tuple[float, ...]  # rates of the first run before fit_start, for a law that counts from there
    standard_errors: dict[str, float]
    correlations: Correlations

    @property
    def fit_start(self) -> int:
        """First step fitted; the middle one of a mixture's."""
        return middle_start(self.members)

    @property
    def reference(self) -> float:
        """Highest rate of the runs."""
        return self.members[0].reference

    @property
    def params(self) -> dict[str, float]:
        """Parameters by name; see ``parameters_of``."""
        return parameters_of(self.members)

    @property
    def trained(self) -> dict[str, Any]:
        """Model, data, tokenizer, batch and the like of the runs, and the overrides that give them; empty for logs."""
        known = [run for run in self.runs if run.about]
        return {"setup": known[0].about, "overrides": known[0].overrides} if known else {}

    @property
    def remarks(self) -> list[str]:
        """Cautions about the runs and the parameters, a sentence each."""
        found = [f"{run.name}: {note}" for run in self.runs for note in run.notes]
        if len(self.members) == 1:
            found += correlated(self.correlations)
        if self.level and not all(run.about for run in self.runs):
            found += unlike(self.runs, self.level.posterior.misfit, self.error_budget.left_out)
        if len(self.runs) == 1:
            found.append(
                "only one run was fitted: it cannot show the effect of another schedule, and intervals are wide; add "
                "a run with a plateau and a decay"
            )
        return found

    def predict(
        self,
        lr: np.ndarray | Sequence[float] | str | Callable[..., float],
        steps: int | None = None,
        **parameters: Any,
    ) -> Prediction:
        """Predict the losses of a schedule.

        ``lr``: the rate of every update from step 0 on, or a schedule by name or as a function ``(step, total, ...)``,
        with its length ``steps`` and its ``parameters`` as in ``rwkv_lab.training.schedules``.
        """
        rates = as_rates(lr, steps, parameters)
        remarks = tuple(distances(self.runs, rates))
        if self.level is not None:
            mean, sd, half = self.level.states(rates)
            return Prediction(rates, mean, sd, half / quantile(SURE), remarks)
        if self.prefix_lrs and len(rates) <= self.fit_start:
            raise UserError(
                f"the schedule must be longer than {self.fit_start} updates, the first step fitted (got {len(rates)})"
            )
        at = np.arange(len(rates) + 1)
        own = np.stack([member.loss(rates, at) for member in self.members])
        laws = [own, *(rival.loss(rates, at)[None] for rival in self.rivals)]
        spread = np.std(np.concatenate(laws), axis=0)
        reached = np.concatenate([[0.0], np.cumsum(rates)])
        return Prediction(rates, own.mean(axis=0), spread, self.error_budget.scale(spread, reached), remarks)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; ``from_dict`` gives a model that predicts the same."""
        return {
            "format": FORMAT,
            "law": self.law,
            "params": self.params,
            "standard_errors": self.standard_errors,
            "correlations": self.correlations,
            "remarks": self.remarks,
            "members": [member.to_dict() for member in self.members],
            "rivals": [rival.to_dict() for rival in self.rivals],
            "evidence": self.error_budget.to_dict(),
            "windows": [row.to_dict() for row in self.windows],
            "trained": self.trained,
            "runs": [asdict(run) for run in self.runs],
            "level": self.level.to_dict() if self.level else None,
            "lead": list(self.prefix_lrs),
        }

    def to_json(self) -> str:
        """Return ``to_dict`` as JSON text."""
        return json.dumps(self.to_dict(), indent=1)

    @staticmethod
    def from_dict(stored: dict[str, Any]) -> "FittedModel":
        """Read ``to_dict``'s form."""
        return FittedModel(
            law=stored["law"],
            members=tuple(map(FittedLaw.from_dict, stored["members"])),
            rivals=tuple(map(FittedLaw.from_dict, stored["rivals"])),
            error_budget=ErrorBudget.from_dict(stored["evidence"]),
            windows=tuple(map(Window.from_dict, stored["windows"])),
            runs=tuple(RunSummary(**run) for run in stored["runs"]),
            level=LevelModel.from_dict(stored["level"]) if stored.get("level") else None,
            prefix_lrs=tuple(stored["lead"]),
            standard_errors=stored["standard_errors"],
            correlations=stored["correlations"],
        )

    @staticmethod
    def from_json(text: str) -> "FittedModel":
        """Read ``to_json``'s text."""
        return FittedModel.from_dict(json.loads(text))

    @staticmethod
    def load(path: str | Path) -> "FittedModel":
        """Read a fit.json; UserError if the file is missing or not a fit."""
        try:
            return FittedModel.from_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a fit written by '{as_typed('python -m analysis fit')}'") from error


def unlike(runs: Sequence[RunSummary], misfit: float, left_out: Sequence[LeftOut]) -> list[str]:
    """Return a sentence if the runs, whose models are not recorded, do not look like those of one model."""
    lowest = min(run.loss[-1] for run in runs)
    worst = max((abs(one.error) for one in left_out), default=0.0)
    if misfit <= UNLIKE_MISFIT * lowest and worst <= UNLIKE_LEFT_OUT * lowest:
        return []
    return [
        f"one law hardly describes these runs (off by {misfit:.3f} nats along them, by {worst:.3f} where one is "
        "predicted from the others): are they of one model, data set and batch size?"
    ]


def best_run(runs: Sequence[RunSummary]) -> dict[str, Any]:
    """Return name, final loss and length of the run that ended lowest."""
    lowest = min(runs, key=_final_loss)
    return {"name": lowest.name, "final_loss": _final_loss(lowest), "steps": lowest.steps}


def _final_loss(run: RunSummary) -> float:
    """Return the loss at a run's end; that of single batches is averaged over the last fiftieth of the run."""
    late = np.array(run.step) >= run.step[-1] - (0 if run.column == "val_loss" else run.steps / 50)
    return float(np.array(run.loss)[late].mean())


def distances(runs: Sequence[RunSummary], lr: np.ndarray) -> list[str]:
    """Return one sentence for everything in which the rates ``lr`` lie outside the runs fitted."""
    known = [run for run in runs if run.peak > 0]
    if not known:
        return []
    found = []
    peak, end = float(lr.max()), float(lr[-1])
    low, high = min(run.peak for run in known), max(run.peak for run in known)
    if not low / CLOSE_PEAK <= peak <= high * CLOSE_PEAK:
        span = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
        found.append(f"its peak, {peak:.3g}, lies outside the runs fitted ({span})")
    lowest = min(run.end / run.peak for run in known)
    if end / peak < lowest - NEAR_END:
        found.append(f"it ends at {end / peak:.0%} of its peak, the runs fitted at {lowest:.0%} or more")
    longest = max(run.steps for run in known)
    if len(lr) > CLOSE_LENGTH * longest:
        found.append(f"it is {len(lr) / longest:.2g} times as long as the longest run fitted ({longest} updates)")
    return found


def middle_start(members: Sequence[FittedLaw]) -> int:
    """Return the first step fitted; the middle one of a mixture's."""
    return sorted(member.fit_start for member in members)[len(members) // 2]


def parameters_of(members: Sequence[FittedLaw]) -> dict[str, float]:
    """Return the parameters by name; those of a mixture's laws fitted from the middle step as ``law.name``."""
    if len(members) == 1:
        return members[0].parameters
    chosen = [member for member in members if member.fit_start == middle_start(members)]
    return {f"{member.law}.{name}": value for member in chosen for name, value in member.parameters.items()}


def as_rates(lr: Any, steps: int | None, parameters: dict[str, Any]) -> np.ndarray:
    """Return the rates ``[T]`` of an array, or of a schedule by name or function with its length ``steps``."""
    if isinstance(lr, str) or callable(lr):
        if steps is None or steps < 1:
            raise UserError(f"steps must be the length of the schedule in updates, at least 1 (got {steps})")
        if isinstance(lr, str):
            return schedules.rates(lr, steps, **parameters)
        return np.array([lr(step, steps, **parameters) for step in range(steps)], dtype=float)
    rates = np.asarray(lr, dtype=float)
    if rates.ndim != 1 or len(rates) == 0 or not np.isfinite(rates).all() or (rates < 0).any() or not (rates > 0).any():
        raise UserError("lr must be one finite rate an update, all at least 0 and one above 0")
    return rates
