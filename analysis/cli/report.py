"""Tables of fits, predictions and optima for the terminal."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from analysis.fit import Fit, Prediction
from analysis.laws.registry import LAWS
from analysis.schedules.search import Optimum


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
    """Runs, parameters with standard errors, windows compared, runs predicted from the others, remarks."""
    table = _table("Runs", ("run", "column", "updates", "points fitted", "final loss"))
    for curve, run in zip(fit.curves, fit.runs, strict=True):
        points = int((curve.step >= fit.first).sum())
        table.add_row(run.name, run.column, str(run.steps), str(points), f"{run.loss[-1]:.4f}")
    console.print(table, "")
    laws = dict.fromkeys(member.law for member in fit.members)
    for law in laws:
        console.print(f"{law}:  {LAWS[law].formula}", highlight=False, markup=False, soft_wrap=True)
    windows = sorted({member.first for member in fit.members})
    if len(fit.members) > 1:
        said = f"mean of {len(laws)} laws on {len(windows)} windows, from steps {', '.join(map(str, windows))}"
    else:
        said = f"fitted from step {windows[0]} on"
    rms = max(member.cost for member in fit.members) ** 0.5
    console.print(f"{said}; residuals {100 * rms:.2f} % (root mean square)\n", highlight=False)
    if len(fit.members) == 1:
        table = _table("Parameters", ("name", "value", "standard error"))
        for name, value in fit.params.items():
            error = fit.standard_errors.get(name)
            table.add_row(name, _number(value), _number(error) if error is not None else "at its bound")
        console.print(table, "")
    else:
        for member in (member for member in fit.members if member.first == fit.first):
            said = ", ".join(f"{name} {_number(value)}" for name, value in member.parameters.items())
            console.print(f"{member.law}:  {said}", highlight=False, soft_wrap=True)
        console.print("")
    if fit.table:
        table = _table("Windows", ("first step", fit.table[0].kind, "residual", "final loss of the longest run"))
        for row in fit.table:
            chosen = " <" if row.first == fit.first else ""
            table.add_row(f"{row.first}{chosen}", f"{row.score:.4f}", f"{100 * row.rms:.2f} %", f"{row.final_loss:.4f}")
        console.print(table, "")
    if fit.evidence.left_out:
        table = _table("Each run predicted from the others", ("run", "predicted", "measured", "error"))
        for one in fit.evidence.left_out:
            table.add_row(one.name, f"{one.predicted:.4f}", f"{one.measured:.4f}", f"{one.error:+.4f}")
        console.print(table, "")
    print_remarks(console, fit.remarks)


def print_remarks(console: Console, remarks: Iterable[str]) -> None:
    for remark in remarks:
        console.print(f"- {remark}", highlight=False, soft_wrap=True)


def print_optimum(console: Console, optimum: Optimum, level: float) -> None:
    """The schedules of the comparison, best first, with intervals and gains."""
    title = f"Final loss by schedule, {len(optimum.lead) + len(optimum.eta)} updates"
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
        table.add_row(kind, f"{final:.4f}", _interval(interval), gain, beyond)
    console.print(table)
    eta = optimum.eta
    console.print(
        f"{optimum.kind} ({optimum.method}): rate {eta.max():.3e} at most, {eta[-1]:.3e} at the end\n", highlight=False
    )
    print_remarks(console, optimum.remarks)


def print_prediction(console: Console, name: str, prediction: Prediction, level: float) -> None:
    table = _table(
        "Prediction", ("schedule", "updates", "final loss", f"{100 * level:.0f} % interval", "spread of the laws")
    )
    table.add_row(
        name,
        str(len(prediction.eta)),
        f"{prediction.final_loss:.4f}",
        _interval(prediction.interval(level)),
        f"{prediction.spread[-1]:.4f}",
    )
    console.print(table)
