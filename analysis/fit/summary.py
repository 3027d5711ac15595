"""A fit in a few lines of text, and as a table of HTML."""

from collections.abc import Mapping, Sequence
from html import escape

from analysis.fit.fitted_law import ErrorBudget
from analysis.fit.model import RunSummary

SHOWN = 4  # runs by name


def _errors(budget: ErrorBudget) -> str:
    if not budget.left_out:
        return "no run could be predicted from the others"
    worst = max(budget.left_out, key=lambda run: abs(run.error))
    return f"each run predicted from the others: {worst.error:+.4f} at worst ({worst.name})"


def _numbers(params: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in params.items())


def text(law: str, runs: Sequence[RunSummary], params: Mapping[str, float], budget: ErrorBudget, fit_start: int) -> str:
    """Return at most ten lines."""
    peaks = sorted({run.peak for run in runs})
    lines = [
        f"Fit of the law {law} to {len(runs)} run{'s' if len(runs) > 1 else ''}, from step {fit_start} on",
        *(f"  {run.name}: {run.steps} updates, {run.column} {run.loss[-1]:.4f}" for run in runs[:SHOWN]),
        *([f"  and {len(runs) - SHOWN} more"] if len(runs) > SHOWN else []),
        f"peaks {', '.join(f'{peak:.3g}' for peak in peaks[:6])}; nats per token unless the column is in others",
        _numbers(params),
        _errors(budget),
    ]
    return "\n".join(lines)


def html(law: str, runs: Sequence[RunSummary], params: Mapping[str, float], budget: ErrorBudget) -> str:
    """Return a table of the runs, each with its prediction from the others, and the parameters."""
    predicted = {run.name: f"{run.predicted:.4f} ({run.error:+.4f})" for run in budget.left_out}
    rows = [
        f"<tr><td>{escape(run.name)}</td><td>{run.steps}</td><td>{run.peak:.3g}</td><td>{run.loss[-1]:.4f}</td>"
        f"<td>{predicted.get(run.name, '')}</td></tr>"
        for run in runs
    ]
    head = "".join(f"<th>{name}</th>" for name in ("run", "updates", "peak", "final loss", "predicted from the others"))
    return (
        f"<table><caption>Law {escape(law)}: {escape(_numbers(params))}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )
