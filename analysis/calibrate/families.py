"""Families of runs (one model and data each) and the cells a law is asked in: what is fitted, what is predicted."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from analysis.curves.curve import LossCurve
from analysis.curves.loading import load
from analysis.curves.repair import repair
from analysis.fit.level_posterior import start_of
from analysis.forecast import LEAST
from analysis.schedules.features import warmup_steps
from rwkv_lab.config.errors import UserError

CUTS = (0.1, 0.3, 0.5, 0.7)  # shares of a run after which it is forecast
FEW = 6  # runs of one peak of which all pairs and triples are fitted
PLATEAU = 0.3  # share of a run at its peak from which it counts as a plateau with a decay
END = 0.01  # share of a run over which its final loss is averaged


@dataclass(frozen=True)
class Run:
    """A finished run with what its schedule looks like."""

    curve: LossCurve
    broken: bool  # its log has a break, so that it is predicted and not fitted

    @property
    def steps(self) -> int:
        """Updates of the run."""
        return len(self.curve.lr)

    @property
    def peak(self) -> float:
        """Highest rate."""
        return float(self.curve.lr.max())

    @property
    def kind(self) -> str:
        """constant, wsd (a plateau, then a fall) or smooth."""
        after = self.curve.lr[warmup_steps(self.curve.lr) :]
        if after[-1] > 0.9 * after.max():
            return "constant"
        return "wsd" if float(np.mean(after > 0.99 * after.max())) > PLATEAU else "smooth"

    @property
    def final(self) -> tuple[np.ndarray, float]:
        """The states of its end and the mean loss there."""
        kept = self.curve.step >= self.curve.step[-1] - END * self.steps
        return self.curve.step[kept], float(self.curve.loss[kept].mean())

    def cut(self, share: float) -> LossCurve:
        """Return the log up to ``share`` of the run, with the rates of the whole."""
        kept = self.curve.step <= share * self.steps
        return LossCurve(self.curve.step[kept], self.curve.loss[kept], self.curve.lr, self.curve.meta)


@dataclass(frozen=True)
class Family:
    """Runs of one model on one data set; families of one ``group`` are left out together."""

    name: str
    group: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Case:
    """Runs fitted and the run predicted from them; ``running`` is the share of it that was logged, if it is running."""

    cell: str
    family: Family
    fitted: tuple[Run, ...]
    target: Run
    running: float | None = None

    @property
    def mode(self) -> str:
        """How the run asked for is known, see ``level_model.build``."""
        if self.running is None:
            return "finished" if len(self.fitted) > 1 else "one"
        return "beside" if self.fitted else "running"

    @property
    def curves(self) -> list[LossCurve]:
        """The curves to fit."""
        own = [] if self.running is None else [self.target.cut(self.running)]
        return own + [run.curve for run in self.fitted]


def families(paths: Iterable[str | Path]) -> list[Family]:
    """Load the families below ``paths``: folders with a schedules.json (several models where it lists them), or folders
    of runs of this laboratory."""
    found = []
    for path in map(Path, paths):
        listed = (
            [path] if (path / "schedules.json").is_file() else sorted(p.parent for p in path.glob("*/schedules.json"))
        )
        for folder in listed:
            found += _described(folder)
        runs = sorted(p.parent for p in path.glob("*/metrics.csv"))
        if not listed and runs:
            found.append(Family(path.name, path.name, tuple(_run(run) for run in runs)))
        if not listed and not runs:
            raise UserError(f"{path}: no family of runs: a folder with a schedules.json, or one of run directories")
    return found


def _run(path: Path) -> Run:
    repaired = repair(load(path))
    return Run(repaired.curve, repaired.jump > 0)


def _described(folder: Path) -> list[Family]:
    listed = json.loads((folder / "schedules.json").read_text(encoding="utf-8"))
    names = [name for name in listed["schedules"] if (folder / f"{name}.csv").is_file()]
    models = list(listed.get("models", {})) or [""]
    return [
        Family(
            model or folder.name,
            folder.name,
            tuple(_run(folder / f"{name}.csv") for name in names if name.startswith(model)),
        )
        for model in models
    ]


def cases(family: Family, most: int) -> list[Case]:
    """Return the cases of a family, at most ``most`` a cell."""
    runs = family.runs
    usable = [run for run in runs if not run.broken]
    found: list[Case] = []
    for train in _pairs(usable):
        for run in runs:
            cell = None if run in train else _cell(train, run)
            if cell:
                found.append(Case(cell, family, train, run))
    found += _across_peaks(family, usable) + _single(family, usable) + _running(family, usable)
    return [case for cell in dict.fromkeys(c.cell for c in found) for case in _some(found, cell, most)]


def _cell(train: Sequence[Run], run: Run) -> str | None:
    ratio = run.steps / max(other.steps for other in train)
    if not np.isclose(run.peak, train[0].peak):
        return "other peak" if 0.9 < ratio < 1.1 and run.kind != "constant" else None
    if 0.5 < ratio < 1.1:
        return "same peak"
    if ratio < 1 or run.kind == "constant":
        return None
    return "length 2x" if ratio <= 2.2 else "length 4x"


def _some(found: Sequence[Case], cell: str, most: int) -> list[Case]:
    own = [case for case in found if case.cell == cell]
    return own if len(own) <= most else [own[i] for i in np.linspace(0, len(own) - 1, most).astype(int)]


def _pairs(runs: Sequence[Run]) -> list[tuple[Run, ...]]:
    """Two runs of one peak and length, one with a plateau and one smooth; of few runs all pairs and triples."""
    if len(runs) <= FEW and len({run.peak for run in runs}) == 1:
        sets = [*combinations(runs, 2), *combinations(runs, 3)]
        return [found for found in sets if any(run.kind != "constant" for run in found)]
    pairs = [(a, b) for a, b in combinations(runs, 2) if a.steps == b.steps and np.isclose(a.peak, b.peak)]
    return [pair for pair in pairs if {run.kind for run in pair} == {"wsd", "smooth"}]


def _across_peaks(family: Family, runs: Sequence[Run]) -> list[Case]:
    """Runs at two or more peaks and the shortest length, asked for longer ones at these peaks."""
    by_length: dict[int, list[Run]] = {}
    for run in runs:
        if run.kind != "constant":
            by_length.setdefault(run.steps, []).append(run)
    several = [steps for steps, group in by_length.items() if len({run.peak for run in group}) > 1]
    found = []
    for steps in several[:2]:
        train = []
        for peak in sorted({run.peak for run in by_length[steps]}):
            for kind in ("wsd", "smooth"):
                train += [run for run in by_length[steps] if run.peak == peak and run.kind == kind][:1]
        for run in family.runs:
            ratio = run.steps / steps
            if run.kind != "constant" and ratio > 1.1:
                cell = "peaks, 2x" if ratio <= 2.2 else "peaks, 4x"
                found.append(Case(cell, family, tuple(train), run))
    return found


def _single(family: Family, runs: Sequence[Run]) -> list[Case]:
    """One run asked for the other runs of its peak."""
    found = []
    for one in runs:
        if one.kind == "constant":
            continue
        for run in family.runs:
            if run is not one and run.kind != "constant" and np.isclose(run.peak, one.peak) and run.steps >= one.steps:
                found.append(Case("one run" if run.steps == one.steps else "one run, longer", family, (one,), run))
    return found


def _running(family: Family, runs: Sequence[Run]) -> list[Case]:
    """Every run cut short, alone and beside a finished run that is no longer."""
    found = []
    for i, run in enumerate(runs):
        others = [other for other in runs if other is not run and other.steps <= run.steps and other.kind != "constant"]
        for share in CUTS:
            if run.curve.step[0] > share * run.steps:
                continue
            log = run.cut(share)
            if (log.step >= start_of(log)).sum() < LEAST:
                continue
            found.append(Case(f"running {share:.0%}", family, (), run, share))
            if others:
                beside = others[(7 * i + 3) % len(others)]
                found.append(Case(f"running {share:.0%} + 1", family, (beside,), run, share))
    return found
