"""The level law of all sizes at once: a posterior mode and covariance over N, the schedule's own time and its level.

    L = E + B (N/N0)^-alpha + A (N/N0)^gamma S^-a + c (N/N0)^delta S^d V

N0 is the largest size fitted. S and V are the progress and the level of ``analysis.laws.level``, whose reference rate
falls with the size as (N/N0)^-omega. A floor with a term in N and one in the data is the form of Hoffmann et al. 2022
(arXiv 2203.15556); here the schedule's own time S takes the place of the tokens, and the level is added.

Every size may lie off the law by a number of its own, for depth, width and seed differ too; a new size lies off it as
much. Every coordinate has a prior: the level's is that over families, the rest is ``scale`` in constants.json.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis import constants
from analysis.curves.curve import LossCurve
from analysis.fit.level_posterior import BOUNDS, HUBER, LOGS, Observed, Prior, observe
from analysis.fit.level_posterior import NAMES as LEVEL_NAMES
from analysis.laws.level import LINGER, UNIT, progress_and_level
from analysis.schedules.features import LevelBlocks

KERNEL = ("tau", "b", "p", "q", "kappa", "Q")  # parameters of progress and level
SIZE_NAMES = ("slope", "alpha", "gamma", "delta", "omega")
SIZE_LOGS = ("slope", "alpha")  # slope: how fast the term in N falls at N0, in nats for a factor e
NAMES = ("L0", *LEVEL_NAMES[1:], *SIZE_NAMES)
MOVING = (*KERNEL, "omega")  # that change S and V
SIZE_BOUNDS = {"alpha": (-3.5, 0.7), "gamma": (-0.6, 0.6), "delta": (-1.0, 1.0), "omega": (-0.5, 1.5)}
FINITE = 1e-4  # step of the numerical derivatives
FARTHEST = 0.7  # a coordinate moves in one iteration
ITERATIONS = 30
ENOUGH = 3e-3  # gain of the log-posterior below which a search ends
ROUNDS = 3  # of reweighing residuals by Huber's rule


@dataclass(frozen=True)
class Scales:
    """What the coordinates are relative to."""

    size: float  # N0, the largest size fitted
    reference: float  # highest rate of its runs
    progress: float  # S of the longest run, in UNIT updates at its peak
    linger: float = LINGER  # the level law's h


def values(theta: np.ndarray) -> dict[str, np.ndarray]:
    """Return the coordinates ``[B,P]`` by name as columns ``[B,1]``, without logarithms."""
    logs = (*LOGS, *SIZE_LOGS)
    return {n: np.exp(theta[:, [i]]) if n in logs else theta[:, [i]] for i, n in enumerate(NAMES)}


def losses(
    theta: np.ndarray, size: float, blocks: LevelBlocks, scales: Scales, rows: np.ndarray | None = None
) -> np.ndarray:
    """Return the law's loss ``[B,n]`` of a model of ``size`` parameters for coordinates ``theta [B,P]``.

    ``rows [B]``: for each row of theta an earlier one with the same S and V, which are then computed once.
    """
    v = values(theta)
    n = np.log(size / scales.size)
    first, place = (np.arange(len(theta)),) * 2 if rows is None else np.unique(rows, return_inverse=True)
    kernel = {name: v[name][first, 0] for name in KERNEL} | {"h": np.array(scales.linger)}
    S, V = progress_and_level(blocks, scales.reference * np.exp(-v["omega"][first] * n), kernel)
    S, V = S[place] / scales.progress, V[place]
    lowest = v["L0"] + v["slope"] * np.expm1(-v["alpha"] * n) / v["alpha"]
    data = v["R"] * np.exp(v["gamma"] * n) * S ** -v["a"]
    return lowest + data + v["c"] * np.exp(v["delta"] * n) * S ** v["d"] * V


def jacobian(theta: np.ndarray, size: float, blocks: LevelBlocks, scales: Scales) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss ``[n]`` for coordinates ``theta [P]`` and its derivatives ``[n,P]`` by them."""
    batch = np.vstack([theta, theta + FINITE * np.eye(len(NAMES))])
    rows = np.array([0, *(i + 1 if name in MOVING else 0 for i, name in enumerate(NAMES))])
    loss = losses(batch, size, blocks, scales, rows)
    return loss[0], ((loss[1:] - loss[0]) / FINITE).T


