"""The prior over families, and errors and coverage on families left out of it."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis import constants
from analysis.calibrate.families import Case, Family, cases
from analysis.fit import fit, level_model
from analysis.fit.level_posterior import NAMES, fit_posterior, offsets
from analysis.schedules.features import LevelBlocks, warmup_steps

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
FAR = 0.1  # log of the ratio of lengths from which a run is longer than those fitted
LEAST_MISFIT = 0.0005  # of the loss
FACTORS = tuple(np.round(np.arange(0.5, 3.01, 0.05), 2).tolist())  # values tried for the constants of the intervals
LENGTHS = tuple(np.round(np.arange(0.0, 0.031, 0.001), 3).tolist())
PEAKS = tuple(np.round(np.arange(0.0, 0.041, 0.002), 3).tolist())
COVERED = 0.95  # share of the outcomes that 90 % intervals must cover here: families left out are harder
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
    lengths = sorted({run.steps for run in usable})
    for steps in lengths:
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
    length = np.nan  # how the level changes with the length shows between lengths only
    if len(lengths) > 1:
        with constants.using(weak(numbers)):
            length = fit_posterior([run.curve for run in usable]).components[0].theta[NAMES.index("d")]
    found = [np.where(np.array(NAMES[1:]) == "d", length, x) for x in found]
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


@dataclass(frozen=True, eq=False)
class Width:
    """What the interval of the default law is made of, besides the constants; see ``level_model``."""

    weight: np.ndarray  # [K]
    off: np.ndarray  # [K] means of the components around their mean
    variance: np.ndarray  # [K]
    distance: tuple[float, float, float]
    misfit: float  # as a share of the loss
    z: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Outcome:
    """A case with its prediction: ``error`` is predicted minus measured, ``half`` half the 90 % interval, in nats."""

    case: Case
    law: str
    error: float
    half: float
    width: Width | None = None  # of the default law

    @property
    def covered(self) -> bool:
        """Return whether the interval has the measured loss."""
        return abs(self.error) <= self.half


@dataclass(frozen=True)
class Row:
    """The outcomes of a law in one cell and family, in nats; the family ``all`` is the mean over families."""

    cell: str
    family: str
    law: str
    cases: int
    error: float  # mean absolute
    bias: float
    covered: float
    width: float


def ask(case: Case) -> Outcome:
    """Fit a case by the default law and predict the run asked for."""
    _, z = level_model.leave_out(case.curves, None) if case.running is None else ([], [])
    model = level_model.build(case.curves, z=z, mode=case.mode)
    at, measured = case.target.final
    lr = case.target.curve.lr
    blocks = LevelBlocks(lr, at, warmup_steps(lr))
    weight, means, variance = model.mixture(blocks)
    mean = (weight * means).sum(axis=0)
    misfit = model.posterior.misfit / min(float(curve.loss[-1]) for curve in case.curves)
    width = Width(
        weight[:, 0], (means - mean)[:, -1], variance[:, -1], model.distance(blocks), misfit, tuple(map(float, z))
    )
    return Outcome(case, "auto", float(mean.mean()) - measured, float(model.at(blocks)[2][-1]), width)


def ask_law(case: Case, law: str) -> Outcome:
    """Fit a case by another law and predict the run asked for."""
    at, measured = case.target.final
    prediction = fit(case.curves, law).predict(case.target.curve.lr)
    low, high = prediction.band()
    return Outcome(case, law, float(prediction.at(at).mean()) - measured, float(high[at[-1]] - low[at[-1]]) / 2)


def left_out(
    families: Sequence[Family], numbers: Mapping[str, Any], most: int, laws: Sequence[str] = ()
) -> tuple[list[Outcome], dict[str, Any]]:
    """Ask every case under the prior of the other groups, at most ``most`` a cell and family.

    Return the outcomes and the constants of all families. Other ``laws`` are asked what a fit of finished runs can.
    """
    known = {family.name: coordinates(family, numbers) for family in families}
    groups = {family.name: family.group for family in families}
    outcomes, others = [], []
    for group in dict.fromkeys(groups.values()):
        rest = {name: x for name, x in known.items() if groups[name] != group}
        own = [case for family in families if family.group == group for case in cases(family, most)]
        with constants.using(measured_prior(rest, groups, numbers) if rest else numbers):
            outcomes += [ask(case) for case in own]
        others += [ask_law(case, law) for law in laws for case in own if case.mode in ("finished", "one")]
    result = measured_prior(known, groups, numbers)
    result["interval"] = interval_constants(outcomes, numbers["interval"])
    # The intervals of a group, too, are those that the other groups' outcomes give.
    judged = []
    for group in dict.fromkeys(groups.values()):
        rest_of = [one for one in outcomes if one.case.family.group != group]
        given = interval_constants(rest_of, numbers["interval"]) if rest_of else numbers["interval"]
        own_of = [one for one in outcomes if one.case.family.group == group]
        halves = half_widths(own_of, given)
        judged += [replace(one, half=float(half)) for one, half in zip(own_of, halves, strict=True)]
    return judged + others, result


def half_widths(outcomes: Sequence[Outcome], interval: Mapping[str, Any]) -> np.ndarray:
    """Return the half-widths ``[n]`` of outcomes of the default law under the constants ``interval``."""
    parts = [one.width for one in outcomes if one.width is not None]
    columns = []
    for one, part in zip(outcomes, parts, strict=True):
        g = level_model.inflation_of(interval, part.misfit, part.z)
        columns.append(level_model.deviation(interval, one.case.mode, g, part.distance, part.variance))
    weight, off, sd = (np.array(each).T for each in ([p.weight for p in parts], [p.off for p in parts], columns))
    return level_model.half_width(weight, off, sd, level_model.SURE)


def interval_constants(outcomes: Sequence[Outcome], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constants of the intervals that cover ``COVERED`` of the outcomes, families counting equally.

    misfit is the usual one; the factor of every mode follows from runs near those fitted, then length and peak, family
    by family, from those that are not. What no outcome tells stays as it was.
    """
    found: dict[str, Any] = copy.deepcopy(dict(before))
    finished = [one for one in outcomes if one.width and one.case.running is None]
    if finished:
        misfits = np.array([one.width.misfit for one in finished if one.width])
        found["misfit"] = round(max(_quantile(misfits, shares(finished), 0.5), LEAST_MISFIT), 4)
    far = [one for one in finished if one.width and (one.width.distance[0] > 0 or one.width.distance[1] > FAR)]
    for mode in before["factor"]:
        own = [one for one in outcomes if one.case.mode == mode]
        near = [one for one in own if one not in far] or own
        if near:
            found["factor"][mode] = _least(near, found, FACTORS, ("factor", mode))
    for name, place, grid in (("length", 1, LENGTHS), ("peak", 0, PEAKS)):
        own = [one for one in far if one.width and one.width.distance[place] > (FAR if place else 0)]
        if own:
            # Few families have such runs, so none of them is left to the others' mean.
            by_family = [[o for o in own if o.case.family == family] for family in {o.case.family for o in own}]
            found[name] = max(_least(group, found, grid, (name,)) for group in by_family)
    return found


