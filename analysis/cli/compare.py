"""``python -m analysis compare``: the table, the figures and the page that compare runs."""

import argparse
import os
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.cli import _output
from rwkv_lab.config.errors import UserError
from rwkv_lab.util.paths import as_typed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analysis.compare.records import Record
    from analysis.compare.summary import Comparison
    from rwkv_lab.tracking.tracker import Publishes

SUMMARY = "the table, the figures and the page that compare runs"
PAGE = "compare.html"
LEVEL = 0.05
AXES = ("tokens", "seconds", "flops")
DEFAULTS = {"metric": "final", "baseline": None, "noise": "own", "level": LEVEL} | dict.fromkeys(
    [f"at_{axis}" for axis in AXES]
)  # fmt: skip


def amount(text: str) -> float:
    """Parse ``2M``, ``2e6`` or ``12.5``; argparse reports any other text."""
    from rwkv_lab.util.units import parse_count

    try:
        return float(parse_count(text))
    except ValueError as error:
        message = str(error)
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be {message}")
    return value


def probability(text: str) -> float:
    """Parse a number between 0 and 1, both excluded."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, e.g. {LEVEL} (got {text})")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a run, the folder of a study, or runs/ itself")
    parser.add_argument("--out", metavar="DIR", help="folder for the files (default: compare/ in the study's folder)")
    parser.add_argument(
        "--metric",
        choices=("final", *AXES),
        help="rank and test by the final value (default), or by the value at equal tokens, seconds or FLOPs",
    )
    parser.add_argument("--baseline", metavar="GROUP", help="test every group against this one, not every pair")
    parser.add_argument(
        "--noise",
        choices=("own", "shared"),
        help="seed noise from each group's own seeds (default), or one for all groups, which assumes more and shows "
        "smaller differences",
    )
    parser.add_argument(
        "--level", type=probability, metavar="P", help=f"adjusted p below which a difference counts (default: {LEVEL})"
    )
    for axis in AXES:
        name = "FLOPs" if axis == "flops" else axis
        parser.add_argument(
            f"--at-{axis}",
            type=amount,
            metavar="N",
            help=f"compare at N training {name} (default: the most that all finished runs have spent)",
        )
    parser.add_argument("--watch", action="store_true", help="write the page anew while the runs go on")
    parser.add_argument(
        "--serve",
        type=int,
        nargs="?",
        const=0,
        metavar="PORT",
        help="with --watch: serve the page on 127.0.0.1, to this machine only (default: a free port)",
    )
    parser.add_argument("--to", metavar="TRACKER", help="record tables, figures and page there too, e.g. wandb")
    parser.add_argument("--ids", action="store_true", help="whole names of runs, with their ids")
    parser.set_defaults(**DEFAULTS)


def output_folder(paths: list[str], out: str | None) -> Path:
    """Return ``--out``, else ``compare/`` in the folder of the study or in the one above all the studies."""
    from rwkv_lab.runs import is_run

    if out is not None:
        folder = Path(out)
    else:
        places = [Path(path).resolve() for path in paths]
        above = Path(os.path.commonpath([place.parent if is_run(place) else place for place in places]))
        if above == above.parent:
            raise UserError("the paths have only the root folder in common; give a folder with --out DIR")
        folder = above / "compare"
    if is_run(folder):
        raise UserError(f"--out {folder} is a run directory; give another folder")
    return _output.folder_for_results(folder)


def command_of(args: argparse.Namespace) -> str:
    """Return the command line that makes the same comparison again."""
    options = {name: getattr(args, name) for name, default in DEFAULTS.items() if getattr(args, name) != default}
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return as_typed("python -m analysis compare ") + shlex.join([*args.paths, *words])


def title_of(paths: list[str]) -> str:
    """Return the names of the studies or runs compared, as typed."""
    names = [Path(path).resolve().name for path in paths]
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"


def run(args: argparse.Namespace) -> int:
    """Compare, print the tables, write the files and print where they are."""
    from analysis.compare import tables
    from analysis.compare.figures import write_figures
    from analysis.compare.page import render
    from rwkv_lab.util.console import say
    from rwkv_lab.util.io import write_atomic

    if args.serve is not None and not args.watch:
        raise UserError("--serve needs --watch: a page that does not change is opened as a file")
    if args.to is not None:
        _tracker(args.to)  # an unknown one is named before anything is drawn
    comparison = _compared(args)
    folder = output_folder(args.paths, args.out)
    if args.watch:
        _watch(args, folder / PAGE)
        comparison = _compared(args)
    command = command_of(args)
    texts = {
        PAGE: render(comparison, command, _now()),
        "compare.md": tables.markdown(comparison, command),
        "groups.csv": tables.groups_csv(comparison),
        "pairs.csv": tables.pairs_csv(comparison),
        "runs.csv": tables.runs_csv(comparison),
    }
    for name, text in texts.items():
        with _output.unwritten(str(folder / name)):
            write_atomic(folder / name, text.encode(errors="replace"))
    tables.print_terminal(comparison)
    figures = _output.drawn(lambda: [path.stem for path in write_figures(comparison, folder)])
    near = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    say(f"\npage     {near / PAGE}")
    say(f"tables   {near}/: {', '.join(name for name in texts if name != PAGE)}")
    if figures:
        say(f"figures  {near}/: {', '.join(dict.fromkeys(figures))} (.png, .svg, .pdf)")
    if args.to is not None:
        say(f"{args.to:<8} {_tracker(args.to, comparison.records).publish(folder, comparison.title)}")
    return 0


def _tracker(name: str, records: "Sequence[Record]" = ()) -> "Publishes":
    """Return the settings of a tracker: those of the first run that used it, else its own defaults."""
    from rwkv_lab.config import registry
    from rwkv_lab.runs import Run
    from rwkv_lab.tracking.tracker import Publishes, settings_of

    owner = registry.get("tracker", name, "--to")
    if not issubclass(owner, Publishes):
        able = [each for each, member in registry.members("tracker").items() if issubclass(member, Publishes)]
        raise UserError(f"--to {name} takes no comparison: choose one of {', '.join(able)}")
    used = (record for record in records if (record.config.get("tracker") or {}).get("name") == name)
    first = next(used, None)
    settings = owner() if first is None else settings_of(Run(first.path))
    assert isinstance(settings, Publishes)
    return settings


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _compared(args: argparse.Namespace) -> "Comparison":
    """Return the comparison of the runs as they are now."""
    from analysis.compare.records import collect
    from analysis.compare.summary import Criteria, compare
    from rwkv_lab.runs.provenance import code_fingerprint

    records = collect(args.paths, code_fingerprint(), args.ids)
    wanted = {axis: getattr(args, f"at_{axis}") for axis in AXES}
    budgets = {axis: value for axis, value in wanted.items() if value is not None}
    criteria = Criteria(args.metric, args.baseline, args.level, args.noise == "shared")
    return compare(title_of(args.paths), records, budgets, criteria)


def _watch(args: argparse.Namespace, page: Path) -> None:
    """Write the page whenever the runs change, until they are over or Ctrl-C; serve it if that is asked for."""
    from analysis.compare import live
    from analysis.compare.page import render
    from rwkv_lab.util.console import say
    from rwkv_lab.util.io import write_atomic

    def write(going: bool) -> None:
        text = render(_compared(args), command_of(args), _now(), live.REFRESH if going else None)
        with _output.unwritten(str(page)):
            write_atomic(page, text.encode(errors="replace"))

    write(True)
    if args.serve is None:
        say(f"watching; the page is {page} (Ctrl-C ends)")
        live.follow(args.paths, write)
        return
    with live.served(page, args.serve) as address:
        say(f"watching; the page is served at {address}, to this machine only (Ctrl-C ends)")
        live.follow(args.paths, write)
