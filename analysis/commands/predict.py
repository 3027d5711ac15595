"""``python -m analysis predict FIT --schedule NAME --steps N``"""

import argparse
from pathlib import Path

from rwkv_lab.config.errors import UserError, nearest

NAMES = ("constant", "linear", "cosine", "exponential", "wsd")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("fit", type=Path, metavar="FIT", help="a fit.json, or the folder that holds one")
    parser.add_argument(
        "--schedule", required=True, help=f"{', '.join(NAMES)}, or a CSV with a column lr, one row an update"
    )
    parser.add_argument("--steps", type=int, help="length in updates; not for a CSV")
    parser.add_argument("--lr-init", type=float, help="rate after warm-up (default: the highest of the runs fitted)")
    parser.add_argument("--lr-final", type=float, help="rate of the last update (default: a tenth of --lr-init)")
    parser.add_argument("--warmup-steps", type=int, help="updates of linear rise (default: those of the first run)")
    parser.add_argument("--decay-fraction", type=float, help="wsd: share of the run that decays (default 0.2)")
    parser.add_argument("--decay-shape", help="wsd: linear, cosine or exponential (default linear)")
    parser.add_argument("--level", type=float, default=0.9, help="of the interval (default 0.9)")
    parser.add_argument("--out", type=Path, help="folder for the results (default: the fit's)")


def fit_path(path: Path) -> Path:
    return path / "fit.json" if path.is_dir() else path


def rates_of(args: argparse.Namespace, peak: float, warmup: int):
    """The rates asked for, every update's."""
    import numpy as np

    from analysis.fit import as_rates
    from analysis.tables import RATE_NAMES, pick, read_csv

    if args.schedule.endswith(".csv"):
        if not Path(args.schedule).is_file():
            raise UserError(f"--schedule: no such file {args.schedule}")
        columns = read_csv(Path(args.schedule))
        name = pick(columns, RATE_NAMES)
        if name is None:
            raise UserError(f"{args.schedule}: no column lr; it has {', '.join(columns)}")
        return np.asarray(as_rates(columns[name], None, {}))
    if args.schedule not in NAMES:
        raise UserError(
            f"--schedule: unknown '{args.schedule}'{nearest(args.schedule, NAMES)}; choose one of {', '.join(NAMES)}, "
            "or a CSV file"
        )
    lr_init = peak if args.lr_init is None else args.lr_init
    parameters = {"lr_init": lr_init, "warmup_steps": warmup if args.warmup_steps is None else args.warmup_steps}
    if args.schedule != "constant":
        parameters["lr_final"] = lr_init / 10 if args.lr_final is None else args.lr_final
    for name in ("decay_fraction", "decay_shape"):
        value = getattr(args, name)
        if value is not None:
            parameters[name] = value
    return as_rates(args.schedule, args.steps, parameters)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console

    from analysis import proposal, report
    from analysis.figures import draw_prediction
    from analysis.fit import Fit

    path = fit_path(args.fit)
    fit = Fit.load(path)
    prediction = fit.predict(rates_of(args, fit.reference, fit.runs[0].warmup))
    console = Console()
    name = Path(args.schedule).stem
    report.print_prediction(console, name, prediction, args.level)
    folder = args.out or path.parent
    folder.mkdir(parents=True, exist_ok=True)
    proposal.write_schedule(folder / f"predicted_{name}.csv", prediction.eta, prediction.loss)
    figure = draw_prediction(folder, fit, name, prediction, args.level)
    console.print(
        f"\nwritten to {folder}/: predicted_{name}.csv, {figure} (.png, .svg)", soft_wrap=True, highlight=False
    )
    return 0
