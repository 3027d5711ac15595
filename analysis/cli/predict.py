"""``python -m analysis predict FIT --schedule NAME --steps N``"""

import argparse
import inspect
from pathlib import Path
from typing import TYPE_CHECKING

from rwkv_lab.errors import Mistake, nearest

if TYPE_CHECKING:
    import numpy as np

SUMMARY = "the loss that a fit predicts for a schedule, with its interval"
PARAMETERS = ("lr_init", "lr_final", "warmup_steps", "decay_fraction", "decay_shape")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("fit", type=Path, metavar="FIT", help="a fit.json, or its folder")
    parser.add_argument(
        "--schedule",
        required=True,
        help="a schedule by name (linear, cosine, wsd, ...), a CSV with a column lr and one row an update, or a name "
        "in the file given by --schedules",
    )
    parser.add_argument("--schedules", type=Path, metavar="FILE", help="a file of schedules, as schedules.json")
    parser.add_argument("--steps", type=int, help="length in updates, for a schedule by name")
    parser.add_argument("--lr-init", type=float, help="rate after warm-up (default: the highest of the runs fitted)")
    parser.add_argument("--lr-final", type=float, help="rate of the last update (default: a tenth of --lr-init)")
    parser.add_argument("--warmup-steps", type=int, help="updates of linear warm-up (default: those of the first run)")
    parser.add_argument("--decay-fraction", type=float, help="wsd: share of the run that decays (default: 0.2)")
    parser.add_argument("--decay-shape", help="wsd: shape of the decay (default: linear)")
    parser.add_argument("--level", type=float, default=0.9, help="level of the interval (default: 0.9)")
    parser.add_argument("--out", type=Path, help="folder for the results (default: the fit's)")


def names() -> list[str]:
    """Return the schedules that ``PARAMETERS`` describe."""
    from rwkv_lab.training import schedules

    found = []
    for name, schedule in schedules.SCHEDULES.items():
        parameters = inspect.signature(schedule).parameters.values()
        required = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty}
        if required <= set(PARAMETERS):
            found.append(name)
    return found


def rates_of(args: argparse.Namespace, peak: float, warmup: int) -> "np.ndarray":
    """Return the rate of every update; ``peak`` and ``warmup`` are defaults."""
    from analysis.curves import lr_schedule_io, tables
    from analysis.fit.model import as_rates
    from rwkv_lab.training import schedules

    if args.schedules is not None:
        rates = lr_schedule_io.schedules_file(Path(args.schedule), args.schedules)
        if rates is None:
            raise Mistake(f"--schedules {args.schedules} has no schedule '{args.schedule}'")
        return rates
    if args.schedule.endswith(".csv"):
        if not Path(args.schedule).is_file():
            raise Mistake(f"--schedule {args.schedule}: no such file")
        columns = tables.read_csv(Path(args.schedule))
        name = tables.pick(columns, tables.RATE_NAMES)
        if name is None:
            raise Mistake(f"{args.schedule} has no column lr; it has {', '.join(columns)}")
        return as_rates(columns[name], None, {})
    known = names()
    if args.schedule not in known:
        raise Mistake(
            f"--schedule '{args.schedule}' is unknown{nearest(args.schedule, known)}; choose one of "
            f"{', '.join(known)}, or a CSV file"
        )
    taken = inspect.signature(schedules.SCHEDULES[args.schedule]).parameters
    lr_init = peak if args.lr_init is None else args.lr_init
    defaults = {"lr_init": peak, "lr_final": lr_init / 10, "warmup_steps": warmup}
    parameters = {}
    for name in PARAMETERS:
        value = getattr(args, name)
        if value is not None and name not in taken and name.startswith("decay"):
            raise Mistake(f"--{name.replace('_', '-')} does not apply to --schedule {args.schedule}")
        value = defaults.get(name) if value is None else value
        if value is not None and name in taken:
            parameters[name] = value
    return as_rates(args.schedule, args.steps, parameters)


def run(args: argparse.Namespace) -> int:
    """Predict, print the final loss with its interval, write the curve and its figure."""
    from rich.console import Console

    from analysis.cli import _tables
    from analysis.fit import FittedModel
    from analysis.plots.fit_figures import draw_prediction
    from analysis.schedules import recommended

    path = args.fit / "fit.json" if args.fit.is_dir() else args.fit
    model = FittedModel.load(path)
    prediction = model.predict(rates_of(args, model.reference, model.runs[0].warmup))
    console = Console()
    name = Path(args.schedule).stem
    _tables.print_prediction(console, name, prediction, args.level)
    folder = args.out or path.parent
    folder.mkdir(parents=True, exist_ok=True)
    recommended.write_schedule(folder / f"predicted_{name}.csv", prediction.lr, prediction.loss)
    figure = draw_prediction(folder, model, name, prediction, args.level)
    console.print(
        f"\nwritten to {folder}/: predicted_{name}.csv, {figure} (.png, .svg)", soft_wrap=True, highlight=False
    )
    return 0
