"""``rwkv-lab runs watch STUDY``: the jobs of a study as they train."""

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import Run, last_row, listing, store
from rwkv_lab.sweeps.progress import JobState, counted, run_state
from rwkv_lab.util.console import harmless, table_lines, terminal_width
from rwkv_lab.util.units import duration

LOOK_SECONDS = 1.0
MOST_WIDTH = 80
HEADER = ("run", "status", "done", "loss", "forecast", "left")
_DROPPABLE = ("left", "status")


def watch_study(study: str, root: Path, once: bool) -> int:
    """Show the study's runs, newest first, until none is running; return the exit code 0.

    ``once``, or standard output that is not a terminal: show them one time.
    """
    if once or not sys.stdout.isatty():
        print("\n".join(view(store.studies([study], root), terminal_width() or MOST_WIDTH)))
        return 0
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            runs = store.studies([study], root)
            shown = view(runs, min(MOST_WIDTH, console.width))
            # A terminal shows the newest; the counts stand in the last line.
            room = max(3, console.height - 1)
            lines = shown if len(shown) <= room else [*shown[: room - 1], shown[-1]]
            live.update(Text("\n".join(lines)), refresh=True)
            if not any(_status(run) == "running" for run in runs):
                return 0
            time.sleep(LOOK_SECONDS)


def view(runs: Sequence[Run], width: int) -> list[str]:
    """Return the lines of a table of the runs, newest first, within ``width`` columns, and the counts."""
    # A run is written while it is read: what cannot be read now is shown the next time.
    named = list(zip(runs, listing.names(runs), strict=True))
    named.sort(key=lambda pair: _started(pair[0]), reverse=True)
    states = [_state(run) for run, _ in named]
    rows = [(harmless(name), *_cells(run, state)) for (run, name), state in zip(named, states, strict=True)]
    return [*table_lines(HEADER, rows, width, _DROPPABLE, left=2), counted(states)]


def _status(run: Run) -> str:
    try:
        return run.status
    except UserError:
        return "pending"


def _state(run: Run) -> JobState:
    status = _status(run)
    return run_state(run.path, status, run.manifest if status != "pending" else {})


def _started(run: Run) -> str:
    try:
        return str(run.manifest.get("started") or "")
    except UserError:
        return ""


def _cells(run: Run, state: JobState) -> tuple[str, ...]:
    row, result, forecast = last_row(run.path / "metrics.csv"), state.manifest.get("result") or {}, state.forecast
    loss = result.get("val_loss", row.get("train_loss"))
    ranged = f"{forecast['low']:.3g}–{forecast['high']:.3g}" if {"low", "high"} <= forecast.keys() else ""
    running = state.status == "running" and state.done > 0
    left = duration(row.get("seconds", 0.0) * (1 - state.done) / state.done) if running else ""
    age = listing.age(state.manifest.get("ended"), datetime.now(UTC))
    return (
        state.status,
        f"{100 * state.done:.0f} %",
        f"{loss:.4f}" if loss is not None and loss == loss else "",
        ranged,
        left or (f"{listing.shown_age(age)} ago" if age is not None else ""),
    )
