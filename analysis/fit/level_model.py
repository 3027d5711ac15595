"""The default model: the level law's posterior, with intervals.

    sd_k^2 = floor^2 + noise^2 + (0.25 jump)^2 + (peak log r)^2 + (length log l)^2 + (factor g posterior_sd_k)^2
    g^2 = 1 + min(misfit / (m loss), 3)^2, and with n > 1 runs its geometric mean with (n0 + sum z^2) / (n0 + n)

The interval is that of the mixture of the components. The posterior's standard deviation grows with the distance from
the runs: another peak, a lower end, more updates, a run cut short. g makes it honest for a family unlike those the
prior was measured on: where the law misses the curves themselves, or runs predicted from the others (z: their errors in
posterior standard deviations). r is how far the peak lies outside those fitted, l the sum of the rates, relative to the
peak, over that of the longest run, jump the largest break of a curve. ``analysis/constants.json`` has the factors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from analysis import constants
from analysis.curves.curve import LossCurve
from analysis.fit.fitted_law import LeftOut
from analysis.fit.level_posterior import LevelPosterior, fit_posterior
from analysis.laws.level import UNIT
from analysis.schedules.features import LevelBlocks, warmup_steps

STATES = 400  # of a schedule at which the law is evaluated; linear in between
MOST_LEFT_OUT = 8  # runs predicted from the others
MOST_MISFIT = 3.0  # in units of what is usual
MOST_Z = 4.0  # of one run left out
END = 0.02  # share of a run over which the loss at its end is averaged
SURE = 0.9  # level at which the width is that of the mixture


@dataclass(frozen=True)
class LevelModel:
    """What the posterior needs besides for intervals."""

    posterior: LevelPosterior
    noise: float  # nats: of one logged loss at the runs' ends
    jump: float  # nats: largest break
    inflation: float  # g
    peaks: tuple[float, float]  # lowest and highest peak of the runs
    mode: str = "finished"  # finished | running | beside: which factor applies

    def states(self, lr: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return mean, standard deviation and half-width of the 90 % interval ``[T+1]`` at every state of ``lr``."""
        steps = len(lr)
        shares = np.concatenate([np.linspace(0, 1, STATES // 2), np.geomspace(1 / steps, 1, STATES // 2)])
        at = np.unique(np.rint(np.concatenate([shares * steps, steps * (1 - shares**2)])).astype(int))
        at = at[at > 0]
        mean, sd, half = self.at(LevelBlocks(lr, at, warmup_steps(lr)))
        every = np.arange(steps + 1)
        return np.interp(every, at, mean), np.interp(every, at, sd), np.interp(every, at, half)

    def final(self, lr: np.ndarray) -> tuple[float, float]:
        """Return the loss after the last update and the half-width of its 90 % interval; cheaper than ``states``."""
        mean, _, half = self.at(LevelBlocks(lr, np.array([len(lr)]), warmup_steps(lr)))
        return float(mean[0]), float(half[0])

    def at(self, blocks: LevelBlocks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return mean, standard deviation and half-width of the 90 % interval ``[n]`` at the states of ``blocks``."""
        w, m, variance = self.mixture(blocks)
        s = deviation(constants.load()["interval"], self.mode, self.inflation, self.distance(blocks), variance)
        mean = (w * m).sum(axis=0)
        sd = np.sqrt((w * (s**2 + (m - mean) ** 2)).sum(axis=0))
        return mean, sd, half_width(w, m - mean, s, SURE)

    def mixture(self, blocks: LevelBlocks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return weights ``[K,1]``, means ``[K,n]`` and variances ``[K,n]`` of the posterior's components."""
        found = []
        for component, (m, J) in zip(self.posterior.components, self.posterior.gradients(blocks), strict=True):
            found.append((component.weight, m, np.einsum("ni,ij,nj->n", J, component.cov, J)))
        weight, mean, variance = zip(*found, strict=True)
        return np.array(weight)[:, None], np.array(mean), np.array(variance)

    def distance(self, blocks: LevelBlocks) -> tuple[float, float, float]:
        """Return log r, log l and the square of what the runs themselves are uncertain by, see the module."""
        low, high = self.peaks
        outside = max(np.log(blocks.peak / high), np.log(low / blocks.peak), 0.0)
        beyond = max(np.log(float(blocks.length @ blocks.rate) / UNIT / self.posterior.scale), 0.0)
        return float(outside), float(beyond), self.noise**2 + (0.25 * self.jump) ** 2

    def differences(self, lr: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
        """Return how far ``[k]`` the final loss of ``lr`` must lie below those of ``others`` to be lower with 95 %.

        What both share, such as the lowest loss, cancels; what the law misses between shapes is the constant ``shape``.
        """
        numbers = constants.load()["interval"]
        _, cov = self.posterior.finals([lr, *others])
        variance = cov[0, 0] + np.diag(cov)[1:] - 2 * cov[0, 1:]
        scale = (numbers["factor"][self.mode] * self.inflation) ** 2
        return 1.645 * np.sqrt(np.maximum(variance, 0) * scale + numbers["floor"] ** 2 + numbers["shape"] ** 2)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {**asdict(self), "posterior": self.posterior.to_dict(), "peaks": list(self.peaks)}

    @staticmethod
    def from_dict(stored: dict[str, Any]) -> "LevelModel":
        """Read ``to_dict``'s form."""
        rest = stored | {"posterior": LevelPosterior.from_dict(stored["posterior"]), "peaks": tuple(stored["peaks"])}
        return LevelModel(**rest)


def deviation(
    numbers: Mapping[str, Any],
    mode: str,
    inflation: float | np.ndarray,
    distance: tuple[float | np.ndarray, float | np.ndarray, float | np.ndarray],
    variance: np.ndarray,
) -> np.ndarray:
    """Return sd_k ``[K,n]`` of the module's formula by the constants ``numbers`` of intervals."""
    outside, beyond, own = distance
    fixed = numbers["floor"] ** 2 + own + (numbers["peak"] * outside) ** 2 + (numbers["length"] * beyond) ** 2
    return np.sqrt(fixed + (numbers["factor"][mode] * inflation) ** 2 * variance)


def inflation_of(numbers: Mapping[str, Any], misfit: float, z: Sequence[float]) -> float:
    """Return g of the module's formula; ``misfit`` as a share of the loss."""
    found = 1 + min(misfit / numbers["misfit"], MOST_MISFIT) ** 2
    if len(z):
        others = (numbers["left_out"] + float(np.sum(np.square(z)))) / (numbers["left_out"] + len(z))
        found = float(np.sqrt(found * others))
    return float(np.sqrt(found))


def half_width(weight: np.ndarray, off: np.ndarray, sd: np.ndarray, level: float) -> np.ndarray:
    """Return the half-width ``[n]`` of the interval around 0 with probability ``level`` under mixtures of normals.

    ``weight [K,1]`` or ``[K,n]``, ``off [K,n]`` the components' means, ``sd [K,n]`` their standard deviations.
    """
    from scipy.special import ndtr

    low, high = np.zeros(off.shape[1]), 6 * (np.abs(off) + sd).max(axis=0)
    for _ in range(30):
        middle = (low + high) / 2
        inside = (weight * (ndtr((middle - off) / sd) - ndtr((-middle - off) / sd))).sum(axis=0)
        low, high = np.where(inside < level, middle, low), np.where(inside < level, high, middle)
    return (low + high) / 2


def end_of(curve: LossCurve) -> tuple[np.ndarray, float]:
    """Return the states of a run's end and the mean loss there."""
    kept = curve.step >= curve.step[-1] - END * len(curve.lr)
    return curve.step[kept], float(curve.loss[kept].mean())


def end_noise(curve: LossCurve) -> float:
    """Return the standard deviation of the loss at a run's end, from second differences, which a trend leaves alone."""
    tail = curve.loss[-max(len(curve.loss) // 5, 5) :]
    return float(1.4826 * np.median(np.abs(np.diff(tail, n=2))) / np.sqrt(6)) if len(tail) > 2 else 0.0


def leave_out(curves: Sequence[LossCurve], first: int | None) -> tuple[list[LeftOut], list[float]]:
    """Predict runs from the others; return the predictions and their errors in posterior standard deviations."""
    floor = constants.load()["interval"]["floor"]
    some: Sequence[int] | np.ndarray = (
        np.unique(np.linspace(0, len(curves) - 1, MOST_LEFT_OUT).astype(int)) if len(curves) > 1 else []
    )
    found, errors = [], []
    for i in some:
        posterior = fit_posterior([c for j, c in enumerate(curves) if j != i], first)
        at, measured = end_of(curves[i])
        mean, sd = posterior.predict(curves[i].lr, at)
        found.append(LeftOut(curves[i].name, float(mean.mean()), measured))
        scale = np.sqrt(sd.mean() ** 2 + floor**2 + end_noise(curves[i]) ** 2)
        errors.append(min(abs(found[-1].error) / float(scale), MOST_Z))
    return found, errors


def build(
    curves: Sequence[LossCurve],
    first: int | None = None,
    jump: float = 0.0,
    z: Sequence[float] = (),
    mode: str = "finished",
) -> LevelModel:
    """Fit ``curves`` jointly, from step ``first`` or a share of each run on; ``z`` of runs left out, see above.

    ``mode``: finished, if all are; running, if the one asked for is and is alone; beside, if others are finished.
    """
    numbers = constants.load()["interval"]
    posterior = fit_posterior(curves, first)
    loss = min(float(curve.loss[-1]) for curve in curves)
    inflation = inflation_of(numbers, posterior.misfit / loss, z)
    peaks = [float(curve.lr.max()) for curve in curves]
    noise = float(np.mean([end_noise(curve) for curve in curves]))
    return LevelModel(posterior, noise, jump, inflation, (min(peaks), max(peaks)), mode)
