"""Interactive charts of the page, made with Bokeh.

The page's script hides groups and changes the axis: the renderers of curves have tags ``[kind, group index]`` and their
coordinates once for each axis (``x_tokens``, ``x_seconds``, ``x_flops``); the sources of the final values have the
columns ``group`` and ``alpha``.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.compare.figures import PANELS, loss_limits, scales
from analysis.compare.records import AXES, Record, band, binned
from analysis.compare.summary import Block, Row
from analysis.compare.swept import swept, swept_chart
from analysis.plots.style import wrapped

LARGEST = 6_000  # points of all runs' curves of one kind together: what keeps a page of 100 runs below 3 MB
MARKS = 7
DECIMALS = "0.0[00]"  # of a loss axis: 2.0, 2.25
NOISY = 80  # points of a training loss: each the mean of enough rows to see past their noise


def points_for(runs: int) -> int:
    """Return the number of points of one curve; fewer for many runs."""
    return int(np.clip(LARGEST // max(1, runs), 60, 200))


def compact(values: np.ndarray) -> np.ndarray:
    """Return float32, which Bokeh writes in half the bytes and which is finer than a screen."""
    return np.asarray(values, dtype=np.float32)


def _padded(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    longest = max(map(len, columns.values()), default=0)
    return {
        name: compact(np.pad(values.astype(float), (0, longest - len(values)), constant_values=np.nan))
        for name, values in columns.items()
    }


def run_lines(records: Sequence[Record], column: str, points: int, divisors: dict[str, float]) -> dict[str, np.ndarray]:
    """Return the curves of ``records`` one after the other with gaps: ``y`` and an x for each axis."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("y", *(f"x_{axis}" for axis in AXES))}
    for record in records:
        y = binned(record, "tokens", column, points)[1]
        for axis in AXES:
            x = binned(record, axis, column, points)[0] / divisors[axis]
            x = x if len(x) == len(y) else np.full(len(y), np.nan)
            columns[f"x_{axis}"] += [x, np.array([np.nan])]
        columns["y"] += [y, np.array([np.nan])]
    return {name: compact(np.concatenate(parts)) if parts else compact(np.empty(0)) for name, parts in columns.items()}


def mean_lines(
    records: Sequence[Record], column: str, points: int, divisors: dict[str, float]
) -> dict[str, np.ndarray]:
    """Return for each axis the mean curve ``m_`` and its band ``lo_``, ``hi_`` on ``x_``, padded with NaN."""
    columns: dict[str, np.ndarray] = {}
    for axis in AXES:
        mean = band(records, axis, column, points)
        x, m, s = (mean.x, mean.mean, mean.std) if mean else (np.empty(0),) * 3
        columns |= {f"x_{axis}": x / divisors[axis], f"m_{axis}": m, f"lo_{axis}": m - s, f"hi_{axis}": m + s}
    return _padded(columns)


