"""``fit(curves, parameters)``: one law over model size, length and schedule, which predicts the next size.

>>> law = fit(curves, parameters)  # a curve and its model's parameters for every run
>>> law.predict(210e6, eta).final_loss, law.predict(210e6, eta).interval(0.9)

Intervals come from the posterior, widened by how far sizes predicted from the other sizes were off:

    sd^2 = floor^2 + noise^2 + (peak log r)^2 + g^2 (posterior sd)^2,  g^2 = max((n0 + sum z^2) / (n0 + n), 1)

with Student's t of four degrees of freedom, for sizes are few. z is the error of a size left out in posterior standard
deviations, n how many were left out, r how far the peak lies outside those fitted relative to the size's reference.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis import constants
from analysis.curves.curve import LossCurve
from analysis.fit import fit_start
from analysis.fit.joint import prepare
from analysis.fit.level_model import MOST_Z, STATES, end_noise, end_of
from analysis.fit.model import Prediction, as_rates
from analysis.fit.scale_posterior import SIZE_NAMES, ScalePosterior, fit_posterior
from analysis.schedules.features import LevelBlocks, warmup_steps
from rwkv_lab.config.errors import UserError
from rwkv_lab.runs.provenance import differences
from rwkv_lab.util.paths import as_typed

FORMAT = 1
FORMULA = "L = E + B (N/N0)^-alpha + A (N/N0)^gamma S^-a + c (N/N0)^delta S^d V"
MOST_LEFT_OUT = 8  # sizes predicted from the others
ALIKE = 1.02  # ratio of sizes taken as equal
FAR = 4.0  # times the largest size fitted beyond which a prediction is remarked on
SHAPE = 8  # points at which two schedules are compared
SWEPT = 3  # peaks of one size and schedule from which the best is known
FLOPS = 6.0  # a parameter and token, forward and backward (Kaplan et al. 2020, arXiv 2001.08361)


@dataclass(frozen=True)
class ScaleRun:
    """A run fitted: losses at its end in nats, ``left_out`` predicted from the other sizes, ``left_out_sd`` its scale.

    ``residual`` is fitted minus measured, of the law without the size's own offset.
    """

    name: str
    parameters: float
    steps: int
    warmup: int
    peak: float
    loss: float
    residual: float
    left_out: float | None = None
    left_out_sd: float | None = None


@dataclass(frozen=True, eq=False)
class ScaleFit:
    """The law fitted to runs of several sizes; predicts any size and schedule of the same data and batch size."""

    posterior: ScalePosterior
    runs: tuple[ScaleRun, ...]
    inflation: float  # g
    noise: float  # nats: of one logged loss at the runs' ends
    peaks: tuple[float, float]  # lowest and highest peak of the runs, relative to their size's reference
    best_peaks: dict[float, float]  # by size, where the runs swept it
    tokens_per_step: float | None = None
    flops_per_token: tuple[float, float] = (float(np.log(FLOPS)), 1.0)  # logarithm at N = 1, and exponent in N
    counted: str = "as given"  # which parameters N counts
    notes: tuple[str, ...] = ()  # on what was repaired or assumed in the curves

    @property
    def sizes(self) -> list[float]:
        """The sizes fitted, rising."""
        return sorted(self.posterior.own)

    @property
    def parameters(self) -> dict[str, float]:
        """Parameters of the formula by name."""
        return self.posterior.parameters()

    def predict(self, parameters: float, eta: Any, steps: int | None = None, **fields: Any) -> Prediction:
        """Predict the losses of a model of ``parameters`` parameters, counted as in the fit.

        ``eta``: the rate of every update, or a schedule by name with its length ``steps`` and ``fields``.
        """
        if not np.isfinite(parameters) or parameters <= 0:
            raise UserError(f"parameters must be a number above 0, e.g. 210e6 (got {parameters})")
        lr = as_rates(eta, steps, fields)
        shares = np.concatenate([np.linspace(0, 1, STATES // 4), np.geomspace(1 / len(lr), 1, STATES // 4)])
        at = np.unique(np.rint(np.concatenate([shares, 1 - shares**2]) * len(lr)).astype(int))
        at = at[at > 0]
        mean, sd = self.at(parameters, LevelBlocks(lr, at, warmup_steps(lr)))
        every = np.arange(len(lr) + 1)
        states, error = np.interp(every, at, mean), np.interp(every, at, sd)
        return Prediction(lr, states, error, error, tuple(self._distances(parameters)))

    def at(self, parameters: float, blocks: LevelBlocks) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and scale of the error ``[n]`` at the states of ``blocks``."""
        numbers = constants.load()["interval"]
        mean, sd = self.posterior.predict(parameters, blocks)
        x = blocks.peak / self.reference(parameters)
        outside = max(np.log(x / self.peaks[1]), np.log(self.peaks[0] / x), 0.0)
        fixed = numbers["floor"] ** 2 + self.noise**2 + (numbers["peak"] * outside) ** 2
        return mean, np.sqrt(fixed + (self.inflation * sd) ** 2)

    def reference(self, parameters: float) -> float:
        """Return the reference rate of a size: it falls as (N/N0)^-omega."""
        return _reference(self.posterior, parameters)

    def usual_peak(self, parameters: float) -> float:
        """Return the peak for a size: the best of each size swept, else that of the runs, on in N as a power."""
        if len(self.best_peaks) > 1:
            known = list(self.best_peaks.items())
        else:
            known = [(run.parameters, run.peak) for run in self.runs]
        n, peak = np.log(np.array(known)).T
        slope, level = np.polyfit(n, peak, 1)
        return float(np.exp(level + slope * np.log(parameters)))

    def flops(self, parameters: np.ndarray | float) -> np.ndarray:
        """Return the FLOPs of one training token: 6 N, or a power through those the runs recorded."""
        level, exponent = self.flops_per_token
        return np.exp(level + exponent * np.log(parameters))

    @property
    def remarks(self) -> list[str]:
        """Cautions, a sentence each."""
        rest = [name for name in self.posterior.resting_on_prior() if name in SIZE_NAMES]
        found = list(self.notes)
        if len(self.sizes) == 2:
            found.append(
                "two sizes only: they give the slope in N but not how it bends, so the exponent alpha rests on its "
                "prior, and no size could be left out to test the intervals; add a third size"
            )
        elif "alpha" in rest:
            found.append("the exponent alpha rests mostly on its prior: the sizes hardly tell how the term in N bends")
        others = [name for name in rest if name != "alpha"]
        if others:
            found.append(f"{', '.join(others)}: known from the prior rather than from these runs")
        if len(self.best_peaks) < 2:
            found.append(
                f"the best peak at each size is unknown: it takes {SWEPT} peaks of one schedule and length at two "
                "sizes; the peak of the runs is continued instead"
            )
        return found

    def _distances(self, parameters: float) -> list[str]:
        low, high = self.sizes[0], self.sizes[-1]
        if parameters > FAR * high or parameters < low / FAR:
            return [f"its size lies far outside those fitted ({low:.3g} to {high:.3g})"]
        return []

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; ``from_dict`` gives a fit that predicts the same."""
        return {
            "format": FORMAT,
            "formula": FORMULA,
            "N0": self.posterior.scales.size,
            "params": self.parameters,
            "standard_errors": self.posterior.errors(),
            "remarks": self.remarks,
            "counted": self.counted,
            "notes": list(self.notes),
            "posterior": self.posterior.to_dict(),
            "runs": [asdict(run) for run in self.runs],
            "inflation": self.inflation,
            "noise": self.noise,
            "peaks": list(self.peaks),
            "best_peaks": [list(pair) for pair in self.best_peaks.items()],
            "tokens_per_step": self.tokens_per_step,
            "flops_per_token": list(self.flops_per_token),
        }

    @staticmethod
    def from_dict(stored: Mapping[str, Any]) -> "ScaleFit":
        """Read ``to_dict``'s form."""
        return ScaleFit(
            ScalePosterior.from_dict(stored["posterior"]),
            tuple(ScaleRun(**run) for run in stored["runs"]),
            stored["inflation"],
            stored["noise"],
            (stored["peaks"][0], stored["peaks"][1]),
            {size: peak for size, peak in stored["best_peaks"]},
            stored["tokens_per_step"],
            (stored["flops_per_token"][0], stored["flops_per_token"][1]),
            stored["counted"],
            tuple(stored["notes"]),
        )

    @staticmethod
    def load(path: str | Path) -> "ScaleFit":
        """Read a scale.json; UserError if the file is missing or another."""
        try:
            return ScaleFit.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a fit written by '{as_typed('python -m analysis scale')}'") from error