@dataclass(frozen=True)
class ScalePosterior:
    """Mode ``theta [P]`` and covariance ``[P,P]``, and the prior's ``prior_sd [P]`` (infinite for L0)."""

    theta: np.ndarray
    cov: np.ndarray
    prior_sd: np.ndarray
    scales: Scales
    own: dict[float, float]  # how far every size fitted lies off the law, in nats
    off_law: float  # nats: standard deviation of a size around the law
    rms: float  # nats: of the residuals

    def predict(self, size: float, blocks: LevelBlocks) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation ``[n]`` of the loss at the states of ``blocks``, for a new size."""
        mean, J = jacobian(self.theta, size, blocks, self.scales)
        return mean, np.sqrt(np.einsum("ni,ij,nj->n", J, self.cov, J) + self.off_law**2)

    def draws(self, count: int, inflation: float, seed: int = 0) -> np.ndarray:
        """Return coordinates ``[count,P]`` drawn from the posterior, within their bounds."""
        low, high = bounds()
        drawn = np.random.default_rng(seed).multivariate_normal(self.theta, inflation**2 * self.cov, count)
        return np.clip(drawn, low, high)

    def parameters(self) -> dict[str, float]:
        """Return the parameters of the formula, S in ten thousand updates at the reference rate."""
        return _parameters(self.theta, self.scales)

    def errors(self) -> dict[str, float]:
        """Return standard errors of ``parameters``."""
        base = np.array(list(self.parameters().values()))
        moved = [list(_parameters(t, self.scales).values()) for t in self.theta + FINITE * np.eye(len(NAMES))]
        J = (np.array(moved) - base) / FINITE  # [P,k]
        sd = np.sqrt(np.maximum(np.einsum("pk,pq,qk->k", J, self.cov, J), 0))
        return dict(zip(self.parameters(), map(float, sd), strict=True))

    def resting_on_prior(self, share: float = 0.8) -> list[str]:
        """Return the coordinates whose spread is at least ``share`` of the prior's."""
        sd = np.sqrt(np.diag(self.cov))
        return [name for name, own, prior in zip(NAMES, sd, self.prior_sd, strict=True) if own >= share * prior]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "names": list(NAMES),
            "theta": self.theta.tolist(),
            "cov": self.cov.tolist(),
            "prior_sd": [float(x) if np.isfinite(x) else None for x in self.prior_sd],
            "size": self.scales.size,
            "reference": self.scales.reference,
            "progress": self.scales.progress,
            "linger": self.scales.linger,
            "own": [[size, off] for size, off in self.own.items()],
            "off_law": self.off_law,
            "rms": self.rms,
        }

    @staticmethod
    def from_dict(stored: Mapping[str, Any]) -> "ScalePosterior":
        """Read ``to_dict``'s form."""
        return ScalePosterior(
            np.array(stored["theta"]),
            np.array(stored["cov"]),
            np.array([np.inf if x is None else x for x in stored["prior_sd"]]),
            Scales(stored["size"], stored["reference"], stored["progress"], stored.get("linger", 0.0)),
            {size: off for size, off in stored["own"]},
            stored["off_law"],
            stored["rms"],
        )


def _parameters(theta: np.ndarray, scales: Scales) -> dict[str, float]:
    v = {name: float(column[0, 0]) for name, column in values(theta[None]).items()}
    B = v["slope"] / v["alpha"]
    named = {"E": v["L0"] - B, "B": B, "alpha": v["alpha"], "A": v["R"] * scales.progress ** v["a"]}
    named |= {"gamma": v["gamma"], "a": v["a"], "c": v["c"] * scales.progress ** -v["d"], "delta": v["delta"]}
    return named | {name: v[name] for name in ("d", "omega", *KERNEL)}