def _some(columns: dict[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
    """Return a few points of a curve for its markers, staggered by group."""
    every = max(1, len(next(iter(columns.values()))) // MARKS)
    return {name: values[index % every :: every] for name, values in columns.items() if name[:3] not in ("lo_", "hi_")}


def _blank(label: str, x_label: str, x_end: float, y: tuple[float, float], block: int) -> Any:
    from bokeh.models import Range1d
    from bokeh.plotting import figure

    fig: Any = figure(
        height=360,
        sizing_mode="stretch_width",
        tools="pan,box_zoom,wheel_zoom,reset,save",
        active_drag="box_zoom",
        active_scroll=None,
        toolbar_location="above",
        x_range=Range1d(start=-0.01 * x_end, end=1.02 * x_end),
        y_range=Range1d(start=y[0], end=y[1]),
        x_axis_label=x_label,
        y_axis_label=label,
        tags=["curves", block],
    )
    return polish(fig)


def polish(fig: Any) -> Any:
    """Set the looks that every chart shares; return the chart."""
    from bokeh.models import NoOverlap

    fig.axis.major_label_policy = NoOverlap(min_distance=4)
    fig.toolbar.logo = None
    fig.outline_line_color = None
    fig.grid.grid_line_color = "#e6e6e6"
    fig.axis.axis_line_color = "#666666"
    fig.axis.minor_tick_line_color = None
    fig.axis.major_tick_line_color = "#666666"
    fig.axis.axis_label_text_font_style = "normal"
    fig.axis.axis_label_text_font_size = "12px"
    fig.axis.major_label_text_font_size = "12px"
    fig.min_border_right = 12
    return fig


def _hovers(lines: list[tuple[str, Any]], quantity: str) -> list[Any]:
    """Return a hover tool for means over seeds, with their spread, and one for single runs."""
    from bokeh.models import HoverTool

    start = [("group", "$name"), ("at", "@x_tokens{0.[000]}")]
    tips = {
        "mean": [(quantity, "@m_tokens{0.0000}"), ("± 1 s.d.", "@lo_tokens{0.0000} to @hi_tokens{0.0000}")],
        "runs": [(quantity, "@y{0.[00000]}")],
    }
    return [
        HoverTool(renderers=[line for kind, line in lines if kind == wanted], tooltips=start + rest, visible=False)
        for wanted, rest in tips.items()
    ]


def add(fig: Any, kind: str, index: int, glyph: Any, source: Any) -> Any:
    """Draw ``glyph`` of ``source`` with the tags ``[kind, index]``; return the renderer.

    Unlike the figure's methods, it adds no glyphs for selections, which would double the page.
    """
    return fig.add_glyph(source, glyph, tags=[kind, index])


def _draw(fig: Any, row: Row, column: str, points: int, divisors: dict[str, float]) -> tuple[str, Any] | None:
    """Draw a group: each run, the band, the main line, its markers; return kind and renderer of that line."""
    from bokeh.models import ColumnDataSource, Line, Scatter, VArea

    index, look = row.look, row.style
    colours: dict[str, Any] = {"line_color": look.colour}
    dashed = colours | {"line_dash": look.bokeh_dash}
    # All seeds of a group have one learning rate.
    counted = row.group.counted[:1] if column == "lr" else row.group.counted
    several = len(counted) > 1
    if row.group.unfinished:
        source = ColumnDataSource(run_lines(row.group.unfinished, column, points, divisors))
        add(fig, "runs", index, Line(x="x_tokens", y="y", line_width=1.3, line_dash="dotted", **colours), source)
    kind, y = ("mean", "m_tokens") if several else ("runs", "y")
    columns = (mean_lines if several else run_lines)(counted, column, points, divisors)
    if not len(columns[y]):
        return None
    main = ColumnDataSource(columns)
    if several:
        source = ColumnDataSource(run_lines(counted, column, points, divisors))
        add(fig, "runs", index, Line(x="x_tokens", y="y", line_width=0.8, line_alpha=0.35, **dashed), source)
        shade = VArea(x="x_tokens", y1="lo_tokens", y2="hi_tokens", fill_color=look.colour, fill_alpha=0.18)
        add(fig, "band", index, shade, main)
    line = add(fig, kind, index, Line(x="x_tokens", y=y, line_width=2, **dashed), main)
    line.name = row.label
    if column != "lr":
        dots = Scatter(x="x_tokens", y=y, marker=look.bokeh_marker, size=8, fill_color=look.colour, **colours)
        add(fig, kind, index, dots, ColumnDataSource(_some(columns, index)))
    return kind, line


def _limits(block: Block, column: str) -> tuple[float, float]:
    """Return the first view of the y axis."""
    curves = [binned(record, "tokens", column, 200) for row in block.rows for record in row.group.records]
    known = [(x, y) for x, y in curves if len(x)]
    if column == "lr":
        return (0.0, 1.05 * max((float(np.max(y)) for _, y in known), default=0.0) or 1.0)
    return loss_limits(known) or (0.0, 1.0)


def curve_chart(block: Block, number: int, column: str, label: str, points: int) -> Any:
    """Return the chart of ``column`` against the switchable axis."""
    units = scales(block)
    divisors = {axis: divisor for axis, (divisor, _, _) in units.items()}
    fig = _blank(label, units["tokens"][2], units["tokens"][1], _limits(block, column), number)
    lines = [_draw(fig, row, column, points, divisors) for row in block.rows]
    fig.add_tools(*_hovers([line for line in lines if line], label))
    return fig


def final_chart(block: Block, number: int) -> Any:
    """Return the chart of final bits per byte: every seed, mean and standard deviation, the best on top."""
    from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, NumeralTickFormatter, Range1d, Scatter, Segment
    from bokeh.plotting import figure

    rows = [row for row in block.rows if row.values["final"]]
    names = [wrapped(row.label) for row in rows]
    line = 12 + 14 * max((name.count("\n") + 1 for name in names), default=1)
    fig: Any = figure(
        height=110 + line * max(2, len(rows)),
        sizing_mode="stretch_width",
        tools="pan,box_zoom,reset,save",
        active_drag=None,
        toolbar_location="above",
        y_range=Range1d(start=len(rows) - 0.4, end=-0.6),
        x_axis_label="final bits per byte",
        tags=["final", number],
    )
    means, stds = [row.mean("final") for row in rows], [row.std("final") for row in rows]
    shared: dict[str, Any] = {
        "group": [row.look for row in rows],
        "colour": [row.style.colour for row in rows],
    }
    shared |= {"y": list(range(len(rows))), "alpha": [1.0] * len(rows)}
    reach = np.nan_to_num(np.array(stds))
    groups = ColumnDataSource(
        shared
        | {
            "x": means,
            "low": np.array(means) - reach,
            "high": np.array(means) + reach,
            "name": [row.label for row in rows],
            "sd": [f"{std:.4f}" if np.isfinite(std) else "one seed" for std in stds],
            "marker": [row.style.bokeh_marker for row in rows],
        }
    )
    each = [(place, value) for place, row in enumerate(rows) for value in row.values["final"]]
    seeds = ColumnDataSource(
        {name: [values[place] for place, _ in each] for name, values in shared.items()}
        | {"x": [value for _, value in each], "y": [place + 0.3 for place, _ in each]}
    )
    looks: dict[str, Any] = {"line_color": "colour", "line_alpha": "alpha"}
    fig.add_glyph(groups, Segment(x0="low", x1="high", y0="y", y1="y", line_width=2, **looks))
    fig.add_glyph(seeds, Scatter(x="x", y="y", size=4, fill_alpha=0, **looks))
    dot = Scatter(x="x", y="y", marker="marker", size=10, fill_color="colour", fill_alpha="alpha", **looks)
    tips = [("group", "@name"), ("mean", "@x{0.0000}"), ("s.d.", "@sd")]
    fig.add_tools(HoverTool(renderers=[fig.add_glyph(groups, dot)], tooltips=tips, visible=False))
    fig.yaxis.ticker = FixedTicker(ticks=list(range(len(rows))))
    fig.yaxis.major_label_overrides = {
        place: f"{row.style.glyph} {name}" for place, (row, name) in enumerate(zip(rows, names, strict=True))
    }
    fig.xaxis.formatter = NumeralTickFormatter(format=DECIMALS)
    fig.ygrid.grid_line_color = None
    return polish(fig)


def charts(block: Block, number: int, runs: int) -> dict[str, Any]:
    """Return every chart of a block by name; the number of ``runs`` on the page sets how fine the curves are."""
    from bokeh.models import NumeralTickFormatter, PrintfTickFormatter

    points = points_for(runs)
    (quality, quality_label), (training, training_label) = PANELS
    rates = curve_chart(block, number, "lr", "learning rate", points)
    rates.yaxis.formatter = PrintfTickFormatter(format="%.3g")
    losses = {
        f"bpb{number}": curve_chart(block, number, quality, quality_label, points),
        f"loss{number}": curve_chart(block, number, training, training_label, min(points, NOISY)),
    }
    for chart in losses.values():
        chart.yaxis.formatter = NumeralTickFormatter(format=DECIMALS)
    numbers = {f"swept{number}_{i}": polish(swept_chart(one, number)) for i, one in enumerate(swept(block))}
    return {f"final{number}": final_chart(block, number), **numbers, **losses, f"lr{number}": rates}
