"""``python -m analysis optimal FIT --steps N``"""

import argparse
from pathlib import Path

SUMMARY = "the best schedule by a fit, beside the usual ones"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("fit", type=Path, metavar="FIT", help="a fit.json, or its folder")
    parser.add_argument("--steps", type=int, required=True, help="length of the run in updates")
    parser.add_argument("--eta-max", type=float, help="highest rate allowed (default: the highest of the runs fitted)")
    parser.add_argument("--warmup", type=int, help="updates of linear warm-up (default: those of the first run)")
    parser.add_argument(
        "--kind", default="free", help="free (default), or the shape of a schedule: linear, cosine, wsd, ..."
    )
    parser.add_argument("--out", type=Path, help="folder for the results (default: the fit's)")


def run(args: argparse.Namespace) -> int:
    """Search, print the comparison, write the schedule and its figure."""
    from rich.console import Console

    from analysis.cli import _tables
    from analysis.fit import FittedModel
    from analysis.plots.fit_figures import draw_optimum
    from analysis.schedules import recommended

    path = args.fit / "fit.json" if args.fit.is_dir() else args.fit
    model = FittedModel.load(path)
    optimum, rates = recommended.propose(model, args.steps, args.eta_max, args.warmup, args.kind)
    console = Console()
    _tables.print_optimum(console, optimum, recommended.LEVEL)
    folder = args.out or path.parent
    folder.mkdir(parents=True, exist_ok=True)
    name = f"optimal_{args.kind}_{args.steps}"
    proposal = recommended.as_dict(model, optimum, rates)
    recommended.write_json(folder / f"{name}.json", {"fit": str(path), "trained": model.trained, "proposal": proposal})
    recommended.write_schedule(folder / "schedule.csv", rates, optimum.prediction.loss)
    figure = draw_optimum(folder, model, optimum, recommended.LEVEL, name)
    console.print(
        f"\nwritten to {folder}/: {name}.json, schedule.csv, {figure} (.png, .svg)", soft_wrap=True, highlight=False
    )
    _tables.print_command(console, folder / f"{name}.json", len(rates))
    return 0
