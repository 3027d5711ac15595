"""The comparison as text: table cells, and tables for the terminal, Markdown and CSV."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.compare import tasks
from analysis.compare.fitted import CSV_HEADINGS, FITTED_HEADINGS, FITTED_TITLE, csv_cells, fitted_rows
from analysis.compare.notes import BUDGETS, METRIC_NAMES, census, method, notes, plural
from analysis.compare.records import Record
from analysis.compare.significance import UNJUDGED
from analysis.compare.summary import (
    METRICS,
    Block,
    Comparison,
    Row,
    final_value,
    last_measured,
    speed,
    spent,
    utilisation,
)
from rwkv_lab.util.console import harmless, terminal_width
from rwkv_lab.util.units import count, duration

NONE = "–"
PIPED = 130  # width of the tables if the output is not a terminal


def number(value: float, unit: str = "") -> str:
    """Return ``value`` with three digits and a unit, e.g. ``1.62M``; a dash for NaN."""
    return f"{count(value)}{unit}" if math.isfinite(value) else NONE


def flops(value: float) -> str:
    """Return a budget as ``2.5e+15 FLOP``; a dash for NaN."""
    return f"{value:.3g} FLOP" if math.isfinite(value) else NONE


def memory(value: float) -> str:
    """Return bytes as ``382 MiB``; a dash for NaN."""
    return f"{value / 2**20:,.0f} MiB" if math.isfinite(value) else NONE


def time(seconds: float) -> str:
    """Return ``1:15`` or ``1:06:40``; a dash for NaN."""
    return duration(seconds) if math.isfinite(seconds) else NONE


def bpb(value: float) -> str:
    """Return ``1.8312``; a dash for NaN."""
    return f"{value:.4f}" if math.isfinite(value) else NONE


def spread(row: Row, metric: str) -> str:
    """Return ``1.8312 ± 0.0021``; the mean alone for one seed."""
    mean, std = row.mean(metric), row.std(metric)
    return f"{mean:.4f} ± {std:.4f}" if math.isfinite(std) else bpb(mean)


def seeds(row: Row) -> str:
    """Return the number of seeds that count, and of runs if there are more."""
    counted, runs = len(row.group.counted), len(row.group.records)
    return str(counted) if counted == runs else f"{counted} of {runs}"


def against_reference(row: Row, block: Block) -> str:
    """Return the difference to the reference and whether it exceeds the noise."""
    if row.label == block.reference:
        return "reference"
    verdict = row.verdict
    return f"{verdict.difference:+.4f} {verdict.verdict}" if verdict else NONE


def headings(block: Block, comparison: Comparison) -> list[str]:
    """Return the headings of the main table."""
    budgets = [
        f"at {number(block.budgets['tokens'])} tokens",
        f"at {time(block.budgets['seconds'])}",
        f"at {flops(block.budgets['flops'])}",
    ]
    reference, metric = "baseline" if comparison.criteria.baseline else "best", comparison.criteria.metric
    judged = "" if metric == "final" else f", {METRIC_NAMES[metric]}"
    return ["group", "seeds", "final bpb", f"vs {reference}{judged}", *budgets]


def quality(row: Row, block: Block) -> list[str]:
    """Return the cells under ``headings``."""
    return [
        row.label,
        seeds(row),
        spread(row, "final"),
        against_reference(row, block),
        *(spread(row, m) for m in METRICS[1:]),
    ]


COST_HEADINGS = ["group", "parameters", "FLOPs per token", "tokens/s", "MFU", "peak memory"]


def cost(row: Row) -> list[str]:
    """Return the cells under ``COST_HEADINGS``."""
    return [
        row.label,
        number(row.parameters),
        number(row.flops_per_token),
        number(row.tokens_per_second),
        f"{row.mfu:.1%}" if math.isfinite(row.mfu) else NONE,
        memory(row.peak_memory_bytes),
    ]


def outcome(record: Record) -> str:
    """Return status and reason."""
    return f"{record.status}: {record.reason}" if record.reason else record.status


def print_terminal(comparison: Comparison) -> None:
    """Print the tables and notes, no wider than the terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(width=terminal_width() or PIPED, highlight=False)
    with console.capture() as captured:
        runs = plural(len(comparison.records), "run")
        console.print(Text(harmless(f"{comparison.title}: {runs} ({census(comparison.records)})")))
        for block in comparison.blocks:
            _print_block(console, block, comparison)
        predicted = fitted_rows(comparison.records)
        if predicted:
            _print_table(console, FITTED_TITLE, FITTED_HEADINGS, predicted)
        others = [record for record in comparison.records if not record.finished]
        if others:
            listed = [[f"{r.study}/{r.label}", outcome(r)] for r in others]
            _print_table(console, "Runs that did not finish", ["run", "status"], listed, words=True)
        for note in notes(comparison):
            _print_note(console, note)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _width(head: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Columns of a terminal that a table takes with every cell in one line."""
    return sum(3 + max(map(len, column)) for column in zip(head, *rows, strict=True))


def _print_block(console: Any, block: Block, comparison: Comparison) -> None:
    head, rows = headings(block, comparison), [quality(row, block) for row in block.rows]
    title = f"{block.corpus}: held-out bits per byte, mean ± standard deviation over seeds"
    if _width(head, rows) <= console.width:
        _print_table(console, title, head, rows)
    else:
        _print_table(console, title, head[:4], [row[:4] for row in rows])
        equal = [[row[0], *row[4:]] for row in rows]
        _print_table(console, f"{block.corpus}: the same at equal budgets", [head[0], *head[4:]], equal)
    _print_table(console, f"{block.corpus}: cost", COST_HEADINGS, [cost(row) for row in block.rows])
    head, rows = tasks.table(block)
    if rows:
        _print_table(console, f"{block.corpus}: tasks, mean ± standard deviation over seeds", head, rows)


def _print_table(
    console: Any, title: str, head: Sequence[str], rows: Sequence[Sequence[str]], words: bool = False
) -> None:
    """Numbers to the right, ``words`` to the left."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    # Cells that take several lines would run into those of the next row.
    apart = int(_width(head, rows) > console.width)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold", leading=apart)
    for index, name in enumerate(head):
        numbers = index > 0 and not words
        # Only names are folded within a word.
        least = max(len(word) for cell in (name, *(row[index] for row in rows)) for word in cell.split() or [""])
        table.add_column(
            Text(name), justify="right" if numbers else "left", overflow="fold", min_width=least if numbers else None
        )
    for row in rows:
        table.add_row(*(Text(harmless(cell)) for cell in row))
    console.print(Text(harmless(f"\n{title}"), style="bold"))
    console.print(table)


def _print_note(console: Any, note: str) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    table.add_row("*", Text(harmless(note)))
    console.print(table)


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"

    rule = "|" + "|".join([" --- "] + [" ---: "] * (len(head) - 1)) + "|"
    return "\n".join([line(head), rule, *map(line, rows)])


def markdown(comparison: Comparison, command: str) -> str:
    """Return the tables, the notes and the command that made them, as Markdown."""
    parts = [f"# {comparison.title}", f"Made by `{command}`: {census(comparison.records)}."]
    for block in comparison.blocks:
        parts += [
            f"## {block.corpus}: held-out bits per byte, mean ± standard deviation over seeds",
            _markdown_table(headings(block, comparison), [quality(row, block) for row in block.rows]),
            _markdown_table(COST_HEADINGS, [cost(row) for row in block.rows]),
        ]
        head, rows = tasks.table(block)
        if rows:
            parts += [f"## {block.corpus}: tasks, mean ± standard deviation over seeds", _markdown_table(head, rows)]
    predicted = fitted_rows(comparison.records)
    if predicted:
        parts += [f"## {FITTED_TITLE}", _markdown_table(FITTED_HEADINGS, predicted)]
    others = [record for record in comparison.records if not record.finished]
    if others:
        parts.append("## Runs that did not finish")
        parts.append(_markdown_table(["run", "status"], [[f"{r.study}/{r.label}", outcome(r)] for r in others]))
    cautions = [method(comparison), BUDGETS, *notes(comparison)]
    parts += ["## Notes", "\n".join(f"- {note}" for note in cautions)]
    return "\n\n".join(parts) + "\n"


def _csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _plain(value: float) -> object:
    return value if math.isfinite(value) else ""


def groups_csv(comparison: Comparison) -> str:
    """Return one CSV row a group, plain numbers in base units."""
    head = ["corpus", "group", "seeds", "runs"]
    for metric in METRICS:
        where = "final" if metric == "final" else f"at_equal_{metric}"
        head += [f"val_bpb_{where}", f"val_bpb_{where}_std"]
    head += [f"budget_{axis}" for axis in METRICS[1:]]
    head += ["parameters", "flops_per_token", "tokens_per_second", "mfu", "peak_memory_bytes"]
    names = sorted({task for block in comparison.blocks for task in tasks.tasks(block)})
    head += names
    head += ["judged_by", "reference", "difference", "low", "high", "p_holm", "verdict"]
    rows: list[list[object]] = [list(head)]
    for block in comparison.blocks:
        for row in block.rows:
            cells: list[object] = [block.corpus, row.label, len(row.group.counted), len(row.group.records)]
            for metric in METRICS:
                cells += [_plain(row.mean(metric)), _plain(row.std(metric))]
            cells += [_plain(block.budgets[axis]) for axis in METRICS[1:]]
            costs = (row.parameters, row.flops_per_token, row.tokens_per_second, row.mfu, row.peak_memory_bytes)
            cells += map(_plain, costs)
            cells += [np.mean(found) if (found := tasks.values(row, task)) else "" for task in names]
            v = row.verdict
            judged = [_plain(v.difference), _plain(v.low), _plain(v.high), _plain(v.p), v.verdict] if v else [""] * 5
            rows.append([*cells, comparison.criteria.metric, block.reference or "", *judged])
    return _csv(rows)


def pairs_csv(comparison: Comparison) -> str:
    """Return one CSV row a pair of groups tested."""
    rows: list[list[object]] = [["corpus", "group", "against", "difference", "low", "high", "p_holm", "verdict"]]
    for block in comparison.blocks:
        for v in block.verdicts:
            numbers = map(_plain, (v.difference, v.low, v.high, v.p))
            rows.append([block.corpus, v.a, v.b, *numbers, v.verdict])
    return _csv(rows)


def runs_csv(comparison: Comparison) -> str:
    """Return one CSV row a run, in whatever state."""
    place = {
        record.path: (block.corpus, row.label)
        for block in comparison.blocks
        for row in block.rows
        for record in row.group.records
    }
    head = ["study", "run", "status", "reason", "corpus", "group", "seed", "val_bpb_final", "val_bpb_last_measured"]
    head += ["tokens", "seconds"]
    head += ["tokens_per_second", "mfu", "peak_memory_bytes", "parameters", "flops_per_token", "commit", "dirty"]
    head += CSV_HEADINGS
    rows: list[list[object]] = [list(head)]
    for r in comparison.records:
        seed = "" if r.seed is None else r.seed
        numbers = [final_value(r), last_measured(r), spent(r, "tokens"), spent(r, "seconds"), speed(r)]
        numbers += [utilisation(r)]
        numbers += [r.number("peak_memory_bytes")]
        numbers += [r.number("parameters"), r.number("flops_per_token")]
        cells: list[object] = [r.study, r.name, r.status, r.reason, *place.get(r.path, ("", "")), seed]
        cells += [*map(_plain, numbers), r.fact("git", "commit") or "", r.fact("git", "dirty") or ""]
        rows.append([*cells, *csv_cells(r)])
    return _csv(rows)


def pair_rows(block: Block) -> list[list[str]]:
    """Return every pair: the two groups, difference, interval, adjusted p and verdict."""
    return [
        [
            v.a,
            v.b,
            f"{v.difference:+.4f}",
            NONE if v.verdict == UNJUDGED else f"{v.low:+.4f} to {v.high:+.4f}",
            NONE if v.verdict == UNJUDGED else f"{v.p:.2g}",
            v.verdict,
        ]
        for v in block.verdicts
    ]
