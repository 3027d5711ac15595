"""Rows, clocks and interleaved turns: what every benchmark shares."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

Run = Callable[[], object]
Clock = Callable[[Run], float]


class Row(NamedTuple):
    """One contender: median milliseconds of forward and backward, and the share of the copy bandwidth it moves at."""

    op: str
    shape: str
    dtype: str
    contender: str
    forward: float
    backward: float
    of_copy: float | None


def interleave(runs: Mapping[str, Run], turns: int, clock: Clock) -> dict[str, float]:
    """Median milliseconds of every run; one turn each to warm up, then `turns` rounds of one turn each."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(turns):
        for name, run in runs.items():
            times[name].append(clock(run))
    return {name: statistics.median(values) for name, values in times.items()}


def wall_clock(run: Run) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def processor_clock(run: Run) -> float:
    """Processor time of all threads: what to compare where other programs keep the machine busy; use one thread."""
    start = time.process_time()
    run()
    return (time.process_time() - start) * 1e3


CLOCKS = {"wall": wall_clock, "processor": processor_clock}


def table(rows: list[Row]) -> str:
    """The rows in Markdown; beside each how many times as long as the first of its shape it takes, both ways."""
    lines = [
        "| op | shape | type | way | forward ms | backward ms | of copy bandwidth | takes |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    ours: dict[tuple[str, str, str], float] = {}
    for row in rows:
        total = row.forward + row.backward
        first = ours.setdefault((row.op, row.shape, row.dtype), total)
        share = "" if row.of_copy is None else f"{row.of_copy:.0%}"
        times = "1" if total == first else f"{total / first:.1f}x"
        lines.append(
            f"| {row.op} | {row.shape} | {row.dtype} | {row.contender} | {row.forward:.3g} | {row.backward:.3g} "
            f"| {share} | {times} |"
        )
    return "\n".join(lines)
