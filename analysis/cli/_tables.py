"""Tables of fits, predictions and recommended schedules for the terminal."""

import shlex
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.fit.joint import Fit
from analysis.fit.model import Prediction
from analysis.laws import registry
from analysis.schedules.recommended import Optimum
from rwkv_lab.util.console import harmless
from rwkv_lab.util.paths import as_typed


def plain_console() -> Console:
    """Return a console that reads no markup in names of runs and files."""
    return Console(markup=False, emoji=False, highlight=False)


def _add_row(table: Table, *cells: str) -> None:
    table.add_row(*(Text(harmless(cell)) for cell in cells))


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=i == 0)
    return table


def _number(value: float) -> str:
    return f"{value:.4g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3e}"


def _interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.4f} to {interval[1]:.4f}"


def print_fit(console: Console, fit: Fit) -> None:
    """Print runs, parameters with standard errors, first steps compared, runs predicted from the others, remarks."""
    table = _table("Runs", ("run", "column", "updates", "points fitted", "final loss"))
    for curve, run in zip(fit.curves, fit.runs, strict=True):
        points = int((curve.step >= fit.fit_start).sum())
        _add_row(table, run.name, run.column, str(run.steps), str(points), f"{run.loss[-1]:.4f}")
    console.print(table, "")
    laws = dict.fromkeys(member.law for member in fit.members)
    for law in laws:
        console.print(f"{law}:  {registry.get(law).formula}", soft_wrap=True)
    starts = sorted({member.fit_start for member in fit.members})
    if len(fit.members) > 1:
        what = f"mean of {len(laws)} laws, each fitted from steps {', '.join(map(str, starts))}"
    else:
        what = f"fitted from step {starts[0]} on"
    rms = max(member.cost for member in fit.members) ** 0.5
    console.print(f"{what}; residuals {100 * rms:.2f} % (root mean square)\n")
    if len(fit.members) == 1:
        table = _table("Parameters", ("name", "value", "standard error"))
        for name, value in fit.params.items():
            error = fit.model.standard_errors.get(name)
            _add_row(table, name, _number(value), _number(error) if error is not None else "at its bound")
        console.print(table, "")
    else:
        for member in (member for member in fit.members if member.fit_start == fit.fit_start):
            values = ", ".join(f"{name} {_number(value)}" for name, value in member.parameters.items())
            console.print(f"{member.law}:  {values}", soft_wrap=True)
        console.print("")
    if fit.windows:
        table = _table("Windows", ("first step", fit.windows[0].kind, "residual", "final loss of the longest run"))
        for row in fit.windows:
            chosen = " <" if row.fit_start == fit.fit_start else ""
            _add_row(
                table, f"{row.fit_start}{chosen}", f"{row.score:.4f}", f"{100 * row.rms:.2f} %", f"{row.final_loss:.4f}"
            )
        console.print(table, "")
    if fit.error_budget.left_out:
        table = _table("Each run predicted from the others", ("run", "predicted", "measured", "error"))
        for one in fit.error_budget.left_out:
            _add_row(table, one.name, f"{one.predicted:.4f}", f"{one.measured:.4f}", f"{one.error:+.4f}")
        console.print(table, "")
    print_remarks(console, fit.model.remarks)


def print_remarks(console: Console, remarks: Iterable[str]) -> None:
    """Print one line a remark."""
    for remark in remarks:
        console.print(harmless(f"- {remark}"), soft_wrap=True)


def print_optimum(console: Console, optimum: Optimum, level: float) -> None:
    """Print the schedules of the comparison, best first, with intervals and gains."""
    title = f"Final loss by schedule, {optimum.steps} updates"
    table = _table(
        title, ("schedule", "final loss", f"{100 * level:.0f} % interval", "above the best", "beyond the error")
    )
    best = (optimum.kind, optimum.final_loss, optimum.interval(level), "", "")
    rows = [best] + [
        (row.kind, row.final_loss, row.interval, f"{row.gain:+.4f}", "yes" if row.beyond_error else "no")
        for row in sorted(optimum.table, key=lambda row: row.final_loss)
        if row.kind != optimum.kind
    ]
    for kind, final, interval, gain, beyond in rows:
        _add_row(table, kind, f"{final:.4f}", _interval(interval), gain, beyond)
    console.print(table)
    lr = optimum.lr
    console.print(f"{optimum.kind} ({optimum.method}): rate {lr.max():.3e} at most, {lr[-1]:.3e} at the end\n")
    print_remarks(console, optimum.remarks)


def print_prediction(console: Console, name: str, prediction: Prediction, level: float) -> None:
    """Print the final loss of one schedule with its interval."""
    table = _table(
        "Prediction", ("schedule", "updates", "final loss", f"{100 * level:.0f} % interval", "spread of the laws")
    )
    _add_row(
        table,
        name,
        str(len(prediction.lr)),
        f"{prediction.final_loss:.4f}",
        _interval(prediction.interval(level)),
        f"{prediction.spread[-1]:.4f}",
    )
    console.print(table)


def print_command(console: Console, file: Path, steps: int, overrides: Iterable[str] = ()) -> None:
    """Print the command that trains the schedule of a schedule file, with the ``overrides`` of the runs fitted."""
    words = [
        as_typed("python run.py"),
        *(shlex.quote(word) for word in overrides),
        f"schedule=fitted schedule.fit={file} trainer.steps={steps}",
    ]
    console.print(harmless(f"train it: {' '.join(words)}"), soft_wrap=True, highlight=False)
