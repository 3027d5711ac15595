"""Final loss against each number that a study sweeps: one line a model, or whatever else is chosen, the best marked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.compare.grouping import is_number
from analysis.compare.summary import Block, Row
from analysis.plots.style import Style, shortened, style
from rwkv_lab.runs import listing

WIDE = 8.0  # from this ratio of largest to smallest on, an axis is logarithmic
Y_LABEL = "final bits per byte, held out"


@dataclass(frozen=True)
class Line:
    """The lowest final values of one model at every value of the number."""

    name: str
    style: Style
    x: tuple[float, ...]
    y: tuple[float, ...]  # means over the seeds
    spread: tuple[float, ...]  # standard deviations over the seeds; 0 for one seed


@dataclass(frozen=True)
class Swept:
    """Everything the figure of one number shows."""

    key: str
    word: str  # the number in words
    logarithmic: bool
    lines: tuple[Line, ...]
    others: tuple[tuple[float, float], ...]  # groups that are not the lowest of their model at their value
    best: tuple[float, float]
    best_name: str


def swept(block: Block) -> list[Swept]:
    """Return what to draw for each number in which the groups of a corpus differ; none for one value."""
    rows = [row for row in block.rows if row.values["final"]]
    groups = [row.group for row in rows]
    keys = listing.telling_keys([found.own for found in groups])
    numbers = [key for key in keys if is_number(groups, key)]
    named = next((key for key in keys if key not in numbers), None)
    found = [_swept(rows, key, named) for key in numbers]
    return [each for each in found if max((len(line.x) for line in each.lines), default=0) > 1]


def _swept(rows: Sequence[Row], key: str, named: str | None) -> Swept:
    have = [row for row in rows if key in row.group.own]
    choices = list(dict.fromkeys(str(row.group.own.get(named, "")) for row in have)) if named else [""]
    lines: list[Line] = []
    lowest: set[str] = set()
    for choice in choices:
        chosen: dict[float, Row] = {}
        for row in have:
            if not named or str(row.group.own.get(named, "")) == choice:
                x = float(row.group.own[key])
                chosen[x] = min(chosen.get(x, row), row, key=lambda each: each.mean("final"))
        along = [chosen[x] for x in sorted(chosen)]
        lowest |= {row.label for row in along}
        looks = style(0) if not named else style(len(lines))
        colour = along[0].style.colour if len({row.style.colour for row in along}) == 1 else looks.colour
        spread = tuple(float(np.nan_to_num(row.std("final"))) for row in along)
        lines.append(
            Line(
                choice or "all groups",
                looks._replace(colour=colour, bokeh_dash="solid", mpl_dash="-"),
                tuple(sorted(chosen)),
                tuple(row.mean("final") for row in along),
                spread,
            )
        )
    best = min(have, key=lambda row: row.mean("final"))
    others = [(float(row.group.own[key]), row.mean("final")) for row in have if row.label not in lowest]
    values = [x for line in lines for x in line.x]
    is_rate = key.rpartition(".")[2].startswith("lr_")
    wide = min(values) > 0 and (is_rate or max(values) >= WIDE * min(values))
    at = (float(best.group.own[key]), best.mean("final"))
    word = "peak learning rate" if key == "schedule.lr_init" else key.rpartition(".")[2].replace("_", " ")
    return Swept(key, word, wide, tuple(lines), tuple(others), at, best.label)


def ticks(one: Swept) -> list[float]:
    """Return the values of the number, thinned to those that an axis has room for."""
    values = sorted({x for line in one.lines for x in line.x})
    return values[:: math.ceil(len(values) / 12)]


def swept_figure(one: Swept) -> Any:
    """Return the matplotlib figure: means with one standard deviation, other groups small, the best ringed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.8))
    ax = figure.subplots()
    if one.logarithmic:
        ax.set_xscale("log")
    for line in one.lines:
        look = line.style
        ax.errorbar(line.x, line.y, yerr=line.spread if any(line.spread) else None, fmt=look.mpl_marker, linestyle="-",
                    color=look.colour, capsize=2.5, markersize=5, label=shortened(line.name, 40))  # fmt: skip
    if one.others:
        ax.plot(*zip(*one.others, strict=True), ".", color="#888888", markersize=3, label="other groups")
    ax.plot(*one.best, "o", color="black", markersize=12, markerfacecolor="none", markeredgewidth=1.2,
            label=f"best: {shortened(one.best_name, 40)}")  # fmt: skip
    values = ticks(one)
    ax.set_xticks(values, [listing.short(value) for value in values])
    ax.minorticks_off()
    ax.set_xlabel(one.word)
    ax.set_ylabel(Y_LABEL)
    ax.legend()
    return figure


def swept_chart(one: Swept, number: int) -> Any:
    """Return the Bokeh chart of the page."""
    from bokeh.models import FixedTicker, HoverTool, NumeralTickFormatter
    from bokeh.plotting import figure

    fig: Any = figure(
        height=360,
        sizing_mode="stretch_width",
        tools="pan,box_zoom,wheel_zoom,reset,save",
        active_drag="box_zoom",
        active_scroll=None,
        x_axis_type="log" if one.logarithmic else "linear",
        x_axis_label=one.word,
        y_axis_label=Y_LABEL,
        tags=["swept", number],
    )
    drawn = []
    for line in one.lines:
        columns = {"x": line.x, "y": line.y, "low": np.subtract(line.y, line.spread)}
        columns |= {"high": np.add(line.y, line.spread), "at": [listing.short(x) for x in line.x]}
        look, colour = line.style, line.style.colour
        fig.line("x", "y", source=columns, color=colour, line_width=2, legend_label=line.name)
        fig.segment("x", "low", "x", "high", source=columns, color=colour, line_width=1.5)
        dots = fig.scatter("x", "y", source=columns, marker=look.bokeh_marker, size=9, color=colour, name=line.name)
        drawn.append(dots)
    if one.others:
        fig.scatter(*zip(*one.others, strict=True), size=4, color="#888888", legend_label="other groups")
    fig.scatter([one.best[0]], [one.best[1]], size=20, fill_alpha=0, line_color="black", line_width=1.5,
                legend_label=f"best: {one.best_name}")  # fmt: skip
    tips = [
        ("group", "$name"),
        (one.word, "@at"),
        ("mean", "@y{0.0000}"),
        ("± 1 s.d.", "@low{0.0000} to @high{0.0000}"),
    ]
    fig.add_tools(HoverTool(renderers=drawn, tooltips=tips))
    values = ticks(one)
    fig.xaxis.ticker = FixedTicker(ticks=values)
    fig.xaxis.major_label_overrides = {value: listing.short(value) for value in values}
    fig.yaxis.formatter = NumeralTickFormatter(format="0.0[00]")
    fig.legend.background_fill_alpha = 0.6
    return fig
