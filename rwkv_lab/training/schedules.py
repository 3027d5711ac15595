"""Learning-rate schedules, the only implementation: the trainer, ``analysis`` and every printed recipe use it.

Updates count from 0 to ``total - 1``. A schedule rises linearly over the first ``warmup_steps`` updates (update i has
the rate ``lr_init (i + 1) / warmup_steps``), then goes from ``lr_init`` to ``lr_final``, which the last update has
exactly. Rates are per update, in the optimizer's units. Imports no torch.

    >>> rates("wsd", 5, lr_init=1.0, lr_final=0.0, decay_fraction=0.4)
    array([1. , 1. , 1. , 0.5, 0. ])
"""

import functools
import json
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from omegaconf import MISSING

from rwkv_lab.config import registry
from rwkv_lab.config.derived import tokens_per_step, total_steps
from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import Count, instance, setting, validate, whole
from rwkv_lab.config.kinds import Prediction, ScheduleConfig
from rwkv_lab.config.registry import register
from rwkv_lab.config.schema import Config
from rwkv_lab.util.paths import as_typed

Shape = Literal["constant", "linear", "cosine", "exponential", "sqrt", "power"]


def blend(shape: Shape, progress: float, start: float, end: float, power: float = 1.0) -> float:
    """Return the rate at ``progress`` in [0, 1] on the way from ``start`` to ``end``; a constant is at its end."""
    match shape:
        case "constant":
            return end
        case "exponential":
            return start * (end / start) ** progress
        case "linear":
            left = 1 - progress
        case "cosine":
            left = 0.5 * (1 + math.cos(math.pi * progress))
        case "sqrt":
            left = 1 - math.sqrt(progress)
        case "power":
            left = (1 - progress) ** power
    return end + (start - end) * left


def _progress(step: int, first: int, last: int) -> float:
    """Return 0 at update ``first`` and 1 at update ``last``; 1 for an empty interval."""
    return min(1.0, (step - first) / (last - first)) if last > first else 1.0


@dataclass
class WarmedUp(ScheduleConfig):
    """What all but a fitted schedule share: the rise to ``lr_init``."""

    lr_init: float = setting(2e-3, low=0)  # rate after the warm-up
    warmup_steps: int = setting(0, low=0)  # updates of linear rise before it

    def build(self, total: int) -> Callable[[int], float]:
        """Return the rate of every update of a run of ``total`` updates."""
        return functools.partial(self.rate, total=total)

    def rate(self, step: int, total: int) -> float:
        """Return the rate of update ``step`` of ``total``."""
        if step < self.warmup_steps:
            return self.lr_init * (step + 1) / self.warmup_steps
        return self.after_warmup(step, total)

    @abstractmethod
    def after_warmup(self, step: int, total: int) -> float:
        """Return the rate of update ``step`` >= ``warmup_steps``."""

    def check_run(self, run: Config) -> None:
        """Raise UserError for a warm-up longer than the run."""
        if self.warmup_steps > total_steps(run):
            raise UserError(
                f"schedule.warmup_steps={self.warmup_steps} is longer than the run of {total_steps(run)} updates"
            )


@register("schedule", "constant")
@dataclass
class ConstantConfig(WarmedUp):
    """``lr_init`` throughout."""

    name: str = "constant"

    def after_warmup(self, step: int, total: int) -> float:
        return self.lr_init


@dataclass
class Decay(WarmedUp):
    """A decay of one shape over the last ``share`` of the run, after a plateau."""

    lr_final: float = setting(1e-4, low=0)  # rate of the last update

    def decay(self, step: int, total: int, shape: Shape, share: float = 1.0, power: float = 1.0) -> float:
        """Return the rate of update ``step``; the decay takes the last ``share`` of all ``total`` updates."""
        first = max(self.warmup_steps, total - 1 - round(share * total))
        if step < first:
            return self.lr_init
        return blend(shape, _progress(step, first, total - 1), self.lr_init, self.lr_final, power)

    def require_positive_ends(self) -> None:
        """Raise UserError for an exponential decay from or to 0."""
        for key in ("lr_init", "lr_final"):
            if getattr(self, key) <= 0:
                raise UserError(f"schedule.{key} must be above 0 for an exponential decay (got {getattr(self, key)})")


@register("schedule", "linear")
@dataclass
class LinearConfig(Decay):
    """A straight line."""

    name: str = "linear"

    def after_warmup(self, step: int, total: int) -> float:
        return self.decay(step, total, "linear")


@register("schedule", "cosine")
@dataclass
class CosineConfig(Decay):
    """Half a cosine wave (Loshchilov and Hutter 2017, arXiv 1608.03983)."""

    name: str = "cosine"

    def after_warmup(self, step: int, total: int) -> float:
        return self.decay(step, total, "cosine")


