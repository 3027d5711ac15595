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
    from analysis.cli import _output, _tables
    from analysis.fit import FittedModel
    from analysis.plots.fit_figures import draw_optimum
    from analysis.schedules import recommended
    from rwkv_lab.util.io import write_json

    path = args.fit / "fit.json" if args.fit.is_dir() else args.fit
    model = FittedModel.load(path)
    folder = _output.folder_for_results(args.out or path.parent)
    with _output.busy("searching the best schedule"):
        optimum, rates = recommended.propose(model, args.steps, args.eta_max, args.warmup, args.kind)
    console = _tables.plain_console()
    _tables.print_optimum(console, optimum, recommended.LEVEL)
    name = f"optimal_{args.kind}_{args.steps}"
    proposal = recommended.as_dict(model, optimum, rates)
    with _output.unwritten(str(folder)):
        write_json(folder / f"{name}.json", {"fit": str(path), "trained": model.trained, "proposal": proposal})
        recommended.write_schedule(folder / "schedule.csv", rates, optimum.prediction.loss)
    figures = _output.drawn(lambda: [draw_optimum(folder, model, optimum, recommended.LEVEL, name)])
    written = _output.listed(folder, [f"{name}.json", "schedule.csv"], figures)
    console.print(written, soft_wrap=True)
    _tables.print_command(console, folder / f"{name}.json", len(rates), model.trained.get("overrides", ()))
    return 0
