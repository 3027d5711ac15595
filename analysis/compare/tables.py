"""The comparison as text: cells shared by every form of the table, the terminal, Markdown and CSV."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from analysis.compare.notes import BUDGETS, METRIC_NAMES, census, count, method, notes
from analysis.compare.records import Record
from analysis.compare.significance import UNJUDGED
from analysis.compare.summary import METRICS, Block, Comparison, Row, final_value, last_measured, speed, spent

NONE = "–"
PIPED = 130  # columns of the terminal's tables where there is no terminal


def scaled(value: float, unit: str = "", even: bool = True) -> str:
    """``1.60 M``: ``value`` in three digits with a decimal prefix; a dash where it is not known.

    Where numbers do not stand under one another, ``even=False`` leaves out zeros that say nothing.
    """
    if not math.isfinite(value):
        return NONE
    prefixes = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (0.0, ""))
    # From 999.5 on three digits are a thousand of the next prefix.
    factor, prefix = next((f or 1.0, prefix) for f, prefix in prefixes if abs(value) >= 0.9995 * f)
    digits = f"{value / factor:#.3g}".rstrip(".") if even else f"{value / factor:.3g}"
    return f"{digits} {prefix}{unit}".rstrip()


def duration(seconds: float) -> str:
    """``2 h 05 min``, ``3 min 20 s`` or ``8.1 s``."""
    if not math.isfinite(seconds):
        return NONE
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def bpb(value: float) -> str:
    """``1.8312``; a dash where it is not known."""
    return f"{value:.4f}" if math.isfinite(value) else NONE


def spread(row: Row, metric: str) -> str:
    """``1.8312 ± 0.0021``; without the spread where there is one seed."""
    mean, std = row.mean(metric), row.std(metric)
    return f"{mean:.4f} ± {std:.4f}" if math.isfinite(std) else bpb(mean)


def seeds(row: Row) -> str:
    """How many seeds count, of how many runs there are where that is more."""
    counted, runs = len(row.group.counted), len(row.group.records)
    return str(counted) if counted == runs else f"{counted} of {runs}"


def judgement(row: Row, block: Block) -> str:
    """The difference to the reference and whether it exceeds the noise."""
    if row.label == block.reference:
        return "reference"
    verdict = row.verdict
    return f"{verdict.difference:+.4f} {verdict.verdict}" if verdict else NONE


def headings(block: Block, comparison: Comparison) -> list[str]:
    budgets = [
        f"at {scaled(block.budgets['tokens'], even=False)} tokens",
        f"at {duration(block.budgets['seconds'])}",
        f"at {scaled(block.budgets['flops'], 'FLOP', even=False)}",
    ]
    reference, metric = "baseline" if comparison.criteria.baseline else "best", comparison.criteria.metric
    judged = "" if metric == "final" else f", {METRIC_NAMES[metric]}"
    return ["group", "seeds", "final bpb", f"vs {reference}{judged}", *budgets]


def quality(row: Row, block: Block) -> list[str]:
    """The cells under ``headings``."""
    return [row.label, seeds(row), spread(row, "final"), judgement(row, block), *(spread(row, m) for m in METRICS[1:])]


COST_HEADINGS = ["group", "parameters", "FLOPs per token", "tokens/s", "peak memory"]


def cost(row: Row) -> list[str]:
    """The cells under ``COST_HEADINGS``."""
    return [
        row.label,
        scaled(row.parameters),
        scaled(row.flops_per_token),
        scaled(row.tokens_per_second),
        scaled(row.peak_memory_bytes, "B"),
    ]


def outcome(record: Record) -> str:
    """Status and, where there is one, its reason."""
    return f"{record.status}: {record.reason}" if record.reason else record.status


def print_terminal(comparison: Comparison) -> None:
    """The tables and notes on standard output, in no more columns than it has."""
    from rich.console import Console
    from rich.text import Text

    console = Console(width=None if Console().is_terminal else PIPED, highlight=False)
    with console.capture() as captured:
        runs = count(len(comparison.records), "run")
        console.print(Text(f"{comparison.title}: {runs} ({census(comparison.records)})"))
        for block in comparison.blocks:
            _print_block(console, block, comparison)
        others = [record for record in comparison.records if not record.finished]
        if others:
            listed = [[f"{r.study}/{r.name}", outcome(r)] for r in others]
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
        table.add_column(Text(name), justify="right" if index and not words else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(Text(f"\n{title}", style="bold"))
    console.print(table)


def _print_note(console: Any, note: str) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    table.add_row("*", Text(note))
    console.print(table)


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"

    rule = "|" + "|".join([" --- "] + [" ---: "] * (len(head) - 1)) + "|"
    return "\n".join([line(head), rule, *map(line, rows)])


def markdown(comparison: Comparison, command: str) -> str:
    """The tables, the notes and how they were made, as Markdown."""
    parts = [f"# {comparison.title}", f"Made by `{command}`: {census(comparison.records)}."]
    for block in comparison.blocks:
        parts += [
            f"## {block.corpus}: held-out bits per byte, mean ± standard deviation over seeds",
            _markdown_table(headings(block, comparison), [quality(row, block) for row in block.rows]),
            _markdown_table(COST_HEADINGS, [cost(row) for row in block.rows]),
        ]
    others = [record for record in comparison.records if not record.finished]
    if others:
        parts.append("## Runs that did not finish")
        parts.append(_markdown_table(["run", "status"], [[f"{r.study}/{r.name}", outcome(r)] for r in others]))
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
    """One row a group, plain numbers in base units."""
    head = ["corpus", "group", "seeds", "runs"]
    for metric in METRICS:
        where = "final" if metric == "final" else f"at_equal_{metric}"
        head += [f"val_bpb_{where}", f"val_bpb_{where}_std"]
    head += [f"budget_{axis}" for axis in METRICS[1:]]
    head += ["parameters", "flops_per_token", "tokens_per_second", "peak_memory_bytes"]
    head += ["judged_by", "reference", "difference", "low", "high", "p_holm", "verdict"]
    rows: list[list[object]] = [list(head)]
    for block in comparison.blocks:
        for row in block.rows:
            cells: list[object] = [block.corpus, row.label, len(row.group.counted), len(row.group.records)]
            for metric in METRICS:
                cells += [_plain(row.mean(metric)), _plain(row.std(metric))]
            cells += [_plain(block.budgets[axis]) for axis in METRICS[1:]]
            cells += map(_plain, (row.parameters, row.flops_per_token, row.tokens_per_second, row.peak_memory_bytes))
            v = row.verdict
            judged = [_plain(v.difference), _plain(v.low), _plain(v.high), _plain(v.p), v.verdict] if v else [""] * 5
            rows.append([*cells, comparison.criteria.metric, block.reference or "", *judged])
    return _csv(rows)


def pairs_csv(comparison: Comparison) -> str:
    """One row a pair of groups that was judged."""
    rows: list[list[object]] = [["corpus", "group", "against", "difference", "low", "high", "p_holm", "verdict"]]
    for block in comparison.blocks:
        for v in block.verdicts:
            numbers = map(_plain, (v.difference, v.low, v.high, v.p))
            rows.append([block.corpus, v.a, v.b, *numbers, v.verdict])
    return _csv(rows)


def runs_csv(comparison: Comparison) -> str:
    """One row a run, in whatever state it is."""
    place = {
        record.path: (block.corpus, row.label)
        for block in comparison.blocks
        for row in block.rows
        for record in row.group.records
    }
    head = ["study", "run", "status", "reason", "corpus", "group", "seed", "val_bpb_final", "val_bpb_last_measured"]
    head += ["tokens", "seconds"]
    head += ["tokens_per_second", "peak_memory_bytes", "parameters", "flops_per_token", "commit", "dirty"]
    rows: list[list[object]] = [list(head)]
    for r in comparison.records:
        seed = "" if r.seed is None else r.seed
        numbers = [final_value(r), last_measured(r), spent(r, "tokens"), spent(r, "seconds"), speed(r)]
        numbers += [r.number("peak_memory_bytes")]
        numbers += [r.number("parameters"), r.number("flops_per_token")]
        cells: list[object] = [r.study, r.name, r.status, r.reason, *place.get(r.path, ("", "")), seed]
        rows.append([*cells, *map(_plain, numbers), r.fact("git", "commit") or "", r.fact("git", "dirty") or ""])
    return _csv(rows)


def pair_rows(block: Block) -> list[list[str]]:
    """Every pair judged: the two groups, difference, interval, adjusted p and verdict."""
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
