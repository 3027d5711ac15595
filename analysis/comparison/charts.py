"""The page's interactive charts, made with Bokeh.

Renderers carry tags ``[kind, group index]`` and every curve has its coordinates once for each axis (``x_tokens``,
``x_seconds``, ``x_flops``), so that the page's script can hide a group and change the axis without any data of its own.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.comparison.collect import Record
from analysis.comparison.curves import AXES, axis_values, band, binned
from analysis.comparison.figures import PANELS, loss_limits, unit_of
from analysis.comparison.style import Style, style
from analysis.comparison.summary import Block, Row

LARGEST = 10_000  # points of all runs' curves of one kind together: what keeps a page of 100 runs below 3 MB
MARKS = 7
NOISY = 80  # points of a training loss: each the mean of enough rows to see past their noise


def points_for(runs: int) -> int:
    """Points of one curve, fewer where there are many runs."""
    return int(np.clip(LARGEST // max(1, runs), 60, 200))


def compact(values: np.ndarray) -> np.ndarray:
    """As float32, which Bokeh writes in half the bytes and which is finer than a screen."""
    return np.asarray(values, dtype=np.float32)


def scales(block: Block) -> dict[str, tuple[float, float, str]]:
    """For each axis ``(divisor, end, label)``: the end in units of the label."""
    found = {}
    for axis in AXES:
        spent = [axis_values(record, axis) for row in block.rows for record in row.group.records]
        known = np.concatenate([np.ones(0), *spent])
        end = float(np.max(known, initial=0.0, where=np.isfinite(known))) or 1.0
        divisor, label = unit_of(axis, end)
        found[axis] = (divisor, end / divisor, label)
    return found


def _padded(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    longest = max(map(len, columns.values()), default=0)
    return {
        name: compact(np.pad(values.astype(float), (0, longest - len(values)), constant_values=np.nan))
        for name, values in columns.items()
    }


def run_lines(records: Sequence[Record], column: str, points: int, divisors: dict[str, float]) -> dict[str, np.ndarray]:
    """The curves of ``records`` one after the other with a gap between: ``y`` and an x for each axis."""
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
    """For each axis the mean curve ``m_`` and its band ``lo_``, ``hi_`` on ``x_``; NaN past the shorter ones' ends."""
    columns: dict[str, np.ndarray] = {}
    for axis in AXES:
        mean = band(records, axis, column, points)
        x, m, s = (mean.x, mean.mean, mean.std) if mean else (np.empty(0),) * 3
        columns |= {f"x_{axis}": x / divisors[axis], f"m_{axis}": m, f"lo_{axis}": m - s, f"hi_{axis}": m + s}
    return _padded(columns)