def fit(
    curves: Sequence[LossCurve],
    parameters: Sequence[float],
    *,
    tokens_per_step: float | None = None,
    flops_per_token: Sequence[float] | None = None,
    counted: str = "as given",
) -> ScaleFit:
    """Fit the law to ``curves`` of models with ``parameters`` parameters, one number a curve.

    ``tokens_per_step``: tokens of one update, equal in all runs. ``flops_per_token``: of training, one a curve; unset:
    6 a parameter. UserError for one size only, curves without enough points, or runs that differ in batch or data.
    """
    groups = _by_size(curves, parameters)
    _check_alike(curves)
    fit_start.check_curves(curves, "auto", fit_start.beginning(curves))
    posterior = fit_posterior(groups)
    left_out, z = _leave_sizes_out(groups, posterior)
    prior_sizes = constants.load()["interval"]["left_out"]
    inflation = float(np.sqrt(max((prior_sizes + np.sum(np.square(z))) / (prior_sizes + len(z)), 1.0)))
    runs = []
    for size, group in groups.items():
        for curve in group:
            predicted, _, measured = _end(posterior, size, curve)
            guess, sd = left_out.get((size, curve.name), (None, None))
            peak, warmup = float(curve.lr.max()), warmup_steps(curve.lr)
            runs.append(
                ScaleRun(curve.name, size, len(curve.lr), warmup, peak, measured, predicted - measured, guess, sd)
            )
    relative = [run.peak / _reference(posterior, run.parameters) for run in runs]
    noise = float(np.mean([end_noise(curve) for group in groups.values() for curve in group]))
    cost = (float(np.log(FLOPS)), 1.0)
    if flops_per_token is not None:
        slope, level = np.polyfit(np.log(np.array(parameters, float)), np.log(np.array(flops_per_token, float)), 1)
        cost = (float(level), float(slope))
    best = {size: found for size, group in groups.items() if (found := best_peak(group)) is not None}
    peaks = (min(relative), max(relative))
    notes = tuple(f"{curve.name}: {note}" for group in groups.values() for curve in group for note in curve.notes)
    return ScaleFit(posterior, tuple(runs), inflation, noise, peaks, best, tokens_per_step, cost, counted, notes)


