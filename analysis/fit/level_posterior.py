"""The level law fitted with a prior over families: a posterior mode and covariance for every component of the prior.

Every parameter has a prior, so a run on its plateau, a tenth of a run, or one run alone is fitted like any other: what
the runs cannot tell comes from the families the prior was measured on (``analysis/constants.json``). The mode is found
by Levenberg-Marquardt, the covariance by Laplace's approximation, and components are weighed by their evidence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from analysis import constants
from analysis.curves.curve import LossCurve, bin_curve
from analysis.laws.level import LINGER, UNIT, progress_and_level
from analysis.schedules.features import LevelBlocks, warmup_steps

NAMES = ("ell", "R", "a", "c", "tau", "b", "p", "q", "kappa", "Q", "d")
LOGS = ("R", "a", "c", "tau", "b", "kappa")  # whose coordinates are logarithms
BOUNDS = {"tau": (0.0, 10.0), "b": (-2.5, 2.5), "p": (0.2, 1.5), "q": (0.05, 1.5), "kappa": (-4.0, 4.0)}
POINTS = 40  # a run is binned to
FINITE = 1e-4  # step of the numerical derivatives
FARTHEST = 0.7  # a coordinate moves in one iteration
ITERATIONS = 25
ENOUGH = 3e-3  # gain of the log-posterior below which a search ends
ROUNDS = 3  # of reweighing residuals by Huber's rule
HUBER = 2.5  # robust standard deviations


def losses(
    theta: np.ndarray, blocks: LevelBlocks, reference: float, scale: float, linger: float = LINGER
) -> np.ndarray:
    """``[B,n]`` the law's loss for coordinates ``theta [B,11]``; ``linger`` is the law's h.

    ``ell`` is the loss without its level where S equals ``scale``, R what of it is above the floor there.
    """
    theta = np.atleast_2d(theta)
    value = {name: theta[:, i] for i, name in enumerate(NAMES)}
    S, N = progress_and_level(
        blocks,
        reference,
        {name: np.exp(value[name]) if name in LOGS else value[name] for name in (*KERNEL, *BETWEEN)}
        | {"h": np.array(linger)},
    )
    reached = S / scale
    R, a, c = (np.exp(value[name])[:, None] for name in ("R", "a", "c"))
    return value["ell"][:, None] + R * (reached**-a - 1) + c * reached ** value["d"][:, None] * N


KERNEL = ("tau", "b", "p", "q")  # parameters of progress and level
BETWEEN = ("kappa", "Q")  # those that matter to a run whose peak is not the reference


def jacobian(
    theta: np.ndarray, blocks: LevelBlocks, reference: float, scale: float, linger: float = LINGER
) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss ``[n]`` for coordinates ``theta [11]`` and its derivatives ``[n,11]`` by them.

    Those by the parameters of progress and level are taken numerically, the others exactly.
    """
    moved = [*KERNEL, *(BETWEEN if blocks.peak != reference else ())]
    at = [NAMES.index(name) for name in moved]
    batch = np.repeat(theta[None], 1 + len(at), axis=0)
    batch[np.arange(1, 1 + len(at)), at] += FINITE
    value = dict(zip(NAMES, batch.T, strict=True))
    S, N = progress_and_level(
        blocks,
        reference,
        {name: np.exp(value[name]) if name in LOGS else value[name] for name in (*KERNEL, *BETWEEN)}
        | {"h": np.array(linger)},
    )
    reached = S / scale
    v = {name: float(np.exp(x) if name in LOGS else x) for name, x in zip(NAMES, theta, strict=True)}
    left, level = v["R"] * reached ** -v["a"], v["c"] * reached ** v["d"] * N
    loss = v["ell"] - v["R"] + left + level  # [1+k,n]
    log = np.log(reached[0])
    J = np.zeros((loss.shape[1], len(NAMES)))
    exact = {"ell": 1.0, "R": left[0] - v["R"], "a": -v["a"] * log * left[0], "c": level[0], "d": log * level[0]}
    for name, derivative in exact.items():
        J[:, NAMES.index(name)] = derivative
    J[:, at] = ((loss[1:] - loss[0]) / FINITE).T
    return loss[0], J


