"""Summary of a comparison: the groups of each corpus with their numbers and verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.compare.grouping import Group, by_corpus, group, is_number
from analysis.compare.records import AXES, Record, common_budget, measured, value_at
from analysis.compare.significance import Verdict, against, pairwise_verdicts, pooled_std
from analysis.plots.style import Style, grid_style, style
from rwkv_lab.config.errors import UserError, nearest
from rwkv_lab.runs import listing

METRICS = ("final", *AXES)
QUALITY = "val_bpb"
FIRST = style(0)


@dataclass(frozen=True)
class Criteria:
    """How groups are ranked and tested."""

    metric: str = "final"  # one of METRICS
    baseline: str | None = None  # label of the group all others are tested against; None: every pair
    level: float = 0.05  # adjusted p below which a difference exceeds the noise
    shared_noise: bool = False  # whether all groups have the same noise


@dataclass(frozen=True)
class Row:
    """A group and its numbers; ``values[metric]``: one val_bpb a counted seed, without NaN."""

    group: Group
    values: dict[str, list[float]]
    parameters: float
    flops_per_token: float
    tokens_per_second: float  # mean over the counted seeds
    peak_memory_bytes: float  # the largest of the counted seeds
    mfu: float = float("nan")  # model FLOPs utilisation at that speed: a share of the devices' peak
    verdict: Verdict | None = None  # against the reference; None for the reference and without a value
    look: int = 0  # its number: a label has the same in every corpus
    style: Style = FIRST

    @property
    def label(self) -> str:
        """Name of the group."""
        return self.group.label

    def mean(self, metric: str) -> float:
        """Mean over the seeds; NaN without any."""
        values = self.values[metric]
        return float(np.mean(values)) if values else float("nan")

    def std(self, metric: str) -> float:
        """Sample standard deviation over the seeds; NaN below two."""
        values = self.values[metric]
        return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


@dataclass(frozen=True)
class Block:
    """The groups of one corpus, the best first."""

    corpus: str
    rows: tuple[Row, ...]
    budgets: dict[str, float]  # tokens, seconds, FLOPs at which the groups are compared
    reference: str | None  # label of the baseline, else of the best group
    verdicts: tuple[Verdict, ...]
    seed_std: float  # pooled over the groups with two seeds or more
    seed_freedom: int


@dataclass(frozen=True)
class Comparison:
    """All blocks, and every record in whatever state."""

    title: str
    blocks: tuple[Block, ...]
    records: tuple[Record, ...]
    criteria: Criteria


def last_measured(record: Record) -> float:
    """Return the last val_bpb of metrics.csv, measured on the fixed held-out part; NaN without any."""
    _, y = measured(record, "tokens", QUALITY)
    return float(y[-1]) if len(y) else float("nan")


def final_value(record: Record) -> float:
    """Return val_bpb of a finished run from its manifest, else from metrics.csv; NaN of an unfinished run."""
    value = record.number("result", QUALITY)
    return float("nan") if not record.finished else value if np.isfinite(value) else last_measured(record)


def speed(record: Record) -> float:
    """Return training tokens a second from the manifest, else the median of metrics.csv."""
    value = record.number("result", "tokens_per_second")
    column = record.column("tokens_per_second")
    column = column[np.isfinite(column)]
    return value if np.isfinite(value) else float(np.median(column)) if len(column) else float("nan")


def utilisation(record: Record) -> float:
    """Return the share of its devices' peak FLOPs at which a run trained; NaN where the peak was not recorded."""
    peak = record.number("peak_flops")
    return speed(record) * record.number("flops_per_token") / peak if peak > 0 else float("nan")


def spent(record: Record, axis: str) -> float:
    """Return tokens or seconds trained: the total in a finished run's manifest, else the last of metrics.csv."""
    values = record.column(axis)
    values = values[np.isfinite(values)]
    total = record.number(axis) if record.finished else float("nan")
    return total if np.isfinite(total) else float(values[-1]) if len(values) else float("nan")


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if np.isfinite(value)]


def _first(values: Sequence[float]) -> float:
    return next(iter(_finite(values)), float("nan"))