def _reference(posterior: ScalePosterior, parameters: float) -> float:
    scales = posterior.scales
    return float(scales.reference * (parameters / scales.size) ** -posterior.parameters()["omega"])


def _by_size(curves: Sequence[LossCurve], parameters: Sequence[float]) -> dict[float, tuple[LossCurve, ...]]:
    """Return the curves of every size, sizes rising, without what no law describes."""
    if len(curves) != len(parameters):
        raise UserError(f"parameters must be one number a curve, {len(curves)} (got {len(parameters)})")
    if not all(np.isfinite(n) and n > 0 for n in parameters):
        raise UserError("parameters must be numbers above 0, e.g. 124e6")
    groups: dict[float, list[LossCurve]] = {}
    for size, curve in sorted(zip(map(float, parameters), curves, strict=True), key=lambda pair: pair[0]):
        near = [known for known in groups if size <= ALIKE * known]
        groups.setdefault(near[-1] if near else size, []).append(curve)
    if len(groups) < 2:
        found = f"only {next(iter(groups)):.4g}" if groups else "none"
        raise UserError(f"a law over sizes needs runs of at least two sizes, better four (got {found})")
    return {size: prepare(group)[0] for size, group in groups.items()}


def _check_alike(curves: Sequence[LossCurve]) -> None:
    """Refuse runs that differ in more than size, schedule, length and seed."""
    for key, what in (("batch_size", "batch sizes"), ("column", "columns")):
        values = {str(curve.meta[key]) for curve in curves if curve.meta.get(key) is not None}
        if len(values) > 1:
            raise UserError(f"the runs have mixed {what} ({', '.join(sorted(values))}); fit runs that agree")
    known = [curve for curve in curves if curve.meta.get("about")]
    for curve in known[1:]:
        off = differences(known[0].meta["about"], curve.meta["about"])
        off = [key for key in off if not key.startswith("model.") or key in ("model.name", "model.ctx_len")]
        if off:
            raise UserError(
                f"{known[0].name} and {curve.name} differ in {', '.join(off[:4])}; the runs of a law over sizes may "
                "differ in the model's size, schedule, length and seed only"
            )


