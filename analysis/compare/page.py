"""The comparison as one self-contained HTML file.

Text written by runs (samples, reasons, names) is untrusted: Jinja and Bokeh escape what they embed, and the
page's security policy forbids loading and sending anything.
"""

import base64
import json
import math
import unicodedata
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

from analysis.compare import tables, tasks
from analysis.compare.charts import charts
from analysis.compare.figures import as_png, position_figure, scales
from analysis.compare.grouping import common
from analysis.compare.notes import BUDGETS, census, method, notes, plural
from analysis.compare.records import Record
from analysis.compare.summary import METRICS, Block, Comparison, Row, final_value, last_measured, speed, spent
from analysis.compare.swept import swept
from analysis.compare.tasks import score_figure
from analysis.plots.style import paper

PNG = b"\x89PNG"
SAMPLES = 150_000  # characters of all samples together
LONGEST_SAMPLE = 4_000
MOST_PAIRS = 300  # rows of the table of pairs; more are in pairs.csv


def visible(text: str) -> str:
    """Return ``text`` with control characters other than line ends and tabs replaced by U+FFFD."""
    kept = ("\n", "\t")
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") and c not in kept else c for c in text)


def _shown(value: Any) -> Any:
    """Return ``value`` for the template: text without control characters, markup unchanged."""
    return visible(value) if type(value) is str else value


def sample(record: Record, longest: int) -> str:
    """Return the start of a run's sample text, and how much was cut."""
    text = visible(record.sample.replace("\r\n", "\n"))
    return text if len(text) <= longest else f"{text[:longest]}\n[{len(text) - longest} more characters in sample.txt]"


def _cell(text: str, value: float | str | None = None) -> dict[str, Any]:
    """Return a table cell: its text, and the value it is sorted by."""
    order = value if isinstance(value, str) or (value is not None and math.isfinite(value)) else None
    return {"text": text, "order": order, "words": isinstance(value, str)}


def _result(row: Row, block: Block) -> dict[str, Any]:
    texts = tables.quality(row, block)
    difference = 0.0 if row.label == block.reference else row.verdict.difference if row.verdict else math.nan
    orders: list[float | str] = [
        row.label,
        len(row.group.counted),
        row.mean("final"),
        difference,
        *(row.mean(m) for m in METRICS[1:]),
    ]
    costs = [row.parameters, row.flops_per_token, row.tokens_per_second, row.mfu, row.peak_memory_bytes]
    cells = [_cell(text, order) for text, order in zip(texts, orders, strict=True)]
    cells += [_cell(text, value) for text, value in zip(tables.cost(row)[1:], costs, strict=True)]
    states = sorted({record.status for record in row.group.records} - {"complete"})
    return {"look": row.style, "cells": cells, "states": states}


def _block(block: Block, number: int, comparison: Comparison) -> dict[str, Any]:
    names = [key for row in block.rows for key in row.group.own]
    keys = list(dict.fromkeys(names))
    head = tables.headings(block, comparison)
    column = {"final": 2} | {metric: place for place, metric in enumerate(METRICS[1:], start=4)}
    return {
        "number": number,
        "corpus": block.corpus,
        "head": head + tables.COST_HEADINGS[1:],
        "ranked": head[column[comparison.criteria.metric]],
        "results": [_result(row, block) for row in block.rows],
        "positions": _still(position_figure, block),
        "tasks": tasks.table(block),
        "scores": _still(score_figure, block),
        "legend": [{"label": row.label, "number": row.look, "look": row.style} for row in block.rows],
        "pairs": tables.pair_rows(block) if len(block.verdicts) <= MOST_PAIRS else [],
        "verdicts": len(block.verdicts),
        "interval": f"{100 * (1 - comparison.criteria.level):g} % interval",
        "keys": keys,
        "swept": [{"word": one.word, "key": one.key} for one in swept(block)],
        "differences": [[row.label, *(setting(row.group.own.get(key)) for key in keys)] for row in block.rows],
        "configs": [(row.label, yaml(row.group.records[0].config)) for row in block.rows],
        "common": {
            key: setting(value)
            for key, value in common([record for row in block.rows for record in row.group.records]).items()
        },
    }