@register("schedule", "exponential")
@dataclass
class ExponentialConfig(Decay):
    """Geometric decay, the RWKV recipes' choice."""

    name: str = "exponential"

    def after_warmup(self, step: int, total: int) -> float:
        return self.decay(step, total, "exponential")

    def check(self) -> None:
        self.require_positive_ends()


@register("schedule", "wsd")
@dataclass
class WSDConfig(Decay):
    """Warm-up, stable, decay (Hu et al. 2024, arXiv 2404.06395): a plateau, then the last ``decay_fraction`` decays."""

    name: str = "wsd"
    decay_fraction: float = setting(0.2, low=0, high=1)  # share of the run that decays
    decay_shape: Literal["linear", "cosine", "exponential", "sqrt", "power"] = "linear"  # sqrt: 1 - sqrt(progress)
    decay_power: float = setting(2.0, above=0, hash_default=False)  # of decay_shape=power: (1 - progress)^decay_power

    def after_warmup(self, step: int, total: int) -> float:
        return self.decay(step, total, self.decay_shape, self.decay_fraction, self.decay_power)

    def check(self) -> None:
        if self.decay_shape == "exponential":
            self.require_positive_ends()


@register("schedule", "power")
@dataclass
class PowerConfig(Decay):
    """A power of the way left: ``lr_final + (lr_init - lr_final) (1 - progress)^power`` after an optional plateau."""

    name: str = "power"
    power: float = setting(2.0, above=0)  # 1 is a straight line
    decay_fraction: float = setting(1.0, low=0, high=1)  # share of the run that decays

    def after_warmup(self, step: int, total: int) -> float:
        return self.decay(step, total, "power", self.decay_fraction, self.power)


@dataclass
class Stage:
    """One stage of a piecewise schedule."""

    until: float | None = setting(None, above=0, high=1)  # fraction of the run at which the stage ends
    until_tokens: Count = setting(None, count=True)  # the same in training tokens; wins over until
    lr: float = setting(MISSING, low=0)  # the rate it ends with; a constant stage holds it throughout
    shape: Literal["constant", "linear", "cosine", "exponential", "sqrt"] = "linear"


@register("schedule", "piecewise")
@dataclass
class PiecewiseConfig(WarmedUp):
    """Stages: up to the fraction ``until`` of the run, or ``until_tokens``, the rate goes to ``lr`` by ``shape``.

    The first stage starts from ``lr_init``, each later one from the rate its predecessor ended with.
    """

    name: str = "piecewise"
    stages: list[Stage] = setting(factory=list)  # in order; the last ends at 1.0

    def build(self, total: int) -> Callable[[int], float]:
        self._check_order()
        return super().build(total)

    def after_warmup(self, step: int, total: int) -> float:
        first, start = self.warmup_steps, self.lr_init
        for stage in self.stages:
            last = round((stage.until or 1.0) * total) - 1
            if step <= last:
                return blend(stage.shape, _progress(step, first, last), start, stage.lr)
            first, start = max(last, self.warmup_steps), stage.lr
        return start

    def check(self) -> None:
        if not self.stages:
            raise UserError("schedule.stages is empty: give stages such as {until: 1.0, lr: 1e-4, shape: cosine}")
        for i, stage in enumerate(self.stages):
            if stage.until is None and stage.until_tokens is None:
                raise UserError(f"schedule.stages[{i}] needs until, e.g. 1.0, or until_tokens, e.g. 15e9")
        if all(stage.until is not None for stage in self.stages):
            self._check_order()

    def check_run(self, run: Config) -> None:
        """Turn the tokens at which stages end into fractions of the run."""
        super().check_run(run)
        whole_run = total_steps(run) * tokens_per_step(run)
        for i, stage in enumerate(self.stages):
            if stage.until_tokens is not None:
                stage.until = whole(stage.until_tokens) / whole_run
                if stage.until > 1:
                    raise UserError(
                        f"schedule.stages[{i}].until_tokens={stage.until_tokens} is behind the end of the run, "
                        f"{whole_run} tokens: lower it or lengthen the run"
                    )
        if self.stages[-1].until_tokens is not None and total_steps(run) * (1 - (self.stages[-1].until or 0)) < 1:
            # The run ends with the update that has seen at least so many.
            self.stages[-1].until = 1.0
        self._check_order()

    def _check_order(self) -> None:
        before, rate = 0.0, self.lr_init
        for i, stage in enumerate(self.stages):
            if stage.until is None or stage.until <= before:
                raise UserError(f"schedule.stages[{i}].until must be above {before:g} (got {stage.until})")
            if stage.shape == "exponential" and not (rate > 0 and stage.lr > 0):
                raise UserError(f"schedule.stages[{i}].lr must be above 0 at both ends of an exponential stage")
            before, rate = stage.until, stage.lr
        if before != 1:
            raise UserError(f"schedule.stages must end at 1.0: until of the last stage is {before}")


