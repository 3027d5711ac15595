"""Cautions beside a comparison, one sentence each, and how its values were measured."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from analysis.compare.records import STATUSES, Record
from analysis.compare.significance import BEYOND, LEAST_SEEDS, against, bartlett, pairwise_verdicts
from analysis.compare.summary import Block, Comparison, Criteria

METHOD = (
    "Final bits per byte are those of the whole held-out text after training, other values those of a fixed part of it "
    "during training. Verdicts: {test}, on the groups' {metric} values, one a seed; p-values adjusted by Holm's method "
    "over all pairs; beyond noise: an adjusted p below {level:g}{least}."
)
OWN_NOISE = "Welch's t-test, with each group's noise from its own seeds (two or more)"
SHARED_NOISE = "t-test with one noise for all groups, estimated from all of them together"
UNEQUAL = 0.01  # p of Bartlett's test below which one noise for all groups is doubtful
METRIC_NAMES = {"final": "final", "tokens": "equal-tokens", "seconds": "equal-time", "flops": "equal-compute"}
BUDGETS = (
    "Values at equal tokens, seconds and FLOPs are interpolated linearly between a run's evaluations. Before the run's "
    "end its learning rate is still high: a run planned for that budget would end lower."
)


def plural(number: int, noun: str) -> str:
    """Return ``1 run`` or ``2 runs``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def census(records: Sequence[Record]) -> str:
    """Return the number of runs by status, e.g. ``18 complete, 2 failed, 1 running``."""
    counted = Counter(record.status for record in records)
    return ", ".join(f"{counted[status]} {status}" for status in STATUSES if counted[status])


def method(comparison: Comparison) -> str:
    """Return how values were measured and tested."""
    criteria = comparison.criteria
    test = SHARED_NOISE if criteria.shared_noise else OWN_NOISE
    least = "" if criteria.shared_noise else f"; undecided: a group of fewer than {LEAST_SEEDS} seeds"
    return METHOD.format(test=test, metric=METRIC_NAMES[criteria.metric], level=criteria.level, least=least)