@dataclass(frozen=True)
class Prior:
    """Normal over the coordinates without ell: ``mean [10]`` and ``sd [10]`` in nats for a given problem."""

    mean: np.ndarray
    sd: np.ndarray

    @staticmethod
    def of(numbers: Mapping[str, Any], loss: float, scale: float, reference: float, widen: float) -> "Prior":
        """The prior ``numbers`` where the lowest loss is ``loss`` nats, S goes to ``scale`` and the highest rate is
        ``reference``: R and c are shares of the loss, R falls with the length and c rises with the rate."""
        mean = np.array([numbers["mean"][name] for name in NAMES[1:]])
        sd = np.array([numbers["sd"][name] for name in NAMES[1:]]) * widen
        mean += offsets(numbers, loss, scale, reference)
        return Prior(mean, sd)


def offsets(numbers: Mapping[str, Any], loss: float, scale: float, reference: float) -> np.ndarray:
    """What the prior's mean ``[10]`` moves by for a problem, see ``Prior.of``."""
    found = np.zeros(len(NAMES) - 1)
    low, high = numbers["length_range"]
    found[0] = np.log(loss) - numbers["length_slope"] * np.log(np.clip(scale * UNIT, low, high) / 2e4)
    low, high = numbers["peak_range"]
    found[2] = np.log(loss) + numbers["peak_slope"] * np.log(np.clip(reference, low, high) / 1e-3)
    return found


@dataclass(frozen=True)
class Component:
    """The posterior under one component of the prior."""

    theta: np.ndarray  # [11] mode
    cov: np.ndarray  # [11,11]
    weight: float
    misfit: float  # nats: root mean square of the residuals without their noise, robust


