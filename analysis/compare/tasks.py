"""Scores of runs on tasks, as ``rwkv-lab lm-eval RUN`` notes them: table, and figure against size and compute."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.compare.records import Record
from analysis.compare.summary import Block, Row
from analysis.plots.style import shortened

AXES = (("parameters", "parameters"), ("flops", "training compute (FLOP)"))
LONGEST = 60  # letters of a group's name in a legend
MOST = 6  # panels in a figure


def scores(record: Record) -> dict[str, float]:
    """Return the first metric of each task that a run was scored on, by ``task (metric)``."""
    found = record.fact("evals")
    named: dict[str, float] = {}
    for task, score in sorted(found.items()) if isinstance(found, dict) else ():
        values = score.items() if isinstance(score, dict) else ()
        for metric, value in values:
            if isinstance(value, float) and not metric.endswith("_stderr"):
                named[f"{task} ({metric})"] = value
                break
    return named


def tasks(block: Block) -> list[str]:
    """Return the tasks that some run of a block was scored on."""
    return sorted({task for row in block.rows for record in row.group.counted for task in scores(record)})


def values(row: Row, task: str) -> list[float]:
    """Return the scores of a group's seeds on a task."""
    found = [scores(record).get(task) for record in row.group.counted]
    return [value for value in found if value is not None]


def table(block: Block) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows, mean ± standard deviation over seeds; no row if no run was scored."""
    names = tasks(block)
    rows = [[row.label, *(_spread(values(row, task)) for task in names)] for row in block.rows] if names else []
    return ["group", *names], rows


def _spread(found: Sequence[float]) -> str:
    if not found:
        return "–"
    return f"{np.mean(found):.3f}" + (f" ± {np.std(found, ddof=1):.3f}" if len(found) > 1 else "")


def size_of(record: Record, axis: str) -> float:
    """Return the parameters of a run, or the FLOPs of its training."""
    if axis == "parameters":
        return record.number("parameters")
    return record.number("flops_per_token") * record.number("tokens")


def score_figure(block: Block) -> Any | None:
    """Score on each task against parameters and against training compute, one point a run; None without scores."""
    from matplotlib.figure import Figure

    names = tasks(block)[:MOST]
    if not names:
        return None
    figure = Figure(figsize=(9.0, 0.6 + 2.5 * len(names)))
    panels = figure.subplots(len(names), len(AXES), squeeze=False)
    for task, line in zip(names, panels, strict=True):
        for (axis, label), ax in zip(AXES, line, strict=True):
            for row in block.rows:
                scored = [record for record in row.group.counted if task in scores(record)]
                x, y = [size_of(record, axis) for record in scored], [scores(record)[task] for record in scored]
                look = row.style
                ax.plot(x, y, look.mpl_marker, color=look.colour, markersize=5, label=shortened(row.label, LONGEST))
            ax.set_xscale("log")
            ax.set(xlabel=label, ylabel=task)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, min(4, len(labels))))
    return figure
