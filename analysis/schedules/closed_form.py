"""Best schedules in closed form.

Variational law. With D = L - L0 the next D is least for eta = D / (2 alpha), and less D now is less D later, so this
feedback is the best schedule exactly, capped at eta_max. Its continuous limit is eta(t) = 2 D / (beta D t + 4 alpha).

Kernel laws. For a loss F(S_T) + c sum eta_k^2 w(S_T - S_k) with a given sum of rates S_T over a given number of
updates, the best rate with u = S_T - S still to come is min(eta_max, mu / sqrt(w(u))), mu from the horizon;
then S_T is searched. Where progress s goes as eta^p, the exponent is 1 / (1 + p) instead of 1/2 and u counts
that progress.
"""

from collections.abc import Callable

import numpy as np

from analysis.fit.fitted_law import Member
from analysis.schedules.shapes import warmup_ramp

GRID = 400  # points in u
SMALLEST = 1e-4  # of S_T: the first point in u after 0


def feedback(member: Member, steps: int, eta_max: float, warmup: int) -> np.ndarray:
    """Rates ``[steps]`` of the variational law's best schedule, which starts at L_start."""
    L0, alpha, beta = member.linear["L0"], member.linear["alpha"], member.nonlinear["beta"]
    excess = member.linear["L_start"] - L0
    ramp = warmup_ramp(eta_max, warmup)
    eta = np.empty(steps)
    for t in range(steps):
        cap = ramp[t] if t < warmup else eta_max
        eta[t] = max(min(cap, excess / (2 * alpha) if alpha > 0 else cap), 0.0)
        excess += beta * eta[t] * (alpha * eta[t] - excess)
    return eta


def kernel_of(member: Member) -> tuple[Callable[[np.ndarray], np.ndarray], float] | None:
    """The law's kernel w(u) and the exponent p of its time; None for a law without one."""
    n = member.nonlinear
    if member.law in ("vplus", "vplus_own_time"):
        return lambda u: np.exp(-n["beta"] * u), n.get("p", 1.0)
    if member.law == "functional":
        return lambda u: (1 + u / n["tau"]) ** -n["kappa"], 1.0
    return None


def profile(
    kernel: Callable[[np.ndarray], np.ndarray], p: float, total: float, steps: int, eta_max: float, reference: float
) -> np.ndarray:
    """Rates ``[steps]`` whose progress sums to about ``total``; ``total`` must not exceed what ``eta_max`` reaches."""
    u = np.concatenate([[0.0], np.geomspace(SMALLEST * total, total, GRID)])
    shape = kernel(u) ** (-1 / (1 + p))

    def speed(mu: float) -> np.ndarray:
        """Progress an update at the rate of every u."""
        return reference * (np.minimum(eta_max, mu * shape) / reference) ** p

    def updates(mu: float) -> np.ndarray:
        pace = speed(mu)
        return np.concatenate([[0.0], np.cumsum(np.diff(u) * 2 / (pace[1:] + pace[:-1]))])

    low, high = np.log(eta_max / shape[-1]) - 40.0, np.log(eta_max / shape[0])
    for _ in range(80):
        mean = (low + high) / 2
        low, high = (mean, high) if updates(np.exp(mean))[-1] > steps else (low, mean)
    left = updates(np.exp(high))
    rates = np.minimum(eta_max, np.exp(high) * shape)
    remaining = (np.arange(steps, 0, -1) - 0.5) * left[-1] / steps
    return np.interp(np.interp(remaining, left, u), u, rates)


def best_profile(member: Member, steps: int, eta_max: float, warmup: int) -> np.ndarray | None:
    """Rates ``[steps]`` of the kernel law's best schedule, by a search over how far it gets; None without a kernel."""
    from scipy.optimize import minimize_scalar

    found = kernel_of(member)
    if found is None:
        return None
    kernel, p = found
    reference = member.reference
    furthest = (steps - warmup) * reference * (eta_max / reference) ** p

    def final(eta: np.ndarray) -> float:
        return float(member.loss(eta, np.array([steps]))[0])

    def schedule(share: float) -> np.ndarray:
        after = profile(kernel, p, share * furthest, steps - warmup, eta_max, reference)
        return np.concatenate([warmup_ramp(after[0], warmup), np.minimum.accumulate(after)])

    shares = 1 - np.geomspace(1e-3, 0.9, 24)
    losses = [final(schedule(share)) for share in shares]
    i = int(np.argmin(losses))
    bounds = (shares[min(i + 1, len(shares) - 1)], shares[max(i - 1, 0)])
    share = minimize_scalar(lambda s: final(schedule(s)), bounds=bounds, method="bounded", options={"xatol": 1e-5}).x
    return schedule(float(share))
