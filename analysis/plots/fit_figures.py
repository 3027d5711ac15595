"""Figures of a fit, of a prediction and of a recommended schedule."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.fit.joint import Fit
from analysis.fit.model import FittedModel, Prediction, RunSummary
from analysis.plots.style import paper, save, style
from analysis.schedules.recommended import Optimum, best

WIDTH = 5.2  # inches
TALLEST = 0.9  # share of a curve's fall that is drawn: the first steps would hide the rest
BLUE, ORANGE, GREEN, SKY, BLACK = "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#000000"
VERMILION = "#D55E00"


def draw_fit(folder: Path, fit: Fit, optimum: Optimum | None, level: float) -> list[str]:
    """Write the figures of a fit into ``folder``; return their names.

    fit (curve, residuals, rates), windows, and with an optimum proposal and ranking; for a law whose best schedule is
    known exactly, note.
    """
    with paper():
        figures = {"fit": fit_figure(fit), "windows": window_figure(fit)}
        if optimum is not None:
            figures["proposal"] = optimum_figure(fit.model, optimum, level)
            figures["ranking"] = ranking_figure(fit, optimum, level)
            if len(fit.members) == 1 and fit.members[0].definition.best_schedule is not None:
                figures["note"] = note_figure(fit)
        save(figures, folder)
    return list(figures)


def draw_prediction(folder: Path, model: FittedModel, name: str, prediction: Prediction, level: float) -> str:
    """Write the figure of one prediction into ``folder``; return its name."""
    with paper():
        save({f"predicted_{name}": prediction_figure(model, [(name, prediction)], level)}, folder)
    return f"predicted_{name}"


def draw_optimum(folder: Path, model: FittedModel, optimum: Optimum, level: float, name: str) -> str:
    """Write the figure of a recommended schedule into ``folder``; return its name."""
    with paper():
        save({name: optimum_figure(model, optimum, level)}, folder)
    return name


def fit_figure(fit: Fit) -> Figure:
    """Logged points with the fit, residuals, and rates."""
    figure = Figure(figsize=(WIDTH, 4.6))
    axes = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1.2, 1))
    curve_and_fit(axes[0], fit)
    residuals(axes[1], fit)
    rates(axes[2], fit.runs)
    return figure


def window_figure(fit: Fit) -> Figure:
    """Effect of the first step fitted on the prediction for the longest run, and on its score."""
    figure = Figure(figsize=(WIDTH, 2.4))
    if not fit.windows:
        axes = figure.subplots()
        longest = max(fit.curves, key=lambda curve: len(curve.lr))
        points = [(m.fit_start, m.law, m.final_loss(longest.lr)) for m in fit.members]
        window_sensitivity(axes, points, [], f"final loss of {longest.name}")
        return figure
    left, right = figure.subplots(1, 2)
    window_sensitivity(left, [(r.fit_start, fit.law, r.final_loss) for r in fit.windows], [fit.fit_start], "final loss")
    kind = "error on the run left out (nats)" if fit.windows[0].kind == "left out" else "lag-1 correlation of residuals"
    window_sensitivity(right, [(r.fit_start, fit.law, r.score) for r in fit.windows], [fit.fit_start], kind)
    return figure


def prediction_figure(model: FittedModel, named: list[tuple[str, Prediction]], level: float) -> Figure:
    """Predicted curves with their bands, above the rates; the fitted runs in grey."""
    figure = Figure(figsize=(WIDTH, 4.0))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2.5, 1))
    for run in model.runs:
        top.plot(run.step, run.loss, color="0.7", lw=0.7, label="runs fitted" if run is model.runs[0] else None)
        bottom.plot(run.step, run.rate, color="0.7", lw=0.7)
    for (name, prediction), colour in zip(named, (VERMILION, BLUE, GREEN), strict=False):
        predicted_curve(top, prediction, level, colour, f"{name}, predicted", model.fit_start)
        rate_of(bottom, prediction.lr, colour, name)
    shown = [np.array(run.loss)[np.array(run.step) >= model.fit_start] for run in model.runs]
    top.set_ylim(*limits([*shown, *(p.states[model.fit_start :] for _, p in named)]))
    top.set_ylabel("loss (nats per token)")
    top.legend()
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("step")
    bottom.set_ylim(bottom=0)
    return figure


def optimum_figure(model: FittedModel, optimum: Optimum, level: float) -> Figure:
    """The recommended schedule beside the best of the usual shapes."""
    other = min((row for row in optimum.table if row.kind != optimum.kind), key=lambda row: row.final_loss)
    usual = model.predict(np.concatenate([optimum.prefix_lrs, other.lr]))
    return prediction_figure(
        model, [(f"best {optimum.kind}", optimum.prediction), (f"best {other.kind}", usual)], level
    )


def ranking_figure(fit: Fit, optimum: Optimum, level: float) -> Figure:
    """Final losses of the optimum, the usual shapes and the fitted runs, with intervals."""
    rows = optimum_rows(fit, optimum, level)
    figure = Figure(figsize=(WIDTH, 0.6 + 0.28 * len(rows)))
    ranking(figure.subplots(), rows, level)
    return figure


def note_figure(fit: Fit) -> Figure:
    """Plots of Bo Peng's note (2022): the run with its fit, then the best linear, exponential and exact schedule."""
    run = fit.runs[0]
    steps = run.steps - fit.fit_start
    fitted = fitted_at(fit, run)
    drawn = [("the run and its fit", np.zeros(0), np.zeros(0))]
    for kind, title in (("linear", "best linear"), ("exponential", "best exponential"), ("free", "closed form")):
        optimum = best(fit, steps, kind=kind)
        loss = optimum.prediction.states[len(optimum.prefix_lrs) :]
        drawn.append((f"{title}: final loss {optimum.final_loss:.4f}", optimum.lr, loss))
    figure = Figure(figsize=(WIDTH * 1.25, 4.4))
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    for panel, axes in zip(drawn, grid.flat, strict=True):
        right = axes.twinx()
        right.spines["right"].set_visible(True)
        note_panel(axes, right, run, fit.fit_start, fitted, panel)
        if axes in grid[:, 0]:
            axes.set_ylabel("loss (nats per token)")
            right.set_yticklabels([])
        else:
            right.set_ylabel("learning rate")
        if axes in grid[1]:
            axes.set_xlabel("step")
    top = max(right.get_ylim()[1] for right in figure.axes[4:])
    for right in figure.axes[4:]:
        right.set_ylim(0, top)
    handles, labels = grid[1, 1].get_legend_handles_labels()
    more, names = figure.axes[-1].get_legend_handles_labels()
    grid[0, 0].legend(handles + more, labels + names, loc="upper right")
    return figure


