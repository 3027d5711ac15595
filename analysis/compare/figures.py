"""Figures of a comparison: loss against tokens, seconds and FLOPs with seed bands, final values, swept numbers."""

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from analysis.compare.fitted import prediction_figure
from analysis.compare.records import AXES, axis_values, band, binned
from analysis.compare.summary import Block, Comparison, Row
from analysis.compare.swept import swept, swept_figure
from analysis.compare.tasks import score_figure
from analysis.plots.style import paper, plain_numbers, save, shortened

POINTS = {"val_bpb": 200, "train_loss": 80}  # a training loss needs wider means to show past its noise
PANELS = (("val_bpb", "held-out loss (bits per byte)"), ("train_loss", "training loss (nats per token)"))
COLOURED = 14  # groups with looks of their own in a figure of curves: what an eye can follow
GREY = "#b0b0b0"
KINDS = ("png", "svg", "pdf")
WIDTH = 9.0  # inches
LETTER = 0.078  # inches a letter of a legend takes
LONGEST = 96  # letters of a name in a legend
# (from, divisor, label), the largest first. Below two minutes a time is easier to read in seconds.
UNITS: dict[str, tuple[tuple[float, float, str], ...]] = {
    "tokens": (
        (1e9, 1e9, "training tokens (billions)"),
        (1e6, 1e6, "training tokens (millions)"),
        (0, 1e3, "training tokens (thousands)"),
    ),
    "seconds": (
        (7200, 3600, "training time (hours)"),
        (120, 60, "training time (minutes)"),
        (0, 1, "training time (seconds)"),
    ),
    "flops": (
        (1e18, 1e18, "training compute (EFLOP)"),
        (1e15, 1e15, "training compute (PFLOP)"),
        (1e12, 1e12, "training compute (TFLOP)"),
        (0, 1e9, "training compute (GFLOP)"),
    ),
}


def unit_of(axis: str, largest: float) -> tuple[float, str]:
    """Return ``(divisor, label)`` that makes numbers up to ``largest`` easy to read."""
    return next((divisor, label) for least, divisor, label in UNITS[axis] if largest >= least)


def scales(block: Block) -> dict[str, tuple[float, float, str]]:
    """Return for each axis ``(divisor, end, label)``, the end of the longest run in units of the label."""
    found = {}
    for axis in AXES:
        spent = [axis_values(record, axis) for row in block.rows for record in row.group.records]
        known = np.concatenate([np.ones(0), *spent])
        end = float(np.max(known, initial=0.0, where=np.isfinite(known))) or 1.0
        divisor, label = unit_of(axis, end)
        found[axis] = (divisor, end / divisor, label)
    return found


def loss_limits(curves: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float] | None:
    """Return the range of a loss axis without the steep start, a sixth of the run; None without any curve."""
    end = max((x[-1] for x, _ in curves), default=0.0)
    late = [np.interp(np.linspace(max(x[0], end / 6), x[-1], 50), x, y) for x, y in curves if x[-1] >= end / 6]
    if not late:
        return None
    low, high = min(map(np.min, late)), max(map(np.max, late))
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return float(low - margin), float(high + margin)


