"""The figures of a fit, a prediction and an optimum, each written as PNG and SVG."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from analysis.fit import Fit, Prediction
from analysis.plots import panels
from analysis.schedules.search import Optimum, best

WIDTH = 5.2  # inches


def save(figure: Figure, folder: Path, name: str) -> str:
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for ending in ("png", "svg"):
        figure.savefig(folder / f"{name}.{ending}")
    return name


def draw_fit(folder: Path, fit: Fit, optimum: Optimum | None, level: float) -> list[str]:
    """Curve, fit and residuals; windows; prediction; ranking; for the variational law the note's plots. Their names."""
    with matplotlib.rc_context(panels.STYLE):
        drawn = [save(fit_figure(fit), folder, "fit"), save(window_figure(fit), folder, "windows")]
        if optimum is not None:
            drawn.append(save(optimum_figure(fit, optimum, level), folder, "proposal"))
            drawn.append(save(ranking_figure(fit, optimum, level), folder, "ranking"))
        if fit.law == "variational":
            drawn.append(save(note_figure(fit), folder, "note"))
    return drawn


def fit_figure(fit: Fit) -> Figure:
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1.2, 1))
    panels.curve_and_fit(axes[0], fit)
    panels.residuals(axes[1], fit)
    panels.rates(axes[2], fit.runs)
    return figure


def window_figure(fit: Fit) -> Figure:
    """What the window does to the prediction for the longest run, and to its score where one was taken."""
    figure = Figure(figsize=(WIDTH, 2.4), layout="constrained")
    if not fit.table:
        axes = figure.subplots()
        longest = max(fit.curves, key=lambda curve: len(curve.eta))
        at = np.array([len(longest.eta)])
        points = [(m.first, m.law, float(m.loss(longest.eta, at)[0])) for m in fit.members]
        panels.window_sensitivity(axes, points, [], f"final loss of {longest.name}")
        return figure
    left, right = figure.subplots(1, 2)
    panels.window_sensitivity(left, [(r.first, fit.law, r.final_loss) for r in fit.table], [fit.first], "final loss")
    kind = "error on the run left out (nats)" if fit.table[0].kind == "left out" else "lag-1 correlation of residuals"
    panels.window_sensitivity(right, [(r.first, fit.law, r.score) for r in fit.table], [fit.first], kind)
    return figure


def prediction_figure(fit: Fit, named: list[tuple[str, Prediction]], level: float) -> Figure:
    """Predicted curves with bands above, the rates below, the fitted runs behind."""
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2.5, 1))
    for run in fit.runs:
        top.plot(run.step, run.loss, color="0.7", lw=0.7, label="runs fitted" if run is fit.runs[0] else None)
        bottom.plot(run.step, run.rate, color="0.7", lw=0.7)
    for (name, prediction), colour in zip(named, (panels.VERMILION, panels.BLUE, panels.GREEN), strict=False):
        panels.predicted_curve(top, prediction, level, colour, f"{name}, predicted", fit.first)
        panels.rate_of(bottom, prediction.eta, colour, name)
    shown = [np.array(run.loss)[np.array(run.step) >= fit.first] for run in fit.runs]
    top.set_ylim(*panels.limits([*shown, *(p.states[fit.first :] for _, p in named)]))
    top.set_ylabel("loss (nats per token)")
    top.legend()
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("step")
    bottom.set_ylim(bottom=0)
    return figure


def optimum_figure(fit: Fit, optimum: Optimum, level: float) -> Figure:
    """The proposed schedule beside the best of the usual shapes."""
    other = min((row for row in optimum.table if row.kind != optimum.kind), key=lambda row: row.final_loss)
    usual = fit.predict(np.concatenate([optimum.lead, other.eta]))
    return prediction_figure(fit, [(f"best {optimum.kind}", optimum.prediction), (f"best {other.kind}", usual)], level)


def ranking_figure(fit: Fit, optimum: Optimum, level: float) -> Figure:
    rows = panels.optimum_rows(fit, optimum, level)
    figure = Figure(figsize=(WIDTH, 0.6 + 0.28 * len(rows)), layout="constrained")
    panels.ranking(figure.subplots(), rows, level)
    return figure


def note_figure(fit: Fit) -> Figure:
    """The four plots of the original note: the run with its fit, then the best linear, exponential and closed form."""
    run = fit.runs[0]
    steps = run.steps - fit.first
    fitted = panels.fitted_at(fit, run)
    assert fitted is not None, "drawn with the curves at hand"
    drawn = [("the run and its fit", np.zeros(0), np.zeros(0))]
    for kind, title in (("linear", "best linear"), ("exponential", "best exponential"), ("free", "closed form")):
        optimum = best(fit, steps, kind=kind)
        loss = optimum.prediction.states[len(optimum.lead) :]
        drawn.append((f"{title}: final loss {optimum.final_loss:.4f}", optimum.eta, loss))
    figure = Figure(figsize=(WIDTH * 1.25, 4.4), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    for panel, axes in zip(drawn, grid.flat, strict=True):
        right = axes.twinx()
        right.spines["right"].set_visible(True)
        panels.note_panel(axes, right, run, fit.first, fitted, panel)
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


def draw_prediction(folder: Path, fit: Fit, name: str, prediction: Prediction, level: float) -> str:
    with matplotlib.rc_context(panels.STYLE):
        return save(prediction_figure(fit, [(name, prediction)], level), folder, f"predicted_{name}")


def draw_optimum(folder: Path, fit: Fit, optimum: Optimum, level: float, name: str) -> str:
    with matplotlib.rc_context(panels.STYLE):
        return save(optimum_figure(fit, optimum, level), folder, name)