@dataclass(frozen=True)
class LevelPosterior:
    """What the runs and the prior give together; predicts mean and standard deviation for any schedule."""

    components: tuple[Component, ...]
    reference: float  # highest rate of the runs
    scale: float  # S of the longest run, in UNIT updates at its peak
    linger: float = LINGER  # the law's h
    residuals: tuple[np.ndarray, ...] = field(default=(), repr=False)  # one array a run, under the first component

    @property
    def misfit(self) -> float:
        return float(sum(c.weight * c.misfit for c in self.components))

    @property
    def heaviest(self) -> Component:
        """The component with the largest weight."""
        return max(self.components, key=lambda component: component.weight)

    def uncertainty(self) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Return standard errors of the heaviest component's parameters, and their correlations by pair."""
        component = self.heaviest
        linear, nonlinear = self.parameters(component)
        names = [name for name in (*linear, *nonlinear) if name != "h"]  # which is not fitted
        rows = []
        for i in range(len(NAMES)):
            moved = replace(component, theta=component.theta + FINITE * np.eye(len(NAMES))[i])
            a, b = self.parameters(moved)
            rows.append([((a | b)[name] - (linear | nonlinear)[name]) / FINITE for name in names])
        J = np.array(rows).T
        cov = J @ component.cov @ J.T
        sd = np.sqrt(np.maximum(np.diag(cov), 1e-300))
        together = cov / np.outer(sd, sd)
        return (
            {name: float(x) for name, x in zip(names, sd, strict=True)},
            {a: {b: float(together[i, j]) for j, b in enumerate(names)} for i, a in enumerate(names)},
        )

    def mean(self, blocks: LevelBlocks) -> np.ndarray:
        """Return the mean ``[n]``."""
        each = [c.weight * losses(c.theta, blocks, self.reference, self.scale, self.linger)[0] for c in self.components]
        return np.sum(each, axis=0)

    def gradients(self, blocks: LevelBlocks) -> list[tuple[np.ndarray, np.ndarray]]:
        """Mean ``[n]`` and its derivatives ``[n,11]`` by the coordinates, for every component."""
        return [jacobian(one.theta, blocks, self.reference, self.scale, self.linger) for one in self.components]

    def predict(self, eta: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation ``[n]`` of the loss at the states ``at`` (rising)."""
        mean, cov = self.moments(LevelBlocks(eta, at, warmup_steps(eta)), full=False)
        return mean, np.sqrt(cov)

    def moments(self, blocks: LevelBlocks, full: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Mean ``[n]`` and covariance ``[n,n]`` (variance ``[n]`` unless ``full``) of the losses."""
        return combine([(c, *g) for c, g in zip(self.components, self.gradients(blocks), strict=True)], full)

    def finals(self, schedules: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Mean ``[k]`` and covariance ``[k,k]`` of the final losses of several schedules."""
        each = [self.gradients(LevelBlocks(e, np.array([len(e)]), warmup_steps(e))) for e in schedules]
        parts = []
        for i, component in enumerate(self.components):
            mean = np.concatenate([one[i][0] for one in each])
            parts.append((component, mean, np.concatenate([one[i][1] for one in each])))
        return combine(parts, full=True)

    def parameters(self, component: Component) -> tuple[dict[str, float], dict[str, float]]:
        """Linear and nonlinear parameters of the mode, as ``analysis.laws.level`` names them."""
        v = {n: float(np.exp(x) if n in LOGS else x) for n, x in zip(NAMES, component.theta, strict=True)}
        linear = {"L0": v["ell"] - v["R"], "A": v["R"] * self.scale ** v["a"], "c": v["c"] * self.scale ** -v["d"]}
        nonlinear = {name: v[name] for name in ("a", "tau", "b", "p", "q", "kappa", "Q", "d")}
        return linear, nonlinear | {"h": self.linger}

    def to_dict(self) -> dict[str, Any]:
        return {
            "names": list(NAMES),
            "reference": self.reference,
            "scale": self.scale,
            "linger": self.linger,
            "components": [
                {"theta": c.theta.tolist(), "cov": c.cov.tolist(), "weight": c.weight, "misfit": c.misfit}
                for c in self.components
            ],
        }

    @staticmethod
    def from_dict(stored: dict[str, Any]) -> "LevelPosterior":
        parts = tuple(
            Component(np.array(c["theta"]), np.array(c["cov"]), c["weight"], c["misfit"]) for c in stored["components"]
        )
        return LevelPosterior(parts, stored["reference"], stored["scale"], stored.get("linger", 0.0))


def combine(parts: Sequence[tuple[Component, np.ndarray, np.ndarray]], full: bool) -> tuple[np.ndarray, np.ndarray]:
    """Moments of a mixture of normals from (component, mean ``[n]``, derivatives ``[n,11]``)."""
    mean = np.sum([c.weight * m for c, m, _ in parts], axis=0)
    total: np.ndarray = np.zeros((len(mean), len(mean)) if full else len(mean))
    for component, m, J in parts:
        off = m - mean
        if full:
            total += component.weight * (J @ component.cov @ J.T + np.outer(off, off))
        else:
            total += component.weight * (np.einsum("ni,ij,nj->n", J, component.cov, J) + off**2)
    return mean, total


@dataclass(frozen=True)
class Observed:
    """One run as the fit sees it: bin means ``loss [n]`` at the states of ``blocks``, each with a weight ``[n]``."""

    blocks: LevelBlocks
    loss: np.ndarray
    weight: np.ndarray


def start_of(curve: LossCurve) -> int:
    """Return the first step of a run that counts: a share of what is logged, after its warm-up."""
    return max(warmup_steps(curve.lr) + 1, int(constants.load()["data"]["start"] * curve.step[-1]))


def shared(curve: LossCurve, other: LossCurve) -> int:
    """Return how many points at its beginning a run has in common with another, bit for bit."""
    n = min(len(curve.step), len(other.step))
    same = (curve.step[:n] == other.step[:n]) & (curve.loss[:n] == other.loss[:n])
    return n if same.all() else int(np.argmin(same))


def observe(curves: Sequence[LossCurve], first: int | None, numbers: Mapping[str, Any]) -> list[Observed]:
    """The runs binned, each from step ``first`` on (unset: a share of its own length); what repeats an earlier run
    bit for bit, as runs branched from one plateau do, counts once."""
    seen = []
    for i, curve in enumerate(curves):
        start = start_of(curve) if first is None else first
        later = curve.step >= start
        kept = later & (np.arange(len(curve.step)) >= max((shared(curve, other) for other in curves[:i]), default=0))
        if not kept.any():
            continue
        at, loss, count = bin_curve(curve.step[kept], curve.loss[kept], POINTS)
        at = np.maximum(at, 1)
        # A run cut short has as many residuals that do not depend on each other as its part of the run.
        share = kept.sum() / later.sum() * (curve.step[-1] / len(curve.lr)) ** numbers["running"]
        count = count * (at / at[-1]) ** numbers["recent"]
        weight = np.sqrt(numbers["independent"] * share * count / count.sum())
        seen.append(Observed(LevelBlocks(curve.lr, at, warmup_steps(curve.lr)), loss, weight))
    return seen


class _Problem:
    """The penalised least squares of one component."""

    def __init__(self, seen: Sequence[Observed], prior: Prior, reference: float, scale: float, noise: float):
        self.seen, self.prior, self.reference, self.scale = seen, prior, reference, scale
        self.loss = np.concatenate([o.loss for o in seen])
        self.weight = np.concatenate([o.weight for o in seen])
        self.ends = np.cumsum([len(o.loss) for o in seen])[:-1]
        self.huber = np.ones(len(self.loss))
        self.noise = noise
        self.sigma = self.noise
        self.low = np.array([BOUNDS.get(name, (-np.inf, 0))[0] for name in NAMES])
        self.high = np.array([BOUNDS.get(name, (0, np.inf))[1] for name in NAMES])

    def model(self, theta: np.ndarray) -> np.ndarray:
        return np.concatenate([losses(theta, o.blocks, self.reference, self.scale) for o in self.seen], axis=1)

    @property
    def scaled(self) -> np.ndarray:
        return self.weight * np.sqrt(self.huber) / self.sigma

    def penalty(self, theta: np.ndarray) -> np.ndarray:
        return (theta[1:] - self.prior.mean) / self.prior.sd

    def objective(self, theta: np.ndarray, value: np.ndarray) -> float:
        return float(np.sum(((value - self.loss) * self.scaled) ** 2) + np.sum(self.penalty(theta) ** 2))

    def normal(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hessian ``[11,11]`` and gradient ``[11]``, by Gauss and Newton."""
        each = [jacobian(theta, o.blocks, self.reference, self.scale) for o in self.seen]
        value = np.concatenate([loss for loss, _ in each])
        J = np.concatenate([J for _, J in each]) * self.scaled[:, None]
        H, g = J.T @ J, J.T @ ((value - self.loss) * self.scaled)
        H[np.arange(1, len(NAMES)), np.arange(1, len(NAMES))] += self.prior.sd**-2
        g[1:] += self.penalty(theta) / self.prior.sd
        return H, g

    def start(self) -> np.ndarray:
        theta = np.concatenate([[0.0], self.prior.mean])
        theta[0] = float(np.average(self.loss - self.model(theta)[0], weights=self.weight))
        return theta

    def descend(self, theta: np.ndarray) -> np.ndarray:
        """Levenberg-Marquardt from ``theta`` to the mode."""
        value = self.model(theta)[0]
        cost, damping = self.objective(theta, value), 1e-3
        for _ in range(ITERATIONS):
            H, g = self.normal(theta)
            for _ in range(6):
                step = np.linalg.solve(H + damping * np.diag(np.diag(H)), -g)
                new = np.clip(theta + np.clip(step, -FARTHEST, FARTHEST), self.low, self.high)
                new_value = self.model(new)[0]
                new_cost = self.objective(new, new_value)
                if new_cost < cost:
                    break
                damping = max(damping, 1e-4) * 5
            else:
                return theta
            gained = cost - new_cost
            theta, value, cost, damping = new, new_value, new_cost, max(damping / 5, 1e-6)
            if gained < ENOUGH:
                break
        return theta

    def reweigh(self, theta: np.ndarray) -> None:
        """Noise and Huber weights from the residuals at ``theta``."""
        residual = np.abs(self.model(theta)[0] - self.loss)
        robust = 1.4826 * float(np.median(residual))
        self.sigma = float(np.sqrt(self.noise**2 + np.mean(np.minimum(residual, 3 * robust) ** 2)))
        self.huber = np.minimum(1.0, HUBER * max(robust, 1e-4) / np.maximum(residual, 1e-12))

    def misfit(self, theta: np.ndarray) -> float:
        """Return the smooth part of the residuals: their mean square without that of the noise, both robust; the noise
        follows from second differences."""
        residual = self.model(theta)[0] - self.loss
        bent = np.concatenate([np.diff(r, 2) for r in np.split(residual, self.ends)])
        noise = float(np.median(bent**2)) / 6 / 0.455 if len(bent) else 0.0
        most = 3 * 1.4826 * float(np.median(np.abs(residual)))
        return float(np.sqrt(max(np.mean(np.minimum(np.abs(residual), most) ** 2) - noise, 0.0)))

    def evidence(self, theta: np.ndarray, H: np.ndarray) -> float:
        cost = self.objective(theta, self.model(theta)[0])
        volume = np.linalg.slogdet(H)[1] + 2 * float(np.sum(np.log(self.prior.sd)))
        return -0.5 * cost - 0.5 * volume - float(np.sum(self.weight**2)) * np.log(self.sigma)


def fit_posterior(
    curves: Sequence[LossCurve],
    first: int | None = None,
    wide: bool = True,
) -> LevelPosterior:
    """The level law's posterior from ``curves`` jointly.

    ``first``: the first step that counts, else a share of every run. The prior is set for the longest of the
    schedules, which may go further than its log. ``wide=False`` leaves out the components for unusual families.
    """
    numbers = constants.load()
    seen = observe(curves, first, numbers["data"])
    reference = max(float(curve.lr.max()) for curve in curves)
    scale = max(float(curve.lr.sum() / curve.lr.max()) for curve in curves) / UNIT
    lowest = min(float(o.loss[-1]) for o in seen)
    components = numbers["prior"]["components"]
    found, evidence = [], []
    residuals: tuple[np.ndarray, ...] = ()
    for i, part in enumerate(components if wide else components[:1]):
        prior = Prior.of(numbers["prior"], lowest, scale, reference, part["widen"])
        problem = _Problem(seen, prior, reference, scale, numbers["data"]["noise"])
        theta = problem.start()
        for _ in range(ROUNDS):
            theta = problem.descend(theta)
            problem.reweigh(theta)
        H, _ = problem.normal(theta)
        found.append((theta, np.linalg.inv(H) * part["variance"], problem.misfit(theta)))
        evidence.append(problem.evidence(theta, H) + part["log_weight"])
        if i == 0:
            residuals = tuple(np.split(problem.model(theta)[0] - problem.loss, problem.ends))
    weight = np.exp(np.array(evidence) - max(evidence))
    weight /= weight.sum()
    parts = tuple(Component(t, v, float(w), s) for (t, v, s), w in zip(found, weight, strict=True))
    return LevelPosterior(parts, reference, scale, residuals=residuals)
