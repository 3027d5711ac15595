"""``fit(curves)``: the laws of loss against learning rate, fitted jointly to runs, and what they predict.

    >>> from analysis.curves import load
    >>> from analysis.fit import fit
    >>> result = fit([load("runs/lr_probe/cosine"), load("runs/lr_probe/wsd")])
    >>> prediction = result.predict("linear", steps=2000, lr_init=1e-3, lr_final=0.0)
    >>> prediction.final_loss, prediction.interval(0.9)

The default, ``auto``, is a mixture: four laws on three windows, averaged. It predicts schedules it has not
seen better than any law alone over the families tried (docs/laws.md).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from analysis.curves import LossCurve, bin_means
from analysis.fitting import checks, uncertainty, windows
from analysis.fitting.intervals import Evidence, LeftOut, quantile
from analysis.fitting.member import Member, fit_member
from analysis.fitting.windows import Window
from analysis.laws.registry import LAWS
from analysis.path import warmup_steps
from rwkv_lab.config.errors import UserError
from rwkv_lab.training import schedules

FORMAT = 1
MIXTURE = ("vplus_own_time", "functional", "annealing", "multi_power")
MIXTURE_FRACTIONS = (0.05, 0.1, 0.2)  # first steps of its windows, as fractions of the shortest run
RIVALS = ("vplus", "annealing", "multi_power")  # whose spread widens the intervals of a law fitted alone
DRAWN = 400  # points of a run kept in fit.json for the figures
MISFIT_BINS = 20  # parts of a run over which residuals are averaged before they count as misfit
END = 0.02  # share of a run over which the loss at its end is averaged


@dataclass(frozen=True)
class RunSummary:
    """A run as the figures need it: bin means of what was logged, and the rates at those steps."""

    name: str
    column: str
    steps: int
    warmup: int
    step: list[int]
    loss: list[float]
    rate: list[float]
    notes: list[str]


@dataclass(frozen=True, eq=False)
class Prediction:
    """The losses a fit gives for one schedule.

    ``eta [T]`` are the rates, ``loss [T]`` the loss before every update, ``final_loss`` that after the last;
    ``members`` and ``rivals`` hold the same for each law, ``[laws, T+1]``.
    """

    eta: np.ndarray
    states: np.ndarray  # [T+1] loss of the fit before every update and after the last
    spread: np.ndarray  # [T+1] standard deviation over the laws
    evidence: Evidence

    @property
    def loss(self) -> np.ndarray:
        return self.states[:-1]

    @property
    def final_loss(self) -> float:
        return float(self.states[-1])

    def at(self, step: np.ndarray | int) -> np.ndarray:
        """The loss at the states ``step``, as a curve counts them; the last is ``len(eta)``."""
        return self.states[step]

    def interval(self, level: float = 0.9) -> tuple[float, float]:
        """Where the measured final loss lies with probability ``level``."""
        low, high = self.band(level)
        return float(low[-1]), float(high[-1])

    def band(self, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """The interval at every state, two arrays ``[T+1]``."""
        if not 0 < level < 1:
            raise UserError(f"level: must be between 0 and 1, not {level}")
        half = quantile(level) * self.error
        return self.states - half, self.states + half

    @property
    def error(self) -> np.ndarray:
        """``[T+1]`` how far the prediction may well be off, in nats; intervals are multiples of it."""
        reached = np.concatenate([[0.0], np.cumsum(self.eta)])
        return self.evidence.scale(self.spread, reached)


@dataclass(frozen=True, eq=False)
class Fit:
    """A law, or a mixture, fitted to runs; see ``fit``."""

    law: str
    members: tuple[Member, ...]
    table: tuple[Window, ...]  # the windows compared
    runs: tuple[RunSummary, ...]
    lead: tuple[float, ...] = ()  # the first run's rates before the window, for a law that counts from there
    curves: tuple[LossCurve, ...] = field(default=(), repr=False)
    stored: dict[str, Any] = field(default_factory=dict, repr=False)  # of fit.json, where the curves are not at hand

    @property
    def first(self) -> int:
        """The first step of the window; of a mixture's, the middle one."""
        return sorted(member.first for member in self.members)[len(self.members) // 2]

    @property
    def reference(self) -> float:
        """The highest rate of the runs."""
        return self.members[0].reference

    @property
    def params(self) -> dict[str, float]:
        """The parameters by name; of a mixture's laws on the middle window, as ``law.name``."""
        if len(self.members) == 1:
            return self.members[0].parameters
        chosen = [member for member in self.members if member.first == self.first]
        return {f"{member.law}.{name}": value for member in chosen for name, value in member.parameters.items()}

    @cached_property
    def _covariance(self) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        if not self.curves:
            return self.stored["standard_errors"], self.stored["correlations"]
        if len(self.members) == 1:
            return uncertainty.covariance(self.members[0], self.curves)
        errors: dict[str, float] = {}
        correlations: dict[str, dict[str, float]] = {}
        for member in (m for m in self.members if m.first == self.first):
            own, together = uncertainty.covariance(member, self.curves)
            errors |= {f"{member.law}.{a}": e for a, e in own.items()}
            correlations |= {
                f"{member.law}.{a}": {f"{member.law}.{b}": r for b, r in row.items()} for a, row in together.items()
            }
        return errors, correlations

    @property
    def standard_errors(self) -> dict[str, float]:
        """Of the parameters, from the noise of this fit alone."""
        return self._covariance[0]

    @property
    def correlations(self) -> dict[str, dict[str, float]]:
        """Of the parameters, by pair of names (a mixture: within each law)."""
        return self._covariance[1]

    @property
    def remarks(self) -> list[str]:
        """What the user should know about the runs and the parameters, a sentence each."""
        said = [f"{run.name}: {note}" for run in self.runs for note in run.notes]
        if len(self.members) == 1:
            said += uncertainty.remarks(self.correlations)
        if len(self.runs) == 1:
            said.append(
                "one run only: it hides what another schedule would do, and intervals are wide; add a run with a "
                "plateau and a decay"
            )
        return said

    @cached_property
    def rivals(self) -> tuple[Member, ...]:
        """Other laws on the same window, for the spread; none for a mixture, which has its own."""
        if len(self.members) > 1:
            return ()
        if not self.curves:
            return tuple(Member(**stored) for stored in self.stored["rivals"])
        first = max(self.first, windows.beginning(self.curves))
        names = [name for name in RIVALS if name != self.law]
        return tuple(fit_member(name, self.curves, first, final=False) for name in names)

    @cached_property
    def evidence(self) -> Evidence:
        """What the intervals rest on: runs left out, noise."""
        if not self.curves:
            return Evidence.from_dict(self.stored["evidence"])
        return gather_evidence(self)

    def own_states(self, eta: np.ndarray, at: np.ndarray) -> np.ndarray:
        """``[n]`` the loss at the states ``at`` alone."""
        return np.mean([member.loss(eta, at) for member in self.members], axis=0)

    def predict(
        self,
        eta: np.ndarray | Sequence[float] | str | Callable[..., float],
        steps: int | None = None,
        **parameters: Any,
    ) -> Prediction:
        """What the fit gives for a schedule.

        ``eta``: the rate of every update from step 0 on, or a schedule by name or as a function ``(step, total,
        ...)``, with its length ``steps`` and its ``parameters`` as in ``rwkv_lab.training.schedules``.
        """
        rates = as_rates(eta, steps, parameters)
        if len(rates) <= self.first:
            raise UserError(f"the schedule ends after {len(rates)} updates, before the fit's first step {self.first}")
        at = np.arange(len(rates) + 1)
        own = np.stack([member.loss(rates, at) for member in self.members])
        states = own.mean(axis=0)
        laws = [own, *(rival.loss(rates, at)[None] for rival in self.rivals)]
        return Prediction(rates, states, np.std(np.concatenate(laws), axis=0), self.evidence)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON; ``from_dict`` gives a fit that predicts the same."""
        return {
            "format": FORMAT,
            "law": self.law,
            "params": self.params,
            "standard_errors": self.standard_errors,
            "correlations": self.correlations,
            "remarks": self.remarks,
            "members": [member.to_dict() for member in self.members],
            "rivals": [rival.to_dict() for rival in self.rivals],
            "evidence": self.evidence.to_dict(),
            "windows": [row.to_dict() for row in self.table],
            "runs": [asdict(run) for run in self.runs],
            "lead": list(self.lead),
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)

    @staticmethod
    def from_dict(stored: dict[str, Any]) -> "Fit":
        return Fit(
            law=stored["law"],
            members=tuple(Member(**member) for member in stored["members"]),
            table=tuple(Window(**row) for row in stored["windows"]),
            runs=tuple(RunSummary(**run) for run in stored["runs"]),
            lead=tuple(stored["lead"]),
            stored=stored,
        )

    @staticmethod
    def from_json(text: str) -> "Fit":
        return Fit.from_dict(json.loads(text))

    @staticmethod
    def load(path: str | Path) -> "Fit":
        """The fit of a fit.json; Mistake where the file is none."""
        try:
            return Fit.from_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a fit written by python -m analysis fit") from error


def as_rates(eta: Any, steps: int | None, parameters: dict[str, Any]) -> np.ndarray:
    """Rates ``[T]`` of an array, or of a schedule by name or function with a length."""
    if isinstance(eta, str) or callable(eta):
        if steps is None or steps < 1:
            raise UserError("steps: a schedule by name needs its length in updates, at least 1")
        try:
            if callable(eta):
                return np.array([eta(step, steps, **parameters) for step in range(steps)], dtype=float)
            return schedules.rates(eta, steps, **parameters)
        except KeyError as error:
            raise UserError(f"schedule: unknown '{eta}'; choose one of {', '.join(schedules.SCHEDULES)}") from error
        except (TypeError, ValueError) as error:
            raise UserError(f"schedule {eta}: {error}") from error
    rates = np.asarray(eta, dtype=float)
    if rates.ndim != 1 or len(rates) == 0 or not np.isfinite(rates).all() or (rates < 0).any() or not (rates > 0).any():
        raise UserError("eta: must be one finite rate an update, none below 0 and one above it")
    return rates


def fit_members(law: str, curves: Sequence[LossCurve], firsts: Sequence[int], *, final: bool = True) -> list[Member]:
    """A law, or every law of the mixture, on each window; later windows set out from the first one's numbers."""
    found: list[Member] = []
    for name in MIXTURE if law == "auto" else (law,):
        start = None
        for first in firsts:
            member = fit_member(name, curves, first, start=start, final=final)
            start = member.nonlinear
            found.append(member)
    return found


def end_loss(curve: LossCurve) -> float:
    """The loss at a run's end, averaged over its last points."""
    kept = curve.step >= curve.step[-1] - END * len(curve.eta)
    return float(curve.loss[kept].mean())


def end_noise(curve: LossCurve) -> float:
    """Standard deviation of the loss logged at a run's end, from second differences, which no trend moves."""
    tail = curve.loss[-max(len(curve.loss) // 5, 5) :]
    return float(1.4826 * np.median(np.abs(np.diff(tail, n=2))) / np.sqrt(6))


def misfit(result: Fit, curve: LossCurve) -> float:
    """Mean square of a run's residuals over its later half, averaged over twentieths of the run, in nats squared."""
    kept = curve.step >= result.first
    at, loss, _ = bin_means(curve.step[kept], curve.loss[kept], MISFIT_BINS)
    later = at >= min(len(curve.eta) / 2, at[-1])
    return float(np.mean((result.own_states(curve.eta, at)[later] - loss[later]) ** 2))


def gather_evidence(result: Fit) -> Evidence:
    """Fits to all runs but one, each asked for the loss at the end of the run left out."""
    left_out = []
    for i, curve in enumerate(result.curves):
        others = windows.without(result.curves, i)
        if not others or not windows.varies(others, result.first):
            continue
        members = fit_members(result.law, others, [result.first], final=False)
        at = np.unique(curve.step[curve.step >= curve.step[-1] - END * len(curve.eta)])
        predicted = float(np.mean([member.loss(curve.eta, at).mean() for member in members]))
        left_out.append(LeftOut(curve.name, predicted, end_loss(curve)))
    return Evidence(
        left_out,
        noise=float(np.mean([end_noise(curve) for curve in result.curves])),
        misfit=float(np.sqrt(np.mean([misfit(result, curve) for curve in result.curves]))),
        furthest=float(max(curve.eta.sum() for curve in result.curves)),
    )


def summarise(curve: LossCurve) -> RunSummary:
    step, loss, _ = bin_means(curve.step, curve.loss, DRAWN)
    rate = curve.eta[np.minimum(step, len(curve.eta) - 1)]
    column = str(curve.meta.get("column", "loss"))
    warmup = warmup_steps(curve.eta)
    return RunSummary(
        curve.name, column, len(curve.eta), warmup, step.tolist(), loss.tolist(), rate.tolist(), curve.notes
    )


def fit(curves: LossCurve | Sequence[LossCurve], law: str = "auto", window: int | str = "auto") -> Fit:
    """Fits ``law`` jointly to ``curves``.

    ``law``: variational, vplus, annealing, multi_power, functional, or auto, the mixture. ``window``: the first
    step that counts, or auto. Losses are nats per token. Mistake where the curves cannot be fitted: too few
    points, a constant rate, mixed batch sizes, a rising loss.
    """
    curves = (curves,) if isinstance(curves, LossCurve) else tuple(curves)
    if not curves:
        raise UserError("fit: no curve given")
    checks.check_law(law)
    checks.check_window(window)
    earliest = int(window) if window != "auto" else windows.beginning(curves)
    checks.check_curves(curves, law, earliest)
    if law == "auto":
        firsts = [earliest] if window != "auto" else windows.candidates(curves, MIXTURE_FRACTIONS)
        table: list[Window] = []
    else:
        first, table = windows.choose(law, curves, window)
        firsts = [first]
    members = fit_members(law, curves, firsts)
    lead = tuple(curves[0].eta[: firsts[0]].tolist()) if law != "auto" and LAWS[law].from_window else ()
    return Fit(law, tuple(members), tuple(table), tuple(summarise(c) for c in curves), lead, curves)