def _least(outcomes: Sequence[Outcome], interval: dict[str, Any], grid: Sequence[float], key: Sequence[str]) -> float:
    """Return the least value of the constant ``key`` that covers enough, or as much as the largest does."""
    tried, error, share = copy.deepcopy(interval), np.array([abs(o.error) for o in outcomes]), shares(outcomes)
    place = tried
    for name in key[:-1]:
        place = place[name]
    reached = []
    for value in grid:
        place[key[-1]] = float(value)
        reached.append(float(share @ (error <= half_widths(outcomes, tried))))
    enough = min(COVERED, reached[-1])
    return float(next(value for value, covered in zip(grid, reached, strict=True) if covered >= enough - 1e-9))


def shares(outcomes: Sequence[Outcome]) -> np.ndarray:
    """Return the weight ``[n]`` of every outcome, families counting equally."""
    names = [one.case.family.name for one in outcomes]
    share = np.array([1 / names.count(name) for name in names])
    return np.asarray(share / share.sum())


def _quantile(values: np.ndarray, share: np.ndarray, level: float) -> float:
    order = np.argsort(values)
    return float(values[order][np.searchsorted(np.cumsum(share[order]), level)])


def summary(outcomes: Iterable[Outcome]) -> list[Row]:
    """Return one row for every cell, family and law, and one for all families of a cell."""
    found: dict[tuple[str, str, str], list[Outcome]] = {}
    for one in outcomes:
        found.setdefault((one.case.cell, one.case.family.name, one.law), []).append(one)
    rows = [_row(*key, own) for key, own in found.items()]
    for cell, law in dict.fromkeys((row.cell, row.law) for row in rows):
        own = [row for row in rows if (row.cell, row.law) == (cell, law)]
        if len(own) > 1:
            mean = {
                key: float(np.mean([getattr(r, key) for r in own])) for key in ("error", "bias", "covered", "width")
            }
            rows.append(Row(cell, "all", law, sum(row.cases for row in own), **mean))
    return sorted(rows, key=lambda row: (row.cell, row.law))


def _row(cell: str, family: str, law: str, own: Sequence[Outcome]) -> Row:
    error = np.array([one.error for one in own])
    covered = float(np.mean([one.covered for one in own]))
    width = float(np.mean([2 * one.half for one in own]))
    return Row(cell, family, law, len(own), float(np.mean(np.abs(error))), float(np.mean(error)), covered, width)