def listed(names: Sequence[str], most: int = 6) -> str:
    """Return ``a, b, c``, or the first ``most`` names and how many more."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _distinct(records: Sequence[Record], *keys: str) -> list[Any]:
    values = {str(value): value for record in records if (value := record.fact(*keys)) is not None}
    return [values[text] for text in sorted(values)]


def _about_runs(records: Sequence[Record]) -> Iterator[str]:
    unfinished = [record for record in records if not record.finished]
    if unfinished:
        yield (
            f"{len(unfinished)} of {plural(len(records), 'run')} did not finish ({census(unfinished)}): "
            "listed, drawn dotted, and left out of every mean."
        )
    stale = [record for record in records if record.status == "stale"]
    if stale:
        yield (
            f"{len(stale)} of {plural(len(records), 'run')} {'is' if len(stale) == 1 else 'are'} stale: completed by "
            "code that differs from this checkout's, but counted; rerun=true trains again."
        )
    codes = _distinct([record for record in records if record.finished], "code")
    if len(codes) > 1:
        yield f"The finished runs come from {len(codes)} different states of the code; see Environment."


def _about_measures(records: Sequence[Record]) -> Iterator[str]:
    finished = [record for record in records if record.finished]
    places = {
        "hardware": _distinct(finished, "hardware", "name"),
        "device": _distinct(finished, "resolved", "device"),
        "number of threads": _distinct(finished, "resolved", "threads"),
        "backend of the ops": _distinct(finished, "resolved", "ops_backend"),
        "precision": _distinct(finished, "resolved", "precision"),
    }
    differing = [f"{name} ({', '.join(map(str, values))})" for name, values in places.items() if len(values) > 1]
    if differing:
        yield f"Seconds and tokens per second are not comparable: the runs differ in {'; '.join(differing)}."
    evaluations = _distinct(finished, "result", "eval")
    if len(evaluations) > 1:
        yield (
            f"Final values come from different evaluations ({'; '.join(map(str, evaluations))}), which may give models "
            "different context lengths; --metric tokens compares by the same evaluation for all."
        )
    about_data = {str(note) for record in records for note in record.fact("data", "notes") or []}
    yield from sorted(f"Data: {note}" for note in about_data)


def _about_noise(block: Block, criteria: Criteria) -> Iterator[str]:
    """Yield differences between the verdicts by own and by shared noise."""
    samples = {row.label: row.values[criteria.metric] for row in block.rows}
    if criteria.shared_noise:
        p = bartlett(samples)
        if p < UNEQUAL:
            yield (
                f"On {block.corpus}, the groups differ in seed noise (Bartlett's test, p = {p:.1g}), contrary to the "
                "assumption of --noise shared; --noise own estimates it for each group."
            )
        return
    baseline = criteria.baseline if criteria.baseline in samples else None
    shared = against(pairwise_verdicts(samples, baseline, criteria.level, shared=True), block.reference or "")
    more = [
        row.label
        for row in block.rows
        if row.verdict and row.verdict.verdict != BEYOND and shared[row.label].verdict == BEYOND
    ]
    if more:
        yield (
            f"On {block.corpus}, if all groups have the same seed noise (--noise shared), these also differ from "
            f"{block.reference} beyond noise: {listed(more)}."
        )


def _about_block(block: Block, criteria: Criteria) -> Iterator[str]:
    metric = criteria.metric
    where = f"On {block.corpus}"
    lengths = {record.number("tokens") for row in block.rows for record in row.group.counted}
    known = [length for length in lengths if math.isfinite(length)]
    if len(known) > 1:
        yield (
            f"{where}, the groups were trained for {min(known):,.0f} to {max(known):,.0f} tokens; --metric tokens, "
            "seconds or flops compares at equal budgets."
        )
    repeated = [row.label for row in block.rows if sum(r.finished for r in row.group.records) > len(row.group.counted)]
    if repeated:
        yield f"{where}, a seed that was trained more than once counts once: {listed(repeated)}."
    single = [row.label for row in block.rows if len(row.values[metric]) == 1]
    if single and len(block.rows) > 1 and not criteria.shared_noise:
        yield f"{where}, these groups have one seed, hence no known noise, and are not tested: {listed(single)}."
    few = [row.label for row in block.rows if 1 < len(row.values[metric]) < LEAST_SEEDS]
    if few and len(block.rows) > 1 and not criteria.shared_noise:
        yield (
            f"{where}, these groups have two seeds, too few for a verdict, and are undecided: {listed(few)}; a third "
            "seed, or --noise shared, decides."
        )
    if block.seed_freedom:
        yield (
            f"{where}, the standard deviation over seeds is {block.seed_std:.4f} bits per byte, pooled over the "
            f"groups ({plural(block.seed_freedom, 'degree')} of freedom)."
        )
    yield from _about_noise(block, criteria)
    empty = [row.label for row in block.rows if row.group.counted and not row.values[metric]]
    if empty:
        yield f"{where}, these groups lack a {METRIC_NAMES[metric]} value: {listed(empty)}."
        yield from _without_bits(block)


def _without_bits(block: Block) -> Iterator[str]:
    """Yield loss and accuracy of the groups whose objective or data gives an accuracy and no bits per byte."""
    shown = []
    for row in block.rows:
        finished = [record for record in row.group.counted if record.finished]
        pairs = [(record.number("result", "val_loss"), record.number("result", "val_accuracy")) for record in finished]
        found = [pair for pair in pairs if all(map(math.isfinite, pair))]
        if found:
            loss, accuracy = (sum(column) / len(found) for column in zip(*found, strict=True))
            shown.append(f"{row.label} {loss:.4f} and {accuracy:.4f}")
    if shown:
        yield (
            f"On {block.corpus}, final loss in nats per predicted token and accuracy, means over seeds: "
            f"{'; '.join(shown)}."
        )


def notes(comparison: Comparison) -> list[str]:
    """Return every caution that applies, the weightiest first."""
    found = [*_about_runs(comparison.records), *_about_measures(comparison.records)]
    if len(comparison.blocks) > 1:
        found.append("Bits per byte of different texts are not comparable: each corpus has its own table.")
    return found + [note for block in comparison.blocks for note in _about_block(block, comparison.criteria)]
