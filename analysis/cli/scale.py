"""``python -m analysis scale RUN_OR_CSV... [--flops C ...]``"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.cli.predict import add_schedule, rates_of
from rwkv_lab.config.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.curves import LossCurve
    from analysis.scale import ScaleFit
    from analysis.schedules.compute_optimal import IsoFlop

SUMMARY = "fit one law to runs of several sizes: the loss of the next size, the best size for a FLOP budget"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN_OR_CSV", help="run directories or folders of them, or logs, of several sizes"
    )
    parser.add_argument(
        "--parameters",
        nargs="+",
        type=float,
        metavar="N",
        help="parameters of the model of every run, in order (default: from run.json, schedules.json or the name)",
    )
    parser.add_argument(
        "--count",
        choices=("all", "body"),
        default="all",
        help="parameters that N counts: all (default), or body, those without embedding and head",
    )
    parser.add_argument("--flops", nargs="+", type=float, default=[], metavar="C", help="budgets, in training FLOPs")
    parser.add_argument("--size", type=float, metavar="N", help="predict a model of N parameters, with --schedule and")
    parser.add_argument("--tokens", type=float, metavar="D", help="its training tokens (or --steps)")
    add_schedule(parser, default="wsd")
    parser.add_argument("--tokens-per-step", type=float, metavar="N", help="tokens of one update (default: recorded)")
    parser.add_argument("--column", help="loss to fit (default: loss, else val_loss if dense, else train_loss)")
    parser.add_argument(
        "--schedules", type=Path, metavar="FILE", help="schedules of tables without a column lr, as for fit"
    )
    parser.add_argument("--level", type=float, default=0.9, help="level of the intervals (default: 0.9)")
    parser.add_argument("--ids", action="store_true", help="whole names of runs, with their ids")
    parser.add_argument("--out", type=Path, default=Path("scale"), help="folder for the results (default: scale)")


def load_given(args: argparse.Namespace) -> "list[LossCurve]":
    """Return the curves of the runs given, of the runs below folders, and of the CSV files in folders of logs."""
    from analysis.cli.fit import expand
    from analysis.curves.loading import load_all

    paths: list[str] = []
    for given in args.runs:
        logs = sorted(map(str, Path(given).glob("*.csv"))) if (Path(given) / "schedules.json").is_file() else []
        found = logs or expand(given)
        if not found:
            raise UserError(f"{given} has no run below it (no metrics.csv)")
        paths += found
    return load_all(paths, args.ids, column=args.column, schedules=args.schedules)


def fit_all(args: argparse.Namespace, curves: "list[LossCurve]") -> "ScaleFit":
    """Fit the curves with the sizes given or found."""
    from analysis import scale
    from analysis.curves.sizes import size_of

    known = [size_of(curve) for curve in curves]
    if args.parameters is not None:
        if len(args.parameters) != len(curves):
            raise UserError(
                f"--parameters must be one number a run, {len(curves)} (got {len(args.parameters)}), e.g. 60e6 124e6"
            )
        parameters, counted = args.parameters, "as given"
    else:
        parameters = [size.counted(args.count, c.name) for size, c in zip(known, curves, strict=True)]
        counted = {"all": "embedding and head counted", "body": "embedding and head not counted"}[args.count]
    tokens = {size.tokens_per_step for size in known if size.tokens_per_step}
    if args.tokens_per_step is None and len(tokens) > 1:
        raise UserError(f"the runs have mixed tokens an update ({', '.join(f'{n:.6g}' for n in sorted(tokens))})")
    costs = [size.flops_per_token for size in known]
    recorded = [cost for cost in costs if cost]
    return scale.fit(
        curves,
        parameters,
        tokens_per_step=args.tokens_per_step or next(iter(tokens), None),
        flops_per_token=recorded if len(recorded) == len(costs) else None,
        counted=counted,
    )


def run(args: argparse.Namespace) -> int:
    """Fit, write scale.json, print the tables, draw the figures."""
    from rich.console import Console

    from analysis.cli import _output, _tables
    from analysis.plots.scale_figures import draw_scale
    from analysis.schedules.compute_optimal import budgets, compute_optimal
    from rwkv_lab.util.io import write_json

    if not 0 < args.level < 1:
        raise UserError(f"--level must be between 0 and 1, e.g. 0.9 (got {args.level})")
    if (args.size is None) != (args.tokens is None and args.steps is None):
        raise UserError("--size and --tokens (or --steps) belong together, e.g. --size 350e6 --tokens 7e9")
    curves = load_given(args)
    _output.folder_for_results(args.out)
    law = fit_all(args, curves)
    content = law.to_dict()
    with _output.unwritten(str(args.out / "scale.json")):
        write_json(args.out / "scale.json", content)
    console = Console()
    print_fit(console, law, args.level)
    if args.size is not None:
        content["predicted"] = predict_size(console, law, args)
    best = [compute_optimal(law, flops, args.level) for flops in args.flops]
    if best:
        print_budgets(console, law, best)
        content["compute_optimal"] = [one.to_dict() for one in best]
    remarks = list(law.remarks)
    if not law.tokens_per_step:
        remarks.append("tokens of an update are unknown, so nothing is drawn against compute; give --tokens-per-step")
    _tables.print_remarks(console, remarks)
    with _output.unwritten(str(args.out / "scale.json")):
        write_json(args.out / "scale.json", content)

    def draw() -> list[str]:
        shown = budgets(law, args.flops) if law.tokens_per_step else []
        every = [compute_optimal(law, flops, args.level) for flops in shown]
        return draw_scale(args.out, law, every)

    figures = _output.drawn(draw)
    console.print(
        _output.listed(args.out, ["scale.json"], figures), soft_wrap=True, highlight=False, markup=False
    )  # fmt: skip
    return 0


def print_fit(console: "Console", law: "ScaleFit", level: float) -> None:
    """Print the formula, the parameters with errors, and the sizes with what the others predicted for them."""
    from rich.table import Table

    from analysis.fit.fitted_law import quantile
    from analysis.scale import FORMULA

    console.print(FORMULA, highlight=False, markup=False, soft_wrap=True)
    counts = f"N: parameters, {law.counted}; N0 = {law.posterior.scales.size:.4g}; S in ten thousand updates"
    console.print(
        f"{counts}; residuals {law.posterior.rms:.4f} nats (root mean square)\n", highlight=False, soft_wrap=True
    )
    table = Table(title="Parameters", title_justify="left", show_edge=False, pad_edge=False)
    for name in ("name", "value", "standard error", ""):
        table.add_column(name, justify="left" if name in ("name", "") else "right")
    resting = law.posterior.resting_on_prior()
    errors = law.posterior.errors()
    for name, value in law.parameters.items():
        table.add_row(name, f"{value:.4g}", f"{errors[name]:.2g}", "from its prior" if name in resting else "")
    console.print(table, "")
    title = f"Sizes, each predicted from the others ({level:.0%} intervals)"
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for name in ("parameters", "runs", "off the law", "error without it", "covered", "mean width"):
        table.add_column(name, justify="right")
    half = quantile(level) * law.inflation
    for size in law.sizes:
        own = [r for r in law.runs if r.parameters == size]
        errors_of = [(r.left_out - r.loss, half * (r.left_out_sd or 0)) for r in own if r.left_out is not None]
        row = ["-"] * 3
        if errors_of:
            n = len(errors_of)
            covered = sum(abs(error) <= h for error, h in errors_of)
            row = [f"{sum(abs(e) for e, _ in errors_of) / n:.4f}", f"{covered} of {n}"]
            row.append(f"{2 * sum(h for _, h in errors_of) / n:.3f}")
        table.add_row(f"{size:.4g}", str(len(own)), f"{law.posterior.own[size]:+.4f}", *row)
    console.print(table, "")
    if law.best_peaks:
        known = ", ".join(f"{peak:.3g} at {size:.4g}" for size, peak in sorted(law.best_peaks.items()))
        further = 4 * law.sizes[-1]
        then = f"; continued: {law.usual_peak(further):.3g} at {further:.3g}" if len(law.best_peaks) > 1 else ""
        console.print(f"best peak by size: {known}{then}\n", highlight=False, soft_wrap=True)


def predict_size(console: "Console", law: "ScaleFit", args: argparse.Namespace) -> dict[str, object]:
    """Print the loss of the size, tokens and schedule asked for; return it as plain data."""
    from analysis.cli import _tables

    per_step = law.tokens_per_step
    if args.steps is None:
        if not per_step:
            raise UserError("tokens of an update are unknown: give --tokens-per-step N, e.g. 102400, or --steps")
        args.steps = round(args.tokens / per_step)
    warmup = min(max(run.warmup for run in law.runs), args.steps // 10)
    lr = rates_of(args, law.usual_peak(args.size), warmup)
    prediction = law.predict(args.size, lr)
    peak, tokens = float(lr.max()), len(lr) * per_step if per_step else None
    low, high = prediction.interval(args.level)
    console.print(
        f"{args.size:.4g} parameters, {len(lr)} updates{f' ({tokens:.4g} tokens)' if tokens else ''}, {args.schedule} "
        f"with peak {peak:.3g} and end {lr[-1]:.3g}: "
        f"final loss {prediction.final_loss:.4f}, {args.level:.0%} interval {low:.4f} to {high:.4f}\n",
        highlight=False,
        soft_wrap=True,
    )
    _tables.print_remarks(console, prediction.remarks)
    return {
        "parameters": args.size, "tokens": tokens, "steps": len(lr), "schedule": args.schedule, "peak": peak,
        "final_loss": prediction.final_loss, "level": args.level, "interval": [low, high],
    }  # fmt: skip


def print_budgets(console: "Console", law: "ScaleFit", best: "list[IsoFlop]") -> None:
    """Print the best size and tokens of every budget, with intervals."""
    cost = "6 N a token" if law.flops_per_token[1] == 1.0 else "a power in N through what the runs recorded"
    console.print(
        f"Best size for a budget: wsd to 0 over its last fifth; FLOPs are {cost}", style="bold", soft_wrap=True
    )
    for one in best:
        size, tokens, loss = one.parameters_interval, one.tokens_interval, one.loss_interval
        console.print(
            f"{one.flops:.3g} FLOPs: {one.best_parameters:.3g} parameters ({size[0]:.2g} to {size[1]:.2g}), "
            f"{one.best_tokens:.3g} tokens ({tokens[0]:.2g} to {tokens[1]:.2g}), peak {one.peak:.2g}, "
            f"final loss {one.best_loss:.4f} ({loss[0]:.4f} to {loss[1]:.4f})",
            highlight=False,
            soft_wrap=True,
        )
        if one.edge:
            console.print("- this lies at the end of the sizes compared: the best is beyond", highlight=False)
    console.print("")