def _end(posterior: ScalePosterior, size: float, curve: LossCurve) -> tuple[float, float, float]:
    """Return the loss predicted for a run's end, its standard deviation, and the loss measured."""
    at, measured = end_of(curve)
    mean, sd = posterior.predict(size, LevelBlocks(curve.lr, at, warmup_steps(curve.lr)))
    return float(mean.mean()), float(sd.mean()), measured


def _leave_sizes_out(
    groups: Mapping[float, tuple[LossCurve, ...]], start: ScalePosterior
) -> tuple[dict[tuple[float, str], tuple[float, float]], list[float]]:
    """Predict the runs of every size from the other sizes; return predictions by (size, run), and each size's z."""
    if len(groups) < 3:
        return {}, []
    numbers = constants.load()["interval"]
    sizes = list(groups)
    found, z = {}, []
    for i in np.unique(np.linspace(0, len(sizes) - 1, MOST_LEFT_OUT).astype(int)):
        posterior = fit_posterior({size: group for size, group in groups.items() if size != sizes[i]}, start.theta)
        squares = []
        for curve in groups[sizes[i]]:
            mean, sd, measured = _end(posterior, sizes[i], curve)
            sd = float(np.sqrt(sd**2 + numbers["floor"] ** 2 + end_noise(curve) ** 2))
            found[sizes[i], curve.name] = mean, sd
            squares.append(((mean - measured) / sd) ** 2)
        z.append(min(float(np.sqrt(np.mean(squares))), MOST_Z))
    return found, z


def best_peak(curves: Sequence[LossCurve]) -> float | None:
    """Return the peak with the lowest final loss of one size: the lowest point of a parabola in log peak through the
    runs of one schedule and length, of which ``SWEPT`` or more peaks are needed; None if it is unknown or at an end."""
    by_shape: dict[tuple[float, ...], dict[float, float]] = {}
    for curve in curves:
        at = np.linspace(0.1, 1, SHAPE) * (len(curve.lr) - 1)
        peak = float(curve.lr.max())
        shape = (len(curve.lr), *np.round(curve.lr[at.astype(int)] / peak, 2))
        by_shape.setdefault(shape, {})[peak] = end_of(curve)[1]
    swept = [losses for losses in by_shape.values() if len(losses) >= SWEPT]
    if not swept:
        return None
    _, most = max((len(losses), -i) for i, losses in enumerate(swept))
    x, y = np.log(np.array(list(swept[-most]))), np.array(list(swept[-most].values()))
    near = np.argsort(np.abs(x - x[np.argmin(y)]))[: max(SWEPT, 5)]
    bend, slope, _ = np.polyfit(x[near], y[near], 2)
    lowest = -slope / (2 * bend) if bend > 0 else np.inf
    return float(np.exp(lowest)) if x.min() <= lowest <= x.max() else None
