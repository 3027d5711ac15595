"""``python -m analysis optimal FIT --steps N``"""

import argparse
from pathlib import Path

KINDS = ("free", "linear", "exponential", "cosine", "wsd")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("fit", type=Path, metavar="FIT", help="a fit.json, or the folder that holds one")
    parser.add_argument("--steps", type=int, required=True, help="length of the run in updates")
    parser.add_argument("--eta-max", type=float, help="highest rate allowed (default: the highest of the runs fitted)")
    parser.add_argument("--warmup", type=int, help="updates of linear rise (default: those of the first run)")
    parser.add_argument("--kind", default="free", help=f"{', '.join(KINDS)} (default free)")
    parser.add_argument("--out", type=Path, help="folder for the results (default: the fit's)")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from analysis.cli import report
    from analysis.cli.predict import fit_path
    from analysis.fit import Fit
    from analysis.plots.fit_figures import draw_optimum
    from analysis.schedules import recommended

    path = fit_path(args.fit)
    fit = Fit.load(path)
    optimum, rates = recommended.propose(fit, args.steps, args.eta_max, args.warmup, args.kind)
    console = Console()
    report.print_optimum(console, optimum, recommended.LEVEL)
    folder = args.out or path.parent
    folder.mkdir(parents=True, exist_ok=True)
    name = f"optimal_{args.kind}_{args.steps}"
    recommended.write_json(
        folder / f"{name}.json", {"fit": str(path), "proposal": recommended.as_dict(fit, optimum, rates)}
    )
    recommended.write_schedule(folder / "schedule.csv", rates, optimum.prediction.loss)
    figure = draw_optimum(folder, fit, optimum, recommended.LEVEL, name)
    console.print(
        f"\nwritten to {folder}/: {name}.json, schedule.csv, {figure} (.png, .svg)", soft_wrap=True, highlight=False
    )
    console.print(
        f"train it: python run.py schedule=fitted schedule.fit={folder}/{name}.json trainer.steps={len(rates)}",
        soft_wrap=True,
        highlight=False,
    )
    return 0
