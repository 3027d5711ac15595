"""``python -m analysis fit RUN_OR_CSV...``"""

import argparse
from pathlib import Path

from rwkv_lab.config.errors import UserError

LAWS = ("auto", "variational", "vplus", "annealing", "multi_power", "functional")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN_OR_CSV",
        help="run directories or folders of them, CSV or JSONL files with step, lr and loss, .wandb files, "
        "wandb:ENTITY/PROJECT/ID",
    )
    parser.add_argument("--law", default="auto", help=f"{', '.join(LAWS)} (default auto, a mixture)")
    parser.add_argument("--window", default="auto", help="first step that counts (default auto: chosen by prediction)")
    parser.add_argument("--column", help="the loss to fit (default: loss, else val_loss where dense, else train_loss)")
    parser.add_argument("--out", type=Path, default=Path("fit"), help="folder for the results (default fit)")


def expand(path: str) -> list[str]:
    """The runs below a folder that is none itself, in order of their names."""
    folder = Path(path)
    if folder.is_dir() and not (folder / "metrics.csv").is_file() and not list(folder.glob("*.wandb")):
        found = sorted(str(metrics.parent) for metrics in folder.glob("**/metrics.csv"))
        if not found:
            raise UserError(f"{path}: no run below this folder (no metrics.csv)")
        return found
    return [path]


def window_of(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"--window: must be 'auto' or a whole number, not '{text}'") from error


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from analysis import proposal, report
    from analysis.curves import load
    from analysis.figures import draw_fit
    from analysis.fit import fit

    window = window_of(args.window)
    curves = [load(path, args.column) for given in args.runs for path in expand(given)]
    result = fit(curves, args.law, window)
    console = Console()
    report.print_fit(console, result)
    content = result.to_dict()
    args.out.mkdir(parents=True, exist_ok=True)
    optimum = rates = None
    if result.law == "annealing":
        console.print("- no schedule is proposed: the annealing law's own best one is bang-bang; fit auto or vplus")
    else:
        optimum, rates = proposal.propose(result, max(run.steps for run in result.runs))
        report.print_optimum(console, optimum, proposal.LEVEL)
        content["proposal"] = proposal.as_dict(result, optimum, rates)
        proposal.write_schedule(args.out / "schedule.csv", rates, optimum.prediction.loss)
    proposal.write_json(args.out / "fit.json", content)
    figures = draw_fit(args.out, result, optimum, proposal.LEVEL)
    console.print(
        f"\nwritten to {args.out}/: fit.json{', schedule.csv' if optimum else ''}, {', '.join(figures)} (.png, .svg)",
        soft_wrap=True,
        highlight=False,
    )
    if optimum:
        console.print(
            "train the proposal: python run.py schedule=fitted "
            f"schedule.fit={args.out}/fit.json trainer.steps={optimum.steps}",
            soft_wrap=True,
            highlight=False,
        )
    return 0