def _draw(ax: Any, row: Row, axis: str, column: str, divisor: float, coloured: bool) -> list[tuple[Any, Any]]:
    """Draw a group with its name for the legend; return the curves drawn."""
    look = row.style
    drawn: list[tuple[Any, Any]] = []
    colour = look.colour if coloured else GREY
    mean = band(row.group.counted, axis, column, POINTS[column])
    for record in row.group.unfinished:
        x, y = binned(record, axis, column, POINTS[column])
        if len(x):
            name = None if mean or drawn or not coloured else f"{row.label} (not finished)"
            ax.plot(x / divisor, y, ":", color=colour, linewidth=0.9, label=name)
            drawn.append((x / divisor, y))
    if mean is None:
        return drawn
    x, low, high = mean.x / divisor, mean.mean - mean.std, mean.mean + mean.std
    if coloured:
        every = max(1, len(x) // 6)
        ax.plot(x, mean.mean, linestyle=look.mpl_dash, color=colour, linewidth=1.4, label=row.label,
                marker=look.mpl_marker, markersize=4.5, markevery=(row.look % every, every))  # fmt: skip
    else:
        ax.plot(x, mean.mean, color=colour, linewidth=0.6, zorder=1.5)
    if mean.n > 1 and coloured:
        ax.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    return [*drawn, (x, mean.mean)]


def _panel(ax: Any, block: Block, axis: str, column: str) -> None:
    divisor, _, label = scales(block)[axis]
    drawn = []
    # One group alone is not worth a grey.
    coloured = COLOURED if len(block.rows) > COLOURED + 1 else len(block.rows)
    for place, row in enumerate(block.rows):
        drawn += _draw(ax, row, axis, column, divisor, coloured=place < coloured)
    if coloured < len(block.rows):
        ax.plot([], [], color=GREY, linewidth=0.6, label=f"{len(block.rows) - coloured} others")
    ax.set_xlabel(label)
    limits = loss_limits(drawn)
    if limits:
        ax.set_xlim(left=0)
        ax.set_ylim(*limits)


def legend_columns(labels: list[str]) -> int:
    """Return as many columns as fit under the figure, four at most."""
    longest = max(map(len, labels), default=0)
    return max(1, min(4, len(labels), int(WIDTH / (0.55 + LETTER * longest))))


def loss_figure(block: Block, axis: str) -> Any:
    """Held-out and training loss against ``axis``; mean and one standard deviation over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 3.6))
    axes = figure.subplots(1, 2)
    for ax, (column, label) in zip(axes, PANELS, strict=True):
        _panel(ax, block, axis, column)
        ax.set_ylabel(label)
    handles = {text: handle for ax in axes for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    if handles:
        names = [shortened(name, LONGEST) for name in handles]
        columns = legend_columns(names)
        figure.set_figheight(3.6 + 0.18 * -(-len(names) // columns))
        figure.legend(handles.values(), names, loc="outside lower center", ncols=columns)
    return figure


def final_figure(block: Block) -> Any:
    """Final bits per byte of every group, best on top: each seed, the mean and one standard deviation."""
    from matplotlib.figure import Figure

    rows = [row for row in block.rows if row.values["final"]]
    names = [shortened(row.label) for row in rows]
    figure = Figure(figsize=(5.2 + LETTER * max(map(len, names), default=0), 0.9 + 0.32 * max(2, len(rows))))
    ax = figure.subplots()
    for place, row in enumerate(rows):
        values, look = row.values["final"], row.style
        ax.plot(values, [place + 0.28] * len(values), "o", color=look.colour, markersize=2.8, markerfacecolor="white")
        error = row.std("final") if len(values) > 1 else 0.0
        ax.errorbar(row.mean("final"), place, xerr=error or None, fmt=look.mpl_marker, color=look.colour, capsize=3)
    ax.set_yticks(range(len(rows)), names)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("final bits per byte, held out: seeds, mean ± one standard deviation")
    return figure


WAYS = (("carried", "-"), ("window", "--"))  # how by_position.csv was read, and its dash


def octaves(values: np.ndarray, parts: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Return x and means of values [N] at the distances 1 to N, in ``parts`` bins an octave."""
    edges = np.unique(np.floor(2 ** np.arange(0, np.log2(len(values)) + 1 + 1 / parts, 1 / parts)).astype(int))
    edges = np.append(edges[(edges < len(values)) | (edges == 1)], len(values) + 1)
    pairs = list(itertools.pairwise(edges))
    return (
        np.array([np.sqrt(first * (last - 1)) for first, last in pairs]),
        np.array([values[first - 1 : last - 1].mean() for first, last in pairs]),
    )


def position_figure(block: Block) -> Any | None:
    """Loss against the distance from the start, of groups whose runs were measured so; None without any.

    The mean over runs; solid with the state carried, dashed in windows of ctx_len tokens.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8))
    ax = figure.subplots()
    names = []
    for row in block.rows:
        read = [record.positions for record in row.group.records if len(record.positions.get("window", ()))]
        length = min((len(columns["window"]) for columns in read), default=0)
        for way, dash in WAYS if read else ():
            x, y = octaves(np.mean([columns[way][:length] for columns in read], axis=0))
            ax.plot(x, y, dash, color=row.style.colour, linewidth=1.3)
        if read:
            ax.plot([], [], color=row.style.colour, label=shortened(row.label, LONGEST))
            names.append(row.label)
    if not names:
        return None
    ax.set_xscale("log", base=2)
    plain_numbers(ax.xaxis)
    ax.set(xlabel="distance from the start of the text read (tokens)", ylabel="held-out loss (nats per token)")
    ax.plot([], [], "-", color=GREY, label="all before it is seen")
    ax.plot([], [], "--", color=GREY, label="windows of ctx_len")
    figure.legend(loc="outside lower center", ncols=legend_columns(names))
    return figure


def as_png(figure: Any) -> bytes:
    """Return a figure as a PNG image."""
    written = io.BytesIO()
    with paper():
        figure.savefig(written, format="png", dpi=110)
    return written.getvalue()


def prefix(comparison: Comparison, block: Block) -> str:
    """Return the start of the file names of a block: the corpus if there are several."""
    if len(comparison.blocks) == 1:
        return ""
    return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in block.corpus) + "_"


def write_figures(comparison: Comparison, folder: Path) -> list[Path]:
    """Write every figure as PNG, SVG and PDF into ``folder``; return the paths. UserError if that is impossible."""
    named: dict[str, Any] = {}
    with paper():
        for block in comparison.blocks:
            start = prefix(comparison, block)
            named |= {f"{start}loss_{axis}": loss_figure(block, axis) for axis in AXES}
            named[f"{start}final_bpb"] = final_figure(block)
            named |= {f"{start}final_by_{one.key.replace('.', '_')}": swept_figure(one) for one in swept(block)}
            if (positions := position_figure(block)) is not None:
                named[f"{start}by_position"] = positions
            if (scored := score_figure(block)) is not None:
                named[f"{start}tasks"] = scored
        if (predicted := prediction_figure(comparison.records)) is not None:
            named["predicted"] = predicted
        return save(named, folder, KINDS)
