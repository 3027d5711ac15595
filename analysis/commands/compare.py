"""``python -m analysis compare``: the table, the figures and the page that compare runs."""

import argparse
import os
import shlex
from datetime import UTC, datetime
from pathlib import Path

from rwkv_lab.config.errors import UserError

PAGE = "compare.html"
LEVEL = 0.05
SUFFIXES = {"k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}


def quantity(text: str) -> float:
    """``2M``, ``2e6`` or ``2000000`` as a number above 0; argparse reports anything else."""
    factor = SUFFIXES.get(text[-1:], 1.0)
    try:
        value = float(text[:-1] if text[-1:] in SUFFIXES else text) * factor
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a quantity such as 2000000, 2e6 or 2M") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' must be above 0 and finite")
    return value


def probability(text: str) -> float:
    """A number between 0 and 1, both excluded."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number between 0 and 1")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a run, the folder of a study, or runs/ itself")
    parser.add_argument("--out", metavar="DIR", help="where the files go (default: compare/ in the study's folder)")
    parser.add_argument(
        "--metric",
        choices=("final", "tokens", "seconds", "flops"),
        default="final",
        help="rank and judge by the final value (default), or by that at equal tokens, seconds or FLOPs",
    )
    parser.add_argument("--baseline", metavar="GROUP", help="judge every group against this one, not every pair")
    parser.add_argument(
        "--noise",
        choices=("own", "shared"),
        default="own",
        help="seed noise from each group's own seeds (default), or one for all groups: sees smaller differences, "
        "assumes more",
    )
    parser.add_argument(
        "--level",
        type=probability,
        default=LEVEL,
        metavar="P",
        help=f"adjusted p below which a difference exceeds the noise (default {LEVEL})",
    )
    for axis, what in (("tokens", "training tokens"), ("seconds", "training seconds"), ("flops", "training FLOPs")):
        parser.add_argument(
            f"--at-{axis}",
            type=quantity,
            metavar="N",
            help=f"compare at N {what} (default: the most that all finished runs have spent)",
        )


def output_folder(paths: list[str], out: str | None) -> Path:
    """``--out``, else ``compare/`` in the folder of the study, or in the one that holds all the studies."""
    from rwkv_lab.runs import is_run

    if out is not None:
        folder = Path(out)
    else:
        places = [Path(path).resolve() for path in paths]
        above = Path(os.path.commonpath([place.parent if is_run(place) else place for place in places]))
        if above == above.parent:
            raise UserError("the paths have no folder in common but the root: say with --out DIR where the files go")
        folder = above / "compare"
    if is_run(folder):
        raise UserError(f"--out {folder} is a run directory; name a folder that is none")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be made: {error.strerror}") from None
    return folder


def command_of(args: argparse.Namespace) -> str:
    """The command line that makes the same comparison again."""
    defaults = argparse.ArgumentParser()
    add_arguments(defaults)
    chosen = {name: value for name, value in vars(args).items() if name not in ("paths", "out")}
    options = {name: value for name, value in chosen.items() if value != defaults.get_default(name)}
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return "python -m analysis " + shlex.join(["compare", *args.paths, *words])


def title_of(paths: list[str]) -> str:
    """What is compared: the names of the studies or runs, as typed."""
    names = [Path(path).resolve().name for path in paths]
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"


def run(args: argparse.Namespace) -> int:
    """Compares, prints the table, writes the files and prints where they are."""
    from analysis.comparison import report
    from analysis.comparison.collect import collect
    from analysis.comparison.figures import write_figures
    from analysis.comparison.page import render
    from analysis.comparison.summary import Judging, compare
    from rwkv_lab.runs.provenance import code_fingerprint
    from rwkv_lab.util.paths import write_atomic

    records = collect(args.paths, code_fingerprint())
    wanted = {"tokens": args.at_tokens, "seconds": args.at_seconds, "flops": args.at_flops}
    budgets = {axis: value for axis, value in wanted.items() if value is not None}
    judging = Judging(args.metric, args.baseline, args.level, args.noise == "shared")
    comparison = compare(title_of(args.paths), records, budgets, judging)
    folder = output_folder(args.paths, args.out)
    command = command_of(args)
    texts = {
        PAGE: render(comparison, command, datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")),
        "compare.md": report.markdown(comparison, command),
        "groups.csv": report.groups_csv(comparison),
        "pairs.csv": report.pairs_csv(comparison),
        "runs.csv": report.runs_csv(comparison),
    }
    report.print_terminal(comparison)
    for name, text in texts.items():
        try:
            write_atomic(folder / name, text.encode(errors="replace"))
        except OSError as error:
            raise UserError(f"{folder / name} cannot be written: {error.strerror}") from None
    figures = write_figures(comparison, folder)
    near = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    drawn = dict.fromkeys(path.stem for path in figures)
    print(f"\npage     {near / PAGE}")
    print(f"tables   {near}/: {', '.join(name for name in texts if name != PAGE)}")
    print(f"figures  {near}/: {', '.join(drawn)} (.png, .svg)")
    return 0
