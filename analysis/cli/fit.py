"""``python -m analysis fit RUN_OR_CSV...``"""

import argparse
from pathlib import Path

from rwkv_lab.config.errors import UserError

SUMMARY = "fit a law of loss against learning rate to the curves of runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN_OR_CSV",
        help="run directories or folders of them, CSV or JSONL files with step, lr and loss, .wandb files, "
        "wandb:ENTITY/PROJECT/ID",
    )
    parser.add_argument(
        "--law",
        default="auto",
        help="auto (default), the level law with a prior over families, or one law; docs/laws.md lists them",
    )
    parser.add_argument("--window", default="auto", help="first step to fit (default: auto, chosen by prediction)")
    parser.add_argument("--column", help="loss to fit (default: loss, else val_loss if dense, else train_loss)")
    parser.add_argument(
        "--schedules",
        type=Path,
        metavar="FILE",
        help="schedules of tables without a column lr (default: schedules.json beside each)",
    )
    parser.add_argument("--step-column", metavar="NAME", help="column that counts updates (default: step or its like)")
    parser.add_argument(
        "--tokens-per-step", type=int, metavar="N", help="if that column counts tokens: tokens of one update"
    )
    parser.add_argument("--fitted", action="store_true", help="also fit runs that were trained from a fit")
    parser.add_argument("--ids", action="store_true", help="whole names of runs, with their ids")
    parser.add_argument("--out", type=Path, default=Path("fit"), help="folder for the results (default: fit)")


def expand(path: str) -> list[str]:
    """Return the runs below a folder, by name, none if it has none; ``path`` itself if it is a run or a file."""
    folder = Path(path)
    if folder.is_dir() and not (folder / "metrics.csv").is_file() and not list(folder.glob("*.wandb")):
        return sorted(str(metrics.parent) for metrics in folder.glob("**/metrics.csv"))
    return [path]


def load_given(args: argparse.Namespace) -> tuple[list, list[str]]:
    """Return the curves to fit, and a sentence on what was passed over: folders without runs, runs of a fit."""
    from analysis.curves.loading import Reading, load_all

    paths = {given: expand(given) for given in args.runs}
    empty = [given for given, found in paths.items() if not found]
    if len(empty) == len(paths):
        raise UserError(f"{', '.join(empty)} has no run below it (no metrics.csv)")
    reading = Reading(args.step_column, args.tokens_per_step)
    every = [path for found in paths.values() for path in found]
    curves = load_all(every, args.ids, column=args.column, schedules=args.schedules, reading=reading)
    fitted = [curve for curve in curves if curve.meta.get("fitted")]
    notes = [f"passed over, for it has no runs: {', '.join(empty)}"] if empty else []
    if fitted and not args.fitted and len(fitted) < len(curves):
        curves = [curve for curve in curves if curve not in fitted]
        names = ", ".join(curve.name for curve in fitted)
        notes.append(f"left out, for they were trained from a fit (--fitted takes them in): {names}")
    return curves, notes


def window_of(text: str) -> int | str:
    """Parse ``--window``."""
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"--window must be auto or a step, e.g. 2000 (got '{text}')") from error


def run(args: argparse.Namespace) -> int:
    """Fit, print the tables, write fit.json, schedule.csv and the figures."""
    from analysis.cli import _output, _tables
    from analysis.fit import fit
    from analysis.laws import registry
    from analysis.plots.fit_figures import draw_fit
    from analysis.schedules import recommended
    from rwkv_lab.util.io import write_json

    registry.check_fittable(args.law)
    window = window_of(args.window)
    curves, notes = load_given(args)
    _output.folder_for_results(args.out)
    with _output.busy(f"fitting {len(curves)} {'run' if len(curves) == 1 else 'runs'}"):
        result = fit(curves, args.law, window)
        content = result.model.to_dict()
    optimum, files = None, ["fit.json"]
    # Before the proposal, which may fail.
    with _output.unwritten(str(args.out / "fit.json")):
        write_json(args.out / "fit.json", content)
    console = _tables.plain_console()
    _tables.print_remarks(console, notes)
    _tables.print_fit(console, result)
    try:
        with _output.busy("searching the best schedule"):
            optimum, rates = recommended.propose(result.model, max(run.steps for run in result.runs))
    except UserError as error:
        _tables.print_remarks(console, [f"no schedule is proposed: {error}"])
    else:
        _tables.print_optimum(console, optimum, recommended.LEVEL)
        content["proposal"] = recommended.as_dict(result.model, optimum, rates)
        files.append("schedule.csv")
        with _output.unwritten(str(args.out)):
            write_json(args.out / "fit.json", content)
            recommended.write_schedule(args.out / "schedule.csv", rates, optimum.prediction.loss)
    figures = _output.drawn(lambda: draw_fit(args.out, result, optimum, recommended.LEVEL))
    console.print(_output.listed(args.out, files, figures), soft_wrap=True)
    if optimum:
        overrides = content["trained"].get("overrides", ())
        _tables.print_command(console, args.out / "fit.json", optimum.steps, overrides)
    return 0
