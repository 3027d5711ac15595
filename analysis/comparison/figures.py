"""The figures for papers: loss against tokens, seconds and FLOPs with seed bands, and the final bits per byte."""

from pathlib import Path
from typing import Any

import numpy as np

from analysis.comparison.curves import AXES, band, binned
from analysis.comparison.style import style
from analysis.comparison.summary import Block, Comparison
from analysis.saving import paper, save

POINTS = {"val_bpb": 200, "train_loss": 80}  # a training loss needs wider means to show past its noise
PANELS = (("val_bpb", "held-out loss (bits per byte)"), ("train_loss", "training loss (nats per token)"))
UNITS: dict[str, tuple[tuple[float, str], ...]] = {
    "tokens": (
        (1e9, "training tokens (billions)"),
        (1e6, "training tokens (millions)"),
        (1e3, "training tokens (thousands)"),
    ),
    "seconds": ((3600, "training time (hours)"), (60, "training time (minutes)"), (1, "training time (seconds)")),
    "flops": (
        (1e18, "training compute (EFLOP)"),
        (1e15, "training compute (PFLOP)"),
        (1e12, "training compute (TFLOP)"),
        (1e9, "training compute (GFLOP)"),
    ),
}


def unit_of(axis: str, largest: float) -> tuple[float, str]:
    """``(divisor, label)`` that makes numbers up to ``largest`` easy to read."""
    units = UNITS[axis]
    return next((unit for unit in units if largest >= unit[0]), units[-1])


def loss_limits(curves: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float] | None:
    """The range of a loss axis that leaves out the steep start, a sixth of the run; None without any curve."""
    end = max((x[-1] for x, _ in curves), default=0.0)
    late = [np.interp(np.linspace(max(x[0], end / 6), x[-1], 50), x, y) for x, y in curves if x[-1] >= end / 6]
    if not late:
        return None
    low, high = min(map(np.min, late)), max(map(np.max, late))
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return float(low - margin), float(high + margin)


def _panel(ax: Any, block: Block, axis: str, column: str) -> None:
    drawn: list[tuple[np.ndarray, np.ndarray]] = []
    for index, row in enumerate(block.rows):
        look = style(index)
        for record in row.group.unfinished:
            x, y = binned(record, axis, column, POINTS[column])
            ax.plot(x, y, ":", color=look.colour, linewidth=0.9)
            drawn += [(x, y)] * (len(x) > 0)
        mean = band(row.group.counted, axis, column, POINTS[column])
        if mean is None:
            continue
        every = max(1, len(mean.x) // 6)
        ax.plot(mean.x, mean.mean, look.mpl_dash, color=look.colour, linewidth=1.4, label=row.label,
                marker=look.mpl_marker, markersize=4.5, markevery=(index % every, every))  # fmt: skip
        if mean.n > 1:
            ax.fill_between(
                mean.x, mean.mean - mean.std, mean.mean + mean.std, color=look.colour, alpha=0.2, linewidth=0
            )
        drawn.append((mean.x, mean.mean))
    scale, label = unit_of(axis, max((x[-1] for x, _ in drawn), default=1.0))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value / scale:g}")
    ax.set_xlabel(label)
    limits = loss_limits(drawn)
    if limits:
        ax.set_ylim(*limits)


def loss_figure(block: Block, axis: str) -> Any:
    """Held-out and training loss against ``axis``; mean and one standard deviation over seeds."""
    from matplotlib.figure import Figure

    rows = len(block.rows)
    figure = Figure(figsize=(9, 3.6 + 0.16 * -(-rows // 3)))
    axes = figure.subplots(1, 2)
    for ax, (column, label) in zip(axes, PANELS, strict=True):
        _panel(ax, block, axis, column)
        ax.set_ylabel(label)
    handles = {text: handle for ax in axes for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)))
    return figure


def final_figure(block: Block) -> Any:
    """Final bits per byte of every group, best on top: each seed, the mean and one standard deviation."""
    from matplotlib.figure import Figure

    rows = [row for row in block.rows if row.values["final"]]
    figure = Figure(figsize=(6.5, 0.9 + 0.32 * max(2, len(rows))))
    ax = figure.subplots()
    for index, row in enumerate(block.rows):
        values = row.values["final"]
        if not values:
            continue
        place, look = rows.index(row), style(index)
        ax.plot(values, [place + 0.28] * len(values), "o", color=look.colour, markersize=2.8, markerfacecolor="white")
        error = row.std("final") if len(values) > 1 else 0.0
        ax.errorbar(row.mean("final"), place, xerr=error or None, fmt=look.mpl_marker, color=look.colour, capsize=3)
    ax.set_yticks(range(len(rows)), [row.label for row in rows])
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("final held-out loss (bits per byte): seeds, mean ± one standard deviation")
    return figure


def prefix(comparison: Comparison, block: Block) -> str:
    """What the file names of a block start with: nothing where there is one corpus."""
    if len(comparison.blocks) == 1:
        return ""
    return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in block.corpus) + "_"


def write_figures(comparison: Comparison, folder: Path) -> list[Path]:
    """Writes every figure as PNG and SVG into ``folder``; their paths. A Mistake where that cannot be written."""
    named: dict[str, Any] = {}
    with paper(text_parse_math=False):
        for block in comparison.blocks:
            start = prefix(comparison, block)
            named |= {f"{start}loss_{axis}": loss_figure(block, axis) for axis in AXES}
            named[f"{start}final_bpb"] = final_figure(block)
        return save(named, folder)
