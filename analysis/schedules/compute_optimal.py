"""The size and tokens that give the lowest loss for a FLOP budget, under a law over sizes.

Every size gets the tokens that the budget pays for, by a WSD schedule that decays linearly to 0 over its last fifth, at
the peak that the runs suggest for that size (``ScaleFit.usual_peak``).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from analysis.fit.fitted_law import quantile
from analysis.fit.scale_posterior import losses
from analysis.scale import ScaleFit
from analysis.schedules.features import LevelBlocks
from rwkv_lab.config.errors import UserError
from rwkv_lab.training import schedules

SIZES = 48  # compared for a budget
REACH = 30.0  # times the largest or below the smallest size fitted that are compared
FEWEST = 100  # updates of a run
STATES = 2000  # updates a schedule is evaluated at; one stands for several in a longer run
DECAY = 0.2
DRAWS = 200  # from the posterior
MOST_WARMUP = 0.1  # share of a run
SHOWN = 4  # budgets drawn besides those asked for
CLOSE = 1.6  # ratio of budgets within which one is enough


@dataclass(frozen=True)
class IsoFlop:
    """The losses of sizes ``parameters [k]`` with the tokens that ``flops`` pay for, and the best of them.

    Pairs are intervals at ``level``; ``edge``: the lowest loss lies at the end of the sizes compared.
    """

    flops: float
    parameters: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    error: np.ndarray  # scale of the error in nats
    best_parameters: float
    best_tokens: float
    best_loss: float
    parameters_interval: tuple[float, float]
    tokens_interval: tuple[float, float]
    loss_interval: tuple[float, float]
    peak: float
    level: float
    edge: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {name: x.tolist() if isinstance(x, np.ndarray) else x for name, x in asdict(self).items()}


def wsd(fit: ScaleFit, parameters: float, steps: float, tail: float = DECAY) -> LevelBlocks:
    """Return a WSD schedule of ``steps`` updates at the peak usual for a size, up to its last update."""
    count = int(min(round(steps), STATES))
    each = steps / count
    warmup = int(min(np.median([run.warmup for run in fit.runs]) / each, MOST_WARMUP * count))
    peak = fit.usual_peak(parameters)
    lr = schedules.rates("wsd", count, lr_init=peak, lr_final=0.0, warmup_steps=warmup, decay_fraction=tail)
    return LevelBlocks(lr, np.array([count]), warmup, each)


def compute_optimal(fit: ScaleFit, flops: float, level: float = 0.9) -> IsoFlop:
    """Return the losses along a budget of ``flops`` training FLOPs, and its best size; UserError if it pays for none.

    Needs ``fit.tokens_per_step``. The interval of the size is that of the best sizes of draws from the posterior.
    """
    if not np.isfinite(flops) or flops <= 0:
        raise UserError(f"flops must be a number above 0, e.g. 1e19 (got {flops})")
    if not fit.tokens_per_step:
        raise UserError("tokens of an update are unknown: give --tokens-per-step N, e.g. 102400")
    sizes = np.geomspace(fit.sizes[0] / REACH, fit.sizes[-1] * REACH, SIZES)
    tokens = flops / fit.flops(sizes)
    paid = tokens / fit.tokens_per_step >= FEWEST
    if paid.sum() < 3:
        raise UserError(f"{flops:.3g} FLOPs do not pay for {FEWEST} updates of the sizes compared: raise --flops")
    sizes, tokens = sizes[paid], tokens[paid]
    blocks = [wsd(fit, size, n / fit.tokens_per_step) for size, n in zip(sizes, tokens, strict=True)]
    loss, error = np.array([fit.at(size, b) for size, b in zip(sizes, blocks, strict=True)])[:, :, 0].T
    draws = fit.posterior.draws(DRAWS, fit.inflation)
    drawn = np.array(
        [losses(draws, size, b, fit.posterior.scales)[:, 0] for size, b in zip(sizes, blocks, strict=True)]
    )  # [k,DRAWS]
    x = np.log(sizes)
    best = _lowest(x, loss)
    each = np.array([_lowest(x, column) for column in drawn.T])
    low, high = np.quantile(each, [(1 - level) / 2, (1 + level) / 2])
    at = float(np.interp(best, x, loss))
    half = quantile(level) * float(np.interp(best, x, error))
    size = float(np.exp(best))
    return IsoFlop(
        float(flops), sizes, tokens, loss, error, size, flops / float(fit.flops(size)), at,
        (float(np.exp(low)), float(np.exp(high))),
        (flops / float(fit.flops(np.exp(high))), flops / float(fit.flops(np.exp(low)))),
        (max(at - half, 0.0), at + half),
        fit.usual_peak(size), level, bool(np.argmin(loss) in (0, len(loss) - 1)),
    )  # fmt: skip


def _lowest(x: np.ndarray, loss: np.ndarray) -> float:
    """Return where a curve is lowest: the vertex of the parabola through its lowest point and that one's neighbours."""
    i = int(np.argmin(loss))
    if i in (0, len(x) - 1):
        return float(x[i])
    bend, slope, _ = np.polyfit(x[i - 1 : i + 2] - x[i], loss[i - 1 : i + 2], 2)
    return float(x[i] - slope / (2 * bend)) if bend > 0 else float(x[i])


def spent(fit: ScaleFit) -> tuple[np.ndarray, np.ndarray]:
    """Return the training FLOPs and the final losses of the runs fitted, ``[n]`` each."""
    tokens = np.array([run.steps for run in fit.runs]) * (fit.tokens_per_step or np.nan)
    return fit.flops(np.array([run.parameters for run in fit.runs])) * tokens, np.array([r.loss for r in fit.runs])


def budgets(fit: ScaleFit, given: Sequence[float] = ()) -> list[float]:
    """Return the budgets to draw: those ``given``, and some from the least a run spent to three times the most."""
    flops, _ = spent(fit)
    ladder = np.geomspace(flops.min(), 3 * flops.max(), SHOWN)
    between = [x for x in ladder if all(max(x / c, c / x) > CLOSE for c in given)]
    return sorted({*map(float, given), *map(float, between)})
