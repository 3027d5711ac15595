"""Best schedule of a kernel law in closed form.

For a loss F(S_T) + c sum eta_k^2 w(S_T - S_k) with a given sum of rates S_T over a given number of updates, the best
rate with u = S_T - S still to come is min(eta_max, mu / sqrt(w(u))), mu from the horizon; then S_T is searched. If
progress s goes as eta^p, the exponent is 1 / (1 + p) instead of 1/2 and u counts that progress.
"""

from collections.abc import Callable

import numpy as np

from rwkv_lab.training import schedules

GRID = 400  # points in u
SMALLEST = 1e-4  # of S_T: the first point in u after 0
Kernel = Callable[[np.ndarray], np.ndarray]

FORGOTTEN = 1e-120  # least weight of a kernel: an exponential's own underflows


def warmup_ramp(peak: float, warmup: int) -> np.ndarray:
    """Return the rates ``[warmup]`` of a linear warm-up that ends at ``peak``."""
    return schedules.rates("constant", warmup, lr_init=peak, warmup_steps=warmup)


def profile(w: Kernel, p: float, total: float, steps: int, eta_max: float, reference: float) -> np.ndarray:
    """Return rates ``[steps]`` whose progress sums to about ``total``, which must not exceed what ``eta_max`` reaches.

    ``w(u)`` is the kernel, ``p`` the exponent of progress, which counts in units of the rate ``reference``.
    """
    u = np.concatenate([[0.0], np.geomspace(SMALLEST * total, total, GRID)])
    shape = np.maximum(w(u), FORGOTTEN) ** (-1 / (1 + p))

    def speed(mu: float) -> np.ndarray:
        return reference * (np.minimum(eta_max, mu * shape) / reference) ** p  # progress of an update at every u

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


def best_profile(
    w: Kernel,
    p: float,
    final_loss: Callable[[np.ndarray], float],
    steps: int,
    eta_max: float,
    warmup: int,
    reference: float,
) -> np.ndarray:
    """Return the rates ``[steps]`` with the lowest ``final_loss`` among the profiles of a kernel, never rising.

    The search is over the progress reached. The other arguments are those of ``profile``; ``warmup`` updates come
    first.
    """
    from scipy.optimize import minimize_scalar

    furthest = (steps - warmup) * reference * (eta_max / reference) ** p

    def schedule(share: float) -> np.ndarray:
        after = profile(w, p, share * furthest, steps - warmup, eta_max, reference)
        return np.concatenate([warmup_ramp(after[0], warmup), np.minimum.accumulate(after)])

    shares = 1 - np.geomspace(1e-3, 0.9, 24)
    losses = [final_loss(schedule(share)) for share in shares]
    i = int(np.argmin(losses))
    bounds = (shares[min(i + 1, len(shares) - 1)], shares[max(i - 1, 0)])
    found = minimize_scalar(lambda s: final_loss(schedule(s)), bounds=bounds, method="bounded", options={"xatol": 1e-5})
    return schedule(float(found.x))
