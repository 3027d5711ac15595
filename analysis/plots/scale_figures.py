"""Figures of a law over sizes: IsoFLOP curves, loss against compute with the frontier, residuals."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from analysis.fit.fitted_law import quantile
from analysis.plots.style import paper, save, style
from analysis.scale import ScaleFit
from analysis.schedules.compute_optimal import IsoFlop, spent
from rwkv_lab.util.units import count

WIDTH = 5.2  # inches
LEVEL = 0.9


def draw_scale(folder: Path, fit: ScaleFit, curves: Sequence[IsoFlop]) -> list[str]:
    """Write the figures into ``folder``; return their names. Without budgets, the residuals alone."""
    with paper():
        figures = {"residuals": residual_figure(fit)}
        if curves:
            figures = {"isoflop": isoflop_figure(fit, curves), "compute": compute_figure(fit, curves), **figures}
        save(figures, folder)
    return list(figures)


def isoflop_figure(fit: ScaleFit, curves: Sequence[IsoFlop]) -> Figure:
    """Loss against size at equal FLOPs, the best size of every budget with its interval."""
    figure = Figure(figsize=(WIDTH, 3.4))
    axes = figure.subplots()
    for i, curve in enumerate(curves):
        looks = style(i)
        half = quantile(curve.level) * curve.error
        axes.fill_between(curve.parameters, curve.loss - half, curve.loss + half, color=looks.colour, alpha=0.12, lw=0)
        axes.plot(curve.parameters, curve.loss, color=looks.colour, ls=looks.mpl_dash, label=f"{curve.flops:.2g} FLOPs")
        axes.plot(curve.parameters_interval, [curve.best_loss] * 2, color=looks.colour, lw=0.8)
        axes.plot(curve.best_parameters, curve.best_loss, looks.mpl_marker, color=looks.colour, ms=5)
    low, high = fit.sizes[0], fit.sizes[-1]
    axes.axvspan(low, high, color="0.93", lw=0, zorder=0, label="sizes fitted")
    best = min(curve.best_loss for curve in curves)
    worst = max(curve.best_loss for curve in curves)
    axes.set_ylim(best - 0.15 * (worst - best) - 0.05, worst + 0.6 * (worst - best) + 0.1)
    logarithmic(axes)
    axes.set_xlabel(f"parameters N ({fit.counted})")
    axes.set_ylabel("final loss (nats per token)")
    axes.legend()
    return figure


def compute_figure(fit: ScaleFit, curves: Sequence[IsoFlop]) -> Figure:
    """Final loss of the runs against their FLOPs, and the frontier of the best size of every budget."""
    figure = Figure(figsize=(WIDTH, 3.4))
    axes = figure.subplots()
    flops, loss = spent(fit)
    for i, size in enumerate(fit.sizes):
        own = [k for k, run in enumerate(fit.runs) if run.parameters == size]
        looks = style(i)
        axes.plot(flops[own], loss[own], looks.mpl_marker, color=looks.colour, ms=4, ls="", label=count(size))
    x = [curve.flops for curve in curves]
    axes.fill_between(
        x, [c.loss_interval[0] for c in curves], [c.loss_interval[1] for c in curves], color="0.85", lw=0
    )  # fmt: skip
    axes.plot(x, [c.best_loss for c in curves], color="#000000", label="frontier")
    logarithmic(axes)
    axes.set_xlabel("training FLOPs")
    axes.set_ylabel("final loss (nats per token)")
    axes.legend(title="parameters", ncols=2)
    return figure


def residual_figure(fit: ScaleFit) -> Figure:
    """Errors at every run's end: of the fit, and of the fit to the other sizes with its interval."""
    figure = Figure(figsize=(WIDTH, 3.0))
    axes = figure.subplots()
    axes.axhline(0.0, color="0.4", lw=0.8)
    half = quantile(LEVEL) * fit.inflation
    x = np.arange(len(fit.runs))
    for i, size in enumerate(fit.sizes):
        looks = style(i)
        own = [k for k, run in enumerate(fit.runs) if run.parameters == size]
        axes.plot(
            x[own],
            [fit.runs[k].residual for k in own],
            looks.mpl_marker,
            color=looks.colour,
            ms=4,
            ls="",
            label=count(size),
        )
        left = [k for k in own if fit.runs[k].left_out is not None]
        errors = [(fit.runs[k].left_out or 0.0) - fit.runs[k].loss for k in left]
        bars = [half * (fit.runs[k].left_out_sd or 0.0) for k in left]
        axes.errorbar(
            x[left] + 0.25, errors, bars, fmt=looks.mpl_marker, color=looks.colour, mfc="white", ms=4, lw=0.8
        )  # fmt: skip
    axes.set_xticks([])
    axes.set_xlabel("runs (filled: all sizes fitted; open: predicted from the other sizes)")
    axes.set_ylabel("predicted − measured (nats)")
    axes.legend(title="parameters", ncols=6, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def logarithmic(axes: Axes) -> None:
    """Make the horizontal axis logarithmic, with labels such as 1e8."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e+0", "e").replace("e+", "e"))
    axes.xaxis.set_minor_formatter(NullFormatter())