def make_row(group: Group, budgets: Mapping[str, float]) -> Row:
    """Return the numbers of a group from its counted runs; parameters and FLOPs from any run that has them."""
    counted = group.counted
    at = {axis: [value_at(record, axis, QUALITY, budgets[axis]) for record in counted] for axis in AXES}
    speeds = _finite([speed(record) for record in counted])
    memory = _finite([record.number("peak_memory_bytes") for record in counted])
    return Row(
        group,
        {"final": _finite([final_value(r) for r in counted])} | {axis: _finite(values) for axis, values in at.items()},
        _first([record.number("parameters") for record in group.records]),
        _first([record.number("flops_per_token") for record in group.records]),
        float(np.mean(speeds)) if speeds else float("nan"),
        max(memory, default=float("nan")),
        float(np.mean(shares)) if (shares := _finite([utilisation(record) for record in counted])) else float("nan"),
    )


def make_block(
    corpus: str,
    records: Sequence[Record],
    budgets: Mapping[str, float],
    criteria: Criteria,
) -> Block:
    """Return the groups of one corpus, tested; a budget not given is the largest that every finished run spent."""
    groups, metric = group(records), criteria.metric
    counted = [record for member in groups for record in member.counted]
    known = {axis: budgets.get(axis, common_budget(counted, axis, QUALITY)) for axis in AXES}
    rows = sorted(
        (make_row(member, known) for member in groups), key=lambda row: (np.isnan(row.mean(metric)), row.mean(metric))
    )
    samples = {row.label: row.values[metric] for row in rows}
    chosen = criteria.baseline if criteria.baseline in samples else None
    verdicts = pairwise_verdicts(samples, chosen, criteria.level, criteria.shared_noise)
    reference = chosen or next((row.label for row in rows if row.values[metric]), None)
    turned = against(verdicts, reference) if reference else {}
    tested = tuple(replace(row, verdict=turned.get(row.label)) for row in rows)
    return Block(corpus, tested, known, reference, tuple(verdicts), *pooled_std(samples))


def with_looks(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """Return ``blocks`` with groups numbered by first appearance, so that a model has one colour on every corpus.

    Groups of a grid, such as model x rate, get one colour a model and one dash a rate.
    """
    groups = {row.label: row.group for block in blocks for row in block.rows}
    looks = {label: number for number, label in enumerate(groups)}
    styles = grid_styles(list(groups.values())) or {label: style(number) for label, number in looks.items()}
    return tuple(
        replace(
            block,
            rows=tuple(replace(row, look=looks[row.label], style=styles[row.label]) for row in block.rows),
        )
        for block in blocks
    )


def grid_styles(groups: Sequence[Group]) -> dict[str, Style] | None:
    """Return looks by label if the groups are a grid of a named choice and a number: colour by one, dash by the other.

    None if they differ in more or less than that, or in more values than there are looks.
    """
    keys = listing.telling_keys([found.own for found in groups])
    if len(keys) != 2:
        return None
    named, number = sorted(keys, key=lambda key: is_number(groups, key))
    if is_number(groups, named) or not is_number(groups, number):
        return None
    rows = list(dict.fromkeys(str(found.own.get(named)) for found in groups))
    columns = sorted({found.own[number] for found in groups if number in found.own})
    styles = {
        found.label: grid_style(rows.index(str(found.own.get(named))), columns.index(found.own[number]))
        for found in groups
        if number in found.own
    }
    known = {label: look for label, look in styles.items() if look is not None}
    return known if len(known) == len(groups) else None


def compare(
    title: str,
    records: Sequence[Record],
    budgets: Mapping[str, float] | None = None,
    criteria: Criteria = Criteria(),
) -> Comparison:
    """Group, measure, rank and test ``records``; UserError if the baseline is not the name of a group."""
    corpora = by_corpus(records)
    blocks = with_looks([make_block(name, members, budgets or {}, criteria) for name, members in corpora.items()])
    names = [row.label for block in blocks for row in block.rows]
    baseline = criteria.baseline
    if baseline is not None and baseline not in names:
        raise UserError(
            f"--baseline '{baseline}' is not a group{nearest(baseline, names)}; choose one of {', '.join(names)}"
        )
    return Comparison(title, blocks, tuple(records), criteria)
