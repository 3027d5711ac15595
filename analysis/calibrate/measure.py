"""The prior over families, and errors and coverage on families left out of it."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis import constants
from analysis.calibrate.families import Case, Family, cases
from analysis.fit import level_model
from analysis.fit.level_posterior import NAMES, fit_posterior, offsets
from analysis.schedules.blocks import LevelBlocks
from analysis.schedules.features import warmup_steps

WEAK = {"R": 1.2, "a": 0.6, "c": 0.8, "tau": 1.0, "b": 0.8, "p": 0.2, "q": 0.25, "kappa": 0.6, "Q": 0.25, "d": 0.1}
LEAST = {
    "R": 0.2,
    "a": 0.12,
    "c": 0.14,
    "tau": 0.5,
    "b": 0.4,
    "p": 0.09,
    "q": 0.09,
    "kappa": 0.45,
    "Q": 0.15,
    "d": 0.04,
}
MOST = {"R": 0.25, "a": 0.16, "c": 0.17, "b": 0.6, "tau": 0.7}  # spreads beyond which data could not be fitted stably
INDEPENDENT = 25  # residuals a run counts as where the prior is measured
BETWEEN = ("kappa", "Q")  # what only runs at several peaks tell


def weak(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return constants under which a family's own runs decide its parameters."""
    loose: dict[str, Any] = copy.deepcopy(dict(numbers))
    loose["prior"]["sd"] = dict(WEAK)
    loose["prior"]["components"] = [{"widen": 1.0, "log_weight": 0.0, "variance": 1.0}]
    loose["data"]["independent"] = INDEPENDENT
    return loose


def _mean(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over the rows ``[n,10]``, of what is a number."""
    values = np.array(rows)
    count = np.isfinite(values).sum(axis=0)
    return np.where(count > 0, np.nansum(values, axis=0) / np.maximum(count, 1), np.nan)


def coordinates(family: Family, numbers: Mapping[str, Any]) -> np.ndarray:
    """Return the law's coordinates ``[10]`` of a family, free of its loss, length and peak: the mean over its lengths.
    What its runs cannot tell is not a number."""
    usable = [run for run in family.runs if not run.broken]
    found = []
    for steps in sorted({run.steps for run in usable}):
        group = [run for run in usable if run.steps == steps]
        if len({run.kind for run in group} - {"constant"}) + len(group) < 3:
            continue
        with constants.using(weak(numbers)):
            posterior = fit_posterior([run.curve for run in group])
        lowest = min(float(run.curve.loss[-1]) for run in group)
        theta = posterior.components[0].theta[1:]
        found.append(theta - offsets(numbers["prior"], lowest, posterior.scale, posterior.reference))
        if len({round(run.peak, 12) for run in group}) < 2:
            found[-1][[NAMES[1:].index(name) for name in BETWEEN]] = np.nan
    return _mean(found) if found else np.full(len(NAMES) - 1, np.nan)


def measured_prior(
    known: Mapping[str, np.ndarray], groups: Mapping[str, str], numbers: Mapping[str, Any]
) -> dict[str, Any]:
    """Return constants whose prior is that of the families ``known`` (coordinates by family); ``groups`` names the
    group of each, which count equally. Means and spreads are robust: one unusual group does not move them."""
    result: dict[str, Any] = copy.deepcopy(dict(numbers))
    by_group = [
        _mean([x for name, x in known.items() if groups[name] == group])
        for group in dict.fromkeys(groups[name] for name in known)
    ]
    each = np.array(list(known.values()))
    for i, name in enumerate(NAMES[1:]):
        column = np.array([x[i] for x in by_group])
        if np.isfinite(column).any():
            result["prior"]["mean"][name] = round(float(np.nanmedian(column)), 3)
            off = each[:, i] - result["prior"]["mean"][name]
            spread = 1.4826 * float(np.nanmedian(np.abs(off)))
            result["prior"]["sd"][name] = round(float(np.clip(spread, LEAST[name], MOST.get(name, np.inf))), 3)
    return result


@dataclass(frozen=True)
class Outcome:
    """A case with its prediction: ``error`` is predicted minus measured, ``half`` half the 90 % interval, in nats."""

    case: Case
    error: float
    half: float

    @property
    def covered(self) -> bool:
        """Whether the interval has the measured loss."""
        return abs(self.error) <= self.half


def ask(case: Case) -> Outcome:
    """Fit a case by the level law and predict the run asked for."""
    _, z = level_model.leave_out(case.curves, None) if case.running is None else ([], [])
    model = level_model.build(case.curves, z=z, mode=case.mode)
    at, measured = case.target.final
    lr = case.target.curve.lr
    mean, _, half = model.at(LevelBlocks(lr, at, warmup_steps(lr)))
    return Outcome(case, float(mean.mean()) - measured, float(half[-1]))


def left_out(families: Sequence[Family], numbers: Mapping[str, Any]) -> tuple[list[Outcome], dict[str, Any]]:
    """Ask every case under the prior of the other groups; return the outcomes and the constants of all families."""
    known = {family.name: coordinates(family, numbers) for family in families}
    groups = {family.name: family.group for family in families}
    outcomes = []
    for group in dict.fromkeys(groups.values()):
        rest = {name: x for name, x in known.items() if groups[name] != group}
        prior = measured_prior(rest, groups, numbers) if rest else dict(numbers)
        with constants.using(prior):
            outcomes += [ask(case) for family in families if family.group == group for case in cases(family)]
    return outcomes, measured_prior(known, groups, numbers)


def by_cell(outcomes: Iterable[Outcome]) -> dict[str, list[Outcome]]:
    """Return the outcomes of every cell."""
    found: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.case.cell, []).append(outcome)
    return found
