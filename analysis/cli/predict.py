"""``python -m analysis predict FIT --schedule NAME --steps N``"""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkv_lab.config.errors import UserError, nearest

if TYPE_CHECKING:
    import numpy as np

SUMMARY = "the loss that a fit predicts for a schedule, with its interval"
FLAGS = ("lr_init", "lr_final", "warmup_steps", "decay_fraction", "decay_shape")


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
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any other field of the schedule; repeatable"
    )
    parser.add_argument("--level", type=float, default=0.9, help="level of the interval (default: 0.9)")
    parser.add_argument("--out", type=Path, help="folder for the results (default: the fit's)")


def rates_of(args: argparse.Namespace, peak: float, warmup: int) -> "np.ndarray":
    """Return the rate of every update; ``peak`` and ``warmup`` are defaults."""
    from analysis.curves import lr_schedule_io
    from analysis.fit.model import as_rates
    from rwkv_lab.config import registry

    if args.schedules is not None:
        rates = lr_schedule_io.schedules_file(Path(args.schedule), args.schedules)
        if rates is None:
            raise UserError(f"--schedules {args.schedules} has no schedule '{args.schedule}'")
        return rates
    if args.schedule.endswith(".csv"):
        return lr_schedule_io.read_rates(Path(args.schedule))
    known = registry.names("schedule")
    if args.schedule not in known:
        raise UserError(
            f"--schedule '{args.schedule}' is unknown{nearest(args.schedule, known)}; choose one of "
            f"{', '.join(known)}, or a CSV file"
        )
    taken = {field.name for field in fields(registry.get("schedule", args.schedule))}
    given = {name: value for name in FLAGS if (value := getattr(args, name)) is not None} | dict(map(setting, args.set))
    unknown = [name for name in given if name not in taken]
    if unknown:
        raise UserError(
            f"schedule {args.schedule} has no field {unknown[0]}; it has {', '.join(sorted(taken - {'name'}))}"
        )
    lr_init = given.get("lr_init", peak)
    defaults = {"lr_init": lr_init, "lr_final": lr_init / 10, "warmup_steps": warmup}
    parameters = {name: value for name, value in defaults.items() if name in taken} | given
    return as_rates(args.schedule, args.steps, parameters)


def setting(text: str) -> tuple[str, Any]:
    """Parse ``--set KEY=VALUE``, VALUE in YAML."""
    import yaml

    key, equals, value = text.partition("=")
    try:
        if not equals:
            raise ValueError
        return key, yaml.safe_load(value)
    except (ValueError, yaml.YAMLError):
        raise UserError(f"--set must be KEY=VALUE, e.g. decay_power=3 (got {text})") from None


def run(args: argparse.Namespace) -> int:
    """Predict, print the final loss with its interval, write the curve and its figure."""
    from analysis.cli import _output, _tables
    from analysis.fit import FittedModel
    from analysis.plots.fit_figures import draw_prediction
    from analysis.schedules import recommended

    path = args.fit / "fit.json" if args.fit.is_dir() else args.fit
    model = FittedModel.load(path)
    prediction = model.predict(rates_of(args, model.reference, model.runs[0].warmup))
    console = _tables.plain_console()
    name = Path(args.schedule).stem
    _tables.print_prediction(console, name, prediction, args.level)
    folder = _output.folder_for_results(args.out or path.parent)
    with _output.unwritten(str(folder / f"predicted_{name}.csv")):
        recommended.write_schedule(folder / f"predicted_{name}.csv", prediction.lr, prediction.loss)
    figures = _output.drawn(lambda: [draw_prediction(folder, model, name, prediction, args.level)])
    written = _output.listed(folder, [f"predicted_{name}.csv"], figures)
    console.print(written, soft_wrap=True)
    return 0