def _some(columns: dict[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
    """A few points of a mean curve, staggered by group, that carry its marker."""
    every = max(1, len(next(iter(columns.values()))) // MARKS)
    return {name: values[index % every :: every] for name, values in columns.items() if name[:2] in ("x_", "m_")}


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
    """The restrained looks every chart shares."""
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


def _hover(renderers: list[Any], quantity: str) -> Any:
    from bokeh.models import HoverTool

    tips = [
        ("group", "$name"),
        ("at", "@x_tokens{0.[000]}"),
        (quantity, "@m_tokens{0.0000}"),
        ("± 1 s.d.", "@lo_tokens{0.0000} to @hi_tokens{0.0000}"),
    ]
    return HoverTool(renderers=renderers, tooltips=tips, mode="mouse")


def tagged(renderer: Any, kind: str, index: int) -> Any:
    """``renderer`` marked with what it draws and for which group."""
    renderer.tags = [kind, index]
    return renderer


def _draw(fig: Any, row: Row, index: int, column: str, points: int, divisors: dict[str, float]) -> Any | None:
    """Draws a group into ``fig``: each run, the band, the mean, the markers; the mean's renderer."""
    from bokeh.models import ColumnDataSource

    look: Style = style(index)
    colour, dash = look.colour, look.bokeh_dash
    if len(row.group.counted) > 1:
        source = ColumnDataSource(run_lines(row.group.counted, column, points, divisors))
        thin = {"line_width": 0.8, "line_alpha": 0.35, "line_color": colour, "line_dash": dash}
        tagged(fig.line("x_tokens", "y", source=source, **thin), "runs", index)
    if row.group.unfinished:
        source = ColumnDataSource(run_lines(row.group.unfinished, column, points, divisors))
        dotted = {"line_width": 1.3, "line_color": colour, "line_dash": "dotted"}
        tagged(fig.line("x_tokens", "y", source=source, **dotted), "runs", index)
    columns = mean_lines(row.group.counted, column, points, divisors)
    if not len(columns["m_tokens"]):
        return None
    source = ColumnDataSource(columns)
    if len(row.group.counted) > 1:
        shade = {"fill_color": colour, "fill_alpha": 0.18}
        tagged(fig.varea("x_tokens", "lo_tokens", "hi_tokens", source=source, **shade), "band", index)
    thick = {"line_width": 2, "line_color": colour, "line_dash": dash, "name": row.label}
    mean = tagged(fig.line("x_tokens", "m_tokens", source=source, **thick), "mean", index)
    marks = ColumnDataSource(_some(columns, index))
    dots = fig.scatter("x_tokens", "m_tokens", source=marks, marker=look.bokeh_marker, size=8, color=colour)
    tagged(dots, "mean", index)
    return mean


def _limits(block: Block, column: str) -> tuple[float, float]:
    """The first view of the y axis."""
    curves = [binned(record, "tokens", column, 200) for row in block.rows for record in row.group.records]
    known = [(x, y) for x, y in curves if len(x)]
    if column == "lr":
        return (0.0, 1.05 * max((float(np.max(y)) for _, y in known), default=0.0) or 1.0)
    return loss_limits(known) or (0.0, 1.0)


def curve_chart(block: Block, number: int, column: str, label: str, points: int) -> Any:
    """One chart of ``column`` against the switchable axis."""
    units = scales(block)
    divisors = {axis: divisor for axis, (divisor, _, _) in units.items()}
    fig = _blank(label, units["tokens"][2], units["tokens"][1], _limits(block, column), number)
    means = [_draw(fig, row, index, column, points, divisors) for index, row in enumerate(block.rows)]
    fig.add_tools(_hover([mean for mean in means if mean], label))
    return fig


def final_chart(block: Block, number: int) -> Any:
    """Final bits per byte: every seed, the mean and one standard deviation, the best on top."""
    from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, Range1d
    from bokeh.plotting import figure

    rows = [(index, row) for index, row in enumerate(block.rows) if row.values["final"]]
    fig: Any = figure(
        height=110 + 26 * max(2, len(rows)),
        sizing_mode="stretch_width",
        tools="pan,box_zoom,reset,save",
        active_drag=None,
        toolbar_location="above",
        y_range=Range1d(start=len(rows) - 0.4, end=-0.6),
        x_axis_label="final held-out loss (bits per byte)",
        tags=["final", number],
    )
    dots: list[Any] = []
    for place, (index, row) in enumerate(rows):
        look, values, mean = style(index), row.values["final"], row.mean("final")
        std = row.std("final") if len(values) > 1 else 0.0
        reach = fig.segment([mean - std], [place], [mean + std], [place], line_color=look.colour, line_width=2)
        seeds = fig.scatter(values, [place + 0.3] * len(values), size=4, line_color=look.colour, fill_color="white")
        spread = f"{std:.4f}" if len(values) > 1 else "one seed"
        source = ColumnDataSource({"x": [mean], "y": [place], "sd": [spread]})
        dot = fig.scatter("x", "y", source=source, marker=look.bokeh_marker, size=10, color=look.colour, name=row.label)
        dots.append(dot)
        for renderer in (reach, seeds, dot):
            tagged(renderer, "final", index)
    fig.add_tools(HoverTool(renderers=dots, tooltips=[("group", "$name"), ("mean", "@x{0.0000}"), ("s.d.", "@sd")]))
    fig.yaxis.ticker = FixedTicker(ticks=list(range(len(rows))))
    fig.yaxis.major_label_overrides = {
        place: f"{style(index).glyph} {shortened(row.label)}" for place, (index, row) in enumerate(rows)
    }
    fig.ygrid.grid_line_color = None
    return polish(fig)


def shortened(label: str, longest: int = 26) -> str:
    """``label`` with its middle left out where it would take the chart's room; its marker tells it apart."""
    return label if len(label) <= longest else f"{label[: longest - 11]}…{label[-10:]}"


def charts(block: Block, number: int, runs: int) -> dict[str, Any]:
    """Every chart of a block by name; ``runs`` of the whole page set how fine the curves are."""
    from bokeh.models import PrintfTickFormatter

    points = points_for(runs)
    (quality, quality_label), (training, training_label) = PANELS
    rates = curve_chart(block, number, "lr", "learning rate", min(points, 150))
    rates.yaxis.formatter = PrintfTickFormatter(format="%.3g")
    return {
        f"final{number}": final_chart(block, number),
        f"bpb{number}": curve_chart(block, number, quality, quality_label, points),
        f"loss{number}": curve_chart(block, number, training, training_label, min(points, NOISY)),
        f"lr{number}": rates,
    }