def _still(draw: Callable[[Block], Any | None], block: Block) -> str:
    """Return a figure of a block as a data URI; an empty string without one."""
    with paper():
        figure = draw(block)
    return "" if figure is None else _data_uri(as_png(figure))


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def setting(value: Any) -> str:
    """Return a value of the configuration as typed; a dash for None."""
    return tables.NONE if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def yaml(config: dict[str, Any]) -> str:
    """Return a resolved configuration as YAML."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(config))


def _runs(comparison: Comparison) -> list[dict[str, Any]]:
    place = {
        record.path: (block.corpus, row.label)
        for block in comparison.blocks
        for row in block.rows
        for record in row.group.records
    }
    longest = min(LONGEST_SAMPLE, SAMPLES // max(1, len(comparison.records)))
    one_study = len({record.study for record in comparison.records}) == 1
    found = []
    loop = any(record.foretold for record in comparison.records)
    for record in comparison.records:
        corpus, label = place.get(record.path, (tables.NONE, tables.NONE))
        tokens, seconds = spent(record, "tokens"), spent(record, "seconds")
        found.append(
            {
                "name": record.label if one_study else f"{record.study}/{record.label}",
                "status": record.status,
                "reason": record.reason,
                "sample": sample(record, longest),
                "images": _data_uri(record.images) if record.images.startswith(PNG) else "",
                "cells": [
                    _cell(label, label),
                    _cell(corpus, corpus),
                    _cell(str(tables.NONE if record.seed is None else record.seed), _number(record.seed)),
                    *(_cell(tables.bpb(value), value) for value in (final_value(record), last_measured(record))),
                    _cell(tables.number(tokens), tokens),
                    _cell(tables.time(seconds), seconds),
                    _cell(tables.number(speed(record)), speed(record)),
                    *(_prediction(record) if loop else []),
                ],
            }
        )
    return found


def _prediction(record: Record) -> list[dict[str, Any]]:
    """Return the cells of the loss that a fit predicted and of the loss measured."""
    found = record.foretold
    if found is None:
        return [_cell(tables.NONE, math.nan), _cell(tables.NONE, math.nan)]
    measured = _number(found.measured)
    text = f"{tables.bpb(measured)} {found.verdict}".rstrip()
    return [_cell(f"{found.loss:.4f} ({found.low:.3f} to {found.high:.3f})", found.loss), _cell(text, measured)]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def environments(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the distinct environments of the runs, the commonest first: facts and the names of their runs."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        facts = {key: record.fact(key) for key in ("git", "code", "versions", "hardware", "resolved")}
        facts["data sha256"] = record.fact("data", "sha256")
        text = json.dumps(facts, sort_keys=True, default=str)
        place = found.setdefault(text, {"facts": _lines(facts), "runs": []})
        place["runs"].append(record.label)
    return sorted(found.values(), key=lambda place: -len(place["runs"]))


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    def shown(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{key} {inner}" for key, inner in value.items() if inner is not None) or "unknown"
        return "unknown" if value is None else str(value)

    return [(key, shown(value)) for key, value in facts.items()]


def render(comparison: Comparison, command: str, made: str, refresh: int | None = None) -> str:
    """Return the page; ``made`` is the time and ``command`` the command line that made it.

    ``refresh``: seconds after which a browser loads it again.
    """
    from bokeh.embed import components
    from bokeh.resources import Resources
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    figures: dict[str, Any] = {}
    for number, block in enumerate(comparison.blocks):
        figures |= charts(block, number, len(comparison.records))
    script, divs = components(figures) if figures else ("", {})
    axes = [
        {axis: {"end": end, "label": label} for axis, (_, end, label) in scales(block).items()}
        for block in comparison.blocks
    ]
    here = files("analysis.compare")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    return environment.from_string(here.joinpath("page.html").read_text()).render(
        title=comparison.title,
        census=f"{plural(len(comparison.records), 'run')}: {census(comparison.records)}",
        command=command,
        made=made,
        refresh=refresh,
        notes=notes(comparison),
        method=[method(comparison), BUDGETS],
        blocks=[_block(block, number, comparison) for number, block in enumerate(comparison.blocks)],
        runs=_runs(comparison),
        foretold=any(record.foretold for record in comparison.records),
        environments=environments(comparison.records),
        axes=axes,
        divs={name: Markup(div) for name, div in divs.items()},
        bokeh=Markup(Resources(mode="inline", components=["bokeh"]).render()),
        charts=Markup(script),
        style=Markup(here.joinpath("page.css").read_text()),
        script=Markup(here.joinpath("page.js").read_text()),
    )