@register("schedule", "fitted")
@dataclass
class FittedConfig(ScheduleConfig):
    """The rates of a schedule file, one an update."""

    name: str = "fitted"
    fit: str = setting(MISSING, file=True)  # the fit.json of `python -m analysis fit` or `optimal`
    fit_any: bool = setting(False, identity=False)  # train it although model, data or batch differ from the runs fitted

    def check_run(self, run: Config) -> None:
        """Raise UserError for a run whose model, data or batch are not those of the runs fitted."""
        from rwkv_lab.runs.provenance import differences, setup

        # A file that is not there is a mistake of the run, reported when it is read.
        if self.fit_any or not Path(self.fit).is_file():
            return
        fitted = read_proposal(self.fit).setup
        if not fitted:
            return
        own = setup(asdict(run))
        off = differences(fitted, own)
        if off:
            named = ", ".join(f"{key}={own.get(key)} (fitted: {fitted.get(key)})" for key in off[:4])
            more = f" and {len(off) - 4} more" if len(off) > 4 else ""
            raise UserError(
                f"schedule.fit is of runs that differ in {named}{more}: its prediction does not hold for this run; "
                "train it all the same with schedule.fit_any=true"
            )

    def build(self, total: int) -> Callable[[int], float]:
        """Return the rate of every update; UserError for a file made for a run of another length."""

        given = read_proposal(self.fit).rates
        if len(given) != total:
            raise UserError(
                f"schedule.fit has {len(given)} steps and the run has {total}: set trainer.steps={len(given)}, "
                f"or make another with '{as_typed('python -m analysis optimal')} FIT --steps {total}'"
            )
        return given.__getitem__

    def prediction(self) -> Prediction:
        """Return what the law behind the file predicts for the end of the run."""

        return read_proposal(self.fit).prediction


def rates(name: str, total: int, **parameters: Any) -> np.ndarray:
    """Return every update's rate, float64 ``[total]``, by the schedule ``name``; ``parameters`` are its fields.

    Raises UserError for an unknown name, field or value.
    """
    owner = registry.get("schedule", name)
    try:
        config = instance(owner, parameters)
    except TypeError as error:
        raise UserError(f"schedule={name}: {str(error).partition('() ')[2] or error}") from None
    validate(config, "schedule.")
    config.check()
    rate = config.build(total)
    return np.array([rate(step) for step in range(total)])


def parameters_of(config: ScheduleConfig) -> Mapping[str, Any]:
    """Return the fields of a schedule without its name, as ``rates`` takes them."""
    return {key: value for key, value in asdict(config).items() if key != "name"}


@dataclass(frozen=True)
class Proposal:
    """A proposed schedule with the loss its law predicts for the last logged step."""

    rates: list[float]  # one rate an update
    prediction: Prediction
    setup: dict[str, Any]  # of the runs fitted, as ``runs.provenance.setup`` gives it; empty if unknown


def read_proposal(path: str | Path) -> Proposal:
    """Return the proposal inside a fit.json; UserError naming ``schedule.fit`` if it has none that can be used."""
    try:
        content = json.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f"schedule.fit={path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(
            f"schedule.fit={path} is not JSON: give the fit.json of '{as_typed('python -m analysis fit')}'"
        ) from None
    proposal: Any = content.get("proposal") if isinstance(content, dict) else None
    try:
        low, high = map(float, proposal["interval"])
        lowest = proposal.get("best_run") or {"name": "", "final_loss": None, "steps": 0}
        read = Proposal(
            rates=[float(rate) for rate in proposal["rates"]],
            prediction=Prediction(
                final_loss=float(proposal["predicted_final_loss"]),
                interval=(low, high),
                level=float(proposal["level"]),
                column=str(proposal["column"]),
                law=str(proposal["law"]),
                kind=str(proposal["kind"]),
                fit=str(path),
                best_run=str(lowest["name"]),
                best_loss=None if lowest["final_loss"] is None else float(lowest["final_loss"]),
                best_steps=int(lowest["steps"]),
            ),
            setup=dict((content.get("trained") or {}).get("setup") or {}),
        )
    except (KeyError, TypeError, ValueError):
        make = f"make one with '{as_typed('python -m analysis fit')}'"
        raise UserError(f"schedule.fit={path} does not have a proposed schedule: {make}") from None
    if not read.rates or not all(math.isfinite(rate) and rate >= 0 for rate in read.rates):
        raise UserError(f"schedule.fit={path} has rates that are missing, negative or not finite")
    return read
