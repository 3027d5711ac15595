"""Drawing: one function a figure's part, axes in, nothing shown or saved.

Colours are those of Okabe and Ito, told apart with any colour vision; every figure's parts differ in more than
colour.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from analysis.fit import Fit, Prediction, RunSummary
from analysis.schedules.search import Optimum

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
    "#000000",
)
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, SKY, ORANGE)
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLE = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "svg.fonttype": "none",
}
TALLEST = 0.9  # share of a curve's fall that is drawn: the first steps would hide the rest


def fitted_at(fit: Fit, run: RunSummary) -> np.ndarray | None:
    """The fit at the points drawn of one of its runs; None where the fit was read back without its curves."""
    curve = next((c for c in fit.curves if c.name == run.name), None)
    return None if curve is None else fit.predict(curve.eta).at(np.array(run.step))


def limits(losses: Sequence[np.ndarray]) -> tuple[float, float]:
    """The vertical range that shows the ends of all curves and most of their fall."""
    low = min(float(loss.min()) for loss in losses)
    high = max(float(np.quantile(loss, TALLEST)) for loss in losses)
    return low - 0.05 * (high - low), high + 0.1 * (high - low)


def curve_and_fit(axes: Axes, fit: Fit) -> None:
    """What was logged as points, the fit as lines, the window's start as a dotted line."""
    for i, run in enumerate(fit.runs):
        step, loss = np.array(run.step), np.array(run.loss)
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(step, loss, ".", ms=2.5, color=colour, alpha=0.5, mew=0, label=f"{run.name}, logged")
        predicted = fitted_at(fit, run)
        if predicted is not None:
            kept = step >= fit.first
            axes.plot(step[kept], predicted[kept], "-", color=BLACK, lw=0.9, label="fit" if i == 0 else None)
    axes.axvline(fit.first, color="0.6", ls=":", lw=0.8)
    axes.set_ylim(*limits([np.array(run.loss)[np.array(run.step) >= fit.first] for run in fit.runs]))
    axes.set_ylabel("loss (nats per token)")
    axes.legend(loc="upper right", markerscale=3)


def residuals(axes: Axes, fit: Fit) -> None:
    """Logged minus fitted, in thousandths of a nat."""
    for i, run in enumerate(fit.runs):
        predicted = fitted_at(fit, run)
        if predicted is not None:
            step = np.array(run.step)
            kept = step >= fit.first
            difference = 1e3 * (np.array(run.loss) - predicted)[kept]
            axes.plot(
                step[kept],
                difference,
                MARKERS[i % len(MARKERS)],
                ms=2,
                mew=0,
                color=COLOURS[i % len(COLOURS)],
                alpha=0.6,
            )
    axes.axhline(0, color=BLACK, lw=0.6)
    axes.set_ylabel("logged − fit\n(10⁻³ nats)")


def rates(axes: Axes, runs: Sequence[RunSummary]) -> None:
    for i, run in enumerate(runs):
        axes.plot(run.step, run.rate, color=COLOURS[i % len(COLOURS)], label=run.name)
    axes.set_ylabel("learning rate")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")


def predicted_curve(axes: Axes, prediction: Prediction, level: float, colour: str, label: str, first: int) -> None:
    """The predicted loss with its interval as a band, from step ``first`` on."""
    step = np.arange(first, len(prediction.states))
    every = max(1, len(step) // 800)
    step = np.unique(np.append(step[::every], step[-1]))
    low, high = prediction.band(level)
    axes.fill_between(step, low[step], high[step], color=colour, alpha=0.2, lw=0)
    axes.plot(step, prediction.states[step], color=colour, label=label)


def rate_of(axes: Axes, eta: np.ndarray, colour: str, label: str, style: str = "-") -> None:
    step = np.arange(len(eta))
    every = max(1, len(step) // 800)
    axes.plot(step[::every], eta[::every], style, color=colour, label=label)


def ranking(axes: Axes, rows: Sequence[tuple[str, float, tuple[float, float], str]], level: float) -> None:
    """Final losses with intervals, best at the top: rows of name, predicted, interval and what it is."""
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
    axes.grid(axis="x", color="0.9", lw=0.6)
    axes.set_axisbelow(True)


def window_sensitivity(axes: Axes, points: Sequence[tuple[int, str, float]], chosen: Sequence[int], label: str) -> None:
    """What each window says, as points (first step, law, value) joined by law; the chosen windows marked."""
    names = list(dict.fromkeys(name for _, name, _ in points))
    for i, name in enumerate(names):
        own = [(first, value) for first, other, value in points if other == name]
        axes.plot(
            *zip(*own, strict=True), MARKERS[i % 6] + "-", ms=4, color=COLOURS[i % 6], label=name.replace("_", " ")
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
    """One plot of the original note: the run in blue, the prediction in black, the new rates in orange."""
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


def optimum_rows(fit: Fit, optimum: Optimum, level: float) -> list[tuple[str, float, tuple[float, float], str]]:
    """The rows of the ranking: the optimum, the best of every shape, and the fitted runs' own schedules."""
    rows = [(f"best {optimum.kind}", optimum.final_loss, optimum.interval(level), "best")]
    rows += [(f"best {r.kind}", r.final_loss, r.interval, "shape") for r in optimum.table if r.kind != optimum.kind]
    for curve in fit.curves:
        own = fit.predict(curve.eta)
        rows.append((f"{curve.name} (fitted)", own.final_loss, own.interval(level), "run"))
    return rows
