"""``python -m analysis forecast RUN [--with RUN...]``"""

import argparse
from pathlib import Path

from rwkv_lab.config.errors import UserError

SUMMARY = "forecast the final loss of a run in progress"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("run", metavar="RUN", help="the run's directory, or its log with --schedule")
    parser.add_argument(
        "--with", dest="finished", nargs="+", default=[], metavar="RUN", help="finished runs of the same model and data"
    )
    parser.add_argument("--schedule", type=Path, metavar="CSV", help="rates of the whole run, a column lr (for a log)")
    parser.add_argument("--column", help="loss to forecast (default: loss, else val_loss if dense, else train_loss)")
    parser.add_argument(
        "--follow", action="store_true", help="keep RUN/forecast.json up to date until the run ends; prints nothing"
    )
    parser.add_argument("--level", type=float, default=0.9, help="of the interval (default: 0.9)")
    parser.add_argument("--ids", action="store_true", help="whole names of runs, with their ids")


def run(args: argparse.Namespace) -> int:
    """Print the forecast, or follow the run."""
    if args.follow:
        return follow_run(args.run)
    from rich.console import Console

    from analysis.cli import _tables
    from analysis.curves import lr_schedule_io
    from analysis.curves.loading import load_all
    from analysis.fit import fit_start
    from analysis.forecast import forecast

    running, *finished = load_all([args.run, *args.finished], args.ids, column=args.column)
    fit_start.check_alike([running, *finished])
    lr = lr_schedule_io.read_rates(args.schedule) if args.schedule else running.lr
    last = int(running.step[-1])
    if len(lr) <= last and args.schedule is None and not Path(args.run).is_dir():
        raise UserError(f"{args.run} is a log without its later rates: give them by --schedule FILE")
    prediction = forecast(running, lr, finished)
    console = Console()
    console.print(
        f"{running.name}: {last} of {len(lr)} updates done ({last / len(lr):.0%}), loss {running.loss[-1]:.4f}"
        f" ({running.meta.get('column', 'loss')})",
        highlight=False,
        soft_wrap=True,
    )
    low, high = prediction.interval(args.level)
    console.print(
        f"final loss {prediction.final_loss:.4f}, {args.level:.0%} interval {low:.4f} to {high:.4f}"
        f"{f', with {len(finished)} finished' if finished else ''}",
        highlight=False,
        soft_wrap=True,
    )
    _tables.print_remarks(console, prediction.remarks)
    return 0


def follow_run(path: str) -> int:
    """Follow a run at the lowest priority until it ends or standard input is closed."""
    import os
    import threading

    from analysis.forecast import follow
    from rwkv_lab.runs import load

    def wait() -> None:
        # Unbuffered: a thread that waits in sys.stdin would hold up the end of this process.
        while os.read(0, 4096):
            pass
        ended.set()

    os.nice(19)
    ended = threading.Event()
    threading.Thread(target=wait, daemon=True).start()
    follow(load(path).path, ended)
    return 0