def bounds() -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and highest coordinates ``[P]``."""
    known = BOUNDS | SIZE_BOUNDS
    each = [known.get(name, (-np.inf, 0.5 if name == "d" else np.inf)) for name in NAMES]
    return np.array([low for low, _ in each]), np.array([high for _, high in each])


def fit_posterior(groups: Mapping[float, Sequence[LossCurve]], start: np.ndarray | None = None) -> ScalePosterior:
    """Fit the law to the runs of every size, jointly. ``start``: coordinates to search from."""
    numbers = constants.load()
    largest = max(groups)
    curves = [curve for group in groups.values() for curve in group]
    progress = max(float(curve.lr.sum() / curve.lr.max()) for curve in curves) / UNIT
    scales = Scales(largest, max(float(curve.lr.max()) for curve in groups[largest]), progress)
    problem = _Problem(groups, scales, numbers)
    theta = problem.start(start)
    for _ in range(ROUNDS):
        theta = problem.descend(theta)
        problem.reweigh(theta)
    cov = np.linalg.inv(problem.normal(theta)[0])
    P = len(NAMES)
    own = dict(zip(groups, map(float, theta[P:]), strict=True))
    rms = float(np.sqrt(np.average((problem.model(theta) - problem.loss) ** 2, weights=problem.weight**2)))
    sd = np.concatenate([[np.inf], problem.sd[1:P]])
    return ScalePosterior(theta[:P], cov[:P, :P], sd, scales, own, problem.off_law, rms)


class _Problem:
    """The penalised least squares over the law's coordinates and one offset a size."""

    def __init__(self, groups: Mapping[float, Sequence[LossCurve]], scales: Scales, numbers: Mapping[str, Any]):
        seen: list[tuple[int, float, Observed]] = []
        for i, (size, group) in enumerate(groups.items()):
            seen += [(i, size, one) for one in observe(group, None, numbers["data"])]
        self.seen, self.scales, self.count = seen, scales, len(groups)
        self.loss = np.concatenate([o.loss for _, _, o in seen])
        self.weight = np.concatenate([o.weight for _, _, o in seen])
        self.sigma = self.noise = numbers["data"]["noise"]
        self.huber = np.ones(len(self.loss))
        lowest = min(float(o.loss[-1]) for _, _, o in seen)
        level = Prior.of(numbers["prior"], lowest, scales.progress, scales.reference, numbers["scale"]["widen"])
        mean, spread = dict(numbers["scale"]["mean"]), numbers["scale"]["sd"]
        mean["slope"] += np.log(lowest)
        self.off_law = numbers["scale"]["off_law"] * lowest
        of_size = [mean[name] for name in SIZE_NAMES], [spread[name] for name in SIZE_NAMES]
        offsets = np.zeros(self.count)
        self.mean = np.concatenate([[0.0], level.mean, of_size[0], offsets])
        self.sd = np.concatenate([[1e3], level.sd, of_size[1], offsets + self.off_law])
        low, high = bounds()
        self.low, self.high = (np.concatenate([b, offsets + s * np.inf]) for b, s in ((low, -1), (high, 1)))

    def start(self, given: np.ndarray | None) -> np.ndarray:
        theta = self.mean.copy()
        if given is not None:
            theta[1 : len(NAMES)] = given[1:]
        theta[0] = float(np.average(self.loss - self.model(theta), weights=self.weight))
        return theta

    def model(self, theta: np.ndarray) -> np.ndarray:
        P = len(NAMES)
        each = [losses(theta[None, :P], size, o.blocks, self.scales)[0] + theta[P + i] for i, size, o in self.seen]
        return np.concatenate(each)

    @property
    def scaled(self) -> np.ndarray:
        return self.weight * np.sqrt(self.huber) / self.sigma

    def objective(self, theta: np.ndarray) -> float:
        off = (self.model(theta) - self.loss) * self.scaled
        return float(off @ off + np.sum(((theta - self.mean) / self.sd) ** 2))

    def normal(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hessian and gradient, by Gauss and Newton."""
        P = len(NAMES)
        value, rows = [], []
        for i, size, o in self.seen:
            loss, J = jacobian(theta[:P], size, o.blocks, self.scales)
            value.append(loss + theta[P + i])
            rows.append(np.hstack([J, np.repeat(np.eye(self.count)[[i]], len(loss), axis=0)]))
        J = np.concatenate(rows) * self.scaled[:, None]
        H, g = J.T @ J, J.T @ ((np.concatenate(value) - self.loss) * self.scaled)
        return H + np.diag(self.sd**-2), g + (theta - self.mean) / self.sd**2

    def descend(self, theta: np.ndarray) -> np.ndarray:
        """Levenberg-Marquardt from ``theta`` to the mode."""
        cost, damping = self.objective(theta), 1e-3
        for _ in range(ITERATIONS):
            H, g = self.normal(theta)
            for _ in range(6):
                step = np.linalg.solve(H + damping * np.diag(np.diag(H)), -g)
                new = np.clip(theta + np.clip(step, -FARTHEST, FARTHEST), self.low, self.high)
                new_cost = self.objective(new)
                if new_cost < cost:
                    break
                damping = max(damping, 1e-4) * 5
            else:
                return theta
            gained, theta, cost = cost - new_cost, new, new_cost
            damping = max(damping / 5, 1e-6)
            if gained < ENOUGH:
                break
        return theta

    def reweigh(self, theta: np.ndarray) -> None:
        """Noise and Huber weights from the residuals at ``theta``."""
        residual = np.abs(self.model(theta) - self.loss)
        robust = 1.4826 * float(np.median(residual))
        self.sigma = float(np.sqrt(self.noise**2 + np.mean(np.minimum(residual, 3 * robust) ** 2)))
        self.huber = np.minimum(1.0, HUBER * max(robust, 1e-4) / np.maximum(residual, 1e-12))