def fitted_at(fit: Fit, run: RunSummary) -> np.ndarray:
    """Return the fit at the points drawn of one of its runs."""
    curve = next(c for c in fit.curves if c.name == run.name)
    return fit.predict(curve.lr).at(np.array(run.step))


def limits(losses: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the vertical range that shows the ends of all curves and most of their fall."""
    low = min(float(loss.min()) for loss in losses)
    high = max(float(np.quantile(loss, TALLEST)) for loss in losses)
    return low - 0.05 * (high - low), high + 0.1 * (high - low)


def curve_and_fit(axes: Axes, fit: Fit) -> None:
    """Draw the logged losses as points, the fit as lines, the first step fitted as a dotted line."""
    for i, run in enumerate(fit.runs):
        step, loss = np.array(run.step), np.array(run.loss)
        colour = style(i).colour
        axes.plot(step, loss, ".", ms=2.5, color=colour, alpha=0.5, mew=0, label=f"{run.name}, logged")
        predicted = fitted_at(fit, run)
        kept = step >= fit.fit_start
        axes.plot(step[kept], predicted[kept], "-", color=BLACK, lw=0.9, label="fit" if i == 0 else None)
    axes.axvline(fit.fit_start, color="0.6", ls=":", lw=0.8)
    axes.set_ylim(*limits([np.array(run.loss)[np.array(run.step) >= fit.fit_start] for run in fit.runs]))
    axes.set_ylabel("loss (nats per token)")
    axes.legend(loc="upper right", markerscale=3)


def residuals(axes: Axes, fit: Fit) -> None:
    """Draw logged minus fitted losses in thousandths of a nat."""
    for i, run in enumerate(fit.runs):
        step = np.array(run.step)
        kept = step >= fit.fit_start
        difference = 1e3 * (np.array(run.loss) - fitted_at(fit, run))[kept]
        look = style(i)
        axes.plot(step[kept], difference, look.mpl_marker, ms=2, mew=0, color=look.colour, alpha=0.6)
    axes.axhline(0, color=BLACK, lw=0.6)
    axes.set_ylabel("logged − fit\n(10⁻³ nats)")


def rates(axes: Axes, runs: Sequence[RunSummary]) -> None:
    """Draw the rates of the runs."""
    for i, run in enumerate(runs):
        axes.plot(run.step, run.rate, color=style(i).colour, label=run.name)
    axes.set_ylabel("learning rate")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")


def predicted_curve(axes: Axes, prediction: Prediction, level: float, colour: str, label: str, first: int) -> None:
    """Draw the predicted loss with its interval as a band, from step ``first`` on."""
    step = np.arange(first, len(prediction.states))
    every = max(1, len(step) // 800)
    step = np.unique(np.append(step[::every], step[-1]))
    low, high = prediction.band(level)
    axes.fill_between(step, low[step], high[step], color=colour, alpha=0.2, lw=0)
    axes.plot(step, prediction.states[step], color=colour, label=label)


def rate_of(axes: Axes, eta: np.ndarray, colour: str, label: str, dash: str = "-") -> None:
    """Draw one schedule."""
    step = np.arange(len(eta))
    every = max(1, len(step) // 800)
    axes.plot(step[::every], eta[::every], dash, color=colour, label=label)


def ranking(axes: Axes, rows: Sequence[tuple[str, float, tuple[float, float], str]], level: float) -> None:
    """Draw final losses with intervals, best at the top: rows of name, prediction, interval and role."""
    ordered = sorted(rows, key=lambda row: row[1])
    looks = {"best": (VERMILION, "D"), "shape": (BLUE, "o"), "run": (GREEN, "s"), "measured": (BLACK, "x")}
    for i, (_, final, (low, high), what) in enumerate(ordered):
        colour, marker = looks[what]
        axes.errorbar(
            final, i, xerr=[[final - low], [high - final]], fmt=marker, ms=4, color=colour, elinewidth=1.0, capsize=2
        )
    axes.set_yticks(range(len(ordered)), [name for name, *_ in ordered])
    axes.invert_yaxis()
    axes.set_xlabel(f"predicted final loss (nats per token), {100 * level:.0f} % interval")
    axes.grid(axis="y", visible=False)


def window_sensitivity(axes: Axes, points: Sequence[tuple[int, str, float]], chosen: Sequence[int], label: str) -> None:
    """Draw points (first step, law, value) joined by law; the chosen first steps are marked."""
    names = list(dict.fromkeys(name for _, name, _ in points))
    for i, name in enumerate(names):
        own = [(first, value) for first, other, value in points if other == name]
        axes.plot(
            *zip(*own, strict=True),
            style(i).mpl_marker + "-",
            ms=4,
            color=style(i).colour,
            label=name.replace("_", " "),
        )
    for first in chosen:
        axes.axvline(first, color="0.6", ls=":", lw=0.8)
    axes.set_xlabel("first step of the window")
    axes.set_ylabel(label)
    if len(names) > 1:
        axes.legend()


def note_panel(
    loss_axes: Axes,
    rate_axes: Axes,
    run: RunSummary,
    start: int,
    fitted: np.ndarray,
    new: tuple[str, np.ndarray, np.ndarray],
) -> None:
    """Draw one plot of the note: the run in blue, the prediction in black, the new rates in orange."""
    name, eta, loss = new
    step = np.array(run.step)
    kept = step >= start
    loss_axes.plot(step[kept], np.array(run.loss)[kept], color=BLUE, lw=1.0, label="run")
    loss_axes.plot(step[kept], fitted[kept], color=SKY, ls=":", lw=1.2, label="fit of the run")
    loss_axes.plot(start + np.arange(len(loss)), loss, color=BLACK, lw=1.2, label="prediction")
    loss_axes.set_title(name, loc="left")
    rate_axes.plot(
        step[kept], np.array(run.rate)[kept], color=BLUE, lw=0.8, ls="--", alpha=0.7, label="rate of the run"
    )
    rate_axes.plot(start + np.arange(len(eta)), eta, color=ORANGE, lw=1.2, label="new rate")
    rate_axes.set_ylim(bottom=0)
    rate_axes.grid(visible=False)


def optimum_rows(fit: Fit, optimum: Optimum, level: float) -> list[tuple[str, float, tuple[float, float], str]]:
    """Return the rows of the ranking: the optimum, the best of every shape, and the fitted runs' own schedules."""
    rows = [(f"best {optimum.kind}", optimum.final_loss, optimum.interval(level), "best")]
    rows += [(f"best {r.kind}", r.final_loss, r.interval, "shape") for r in optimum.table if r.kind != optimum.kind]
    for curve in fit.curves:
        own = fit.predict(curve.lr)
        rows.append((f"{curve.name} (fitted)", own.final_loss, own.interval(level), "run"))
    return rows
