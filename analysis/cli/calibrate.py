"""``python -m analysis calibrate CURVES... [--write FILE]``"""

import argparse
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rwkv_lab.config.errors import UserError, nearest

WIDTH = 110  # of the table
SUMMARY = "measure the laws on families of runs: errors and coverage on what is held out"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "curves",
        nargs="+",
        metavar="CURVES",
        help="folders of families: with a schedules.json beside the logs, folders of such folders, or run directories",
    )
    parser.add_argument("--laws", nargs="*", default=[], metavar="LAW", help="other laws to compare, e.g. vplus")
    parser.add_argument("--cases", type=int, default=12, help="cases of one cell and family at most (default: 12)")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=NUMBER",
        help="try other constants that are chosen rather than measured, e.g. data.independent=6",
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the constants measured, as JSON")


def run(args: argparse.Namespace) -> int:
    """Print errors and coverage by cell and family, and the constants; write them if asked."""
    from rich.console import Console
    from rich.table import Table

    from analysis import constants
    from analysis.calibrate import measure
    from analysis.calibrate.families import families
    from analysis.laws import registry
    from rwkv_lab.util.io import write_json

    for law in args.laws:
        registry.get(law)
    known = families(args.curves)
    console = Console(width=max(Console().width, WIDTH))
    title = "Final losses, each family predicted with the prior of the other groups (milli-nats)"
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for name in ("cell", "family", "law", "cases", "mean error", "bias", "covered", "width / error"):
        table.add_column(name, justify="left" if name in ("cell", "family", "law") else "right", no_wrap=True)
    with console.status("fitting"):
        outcomes, numbers = measure.left_out(known, changed(constants.shipped(), args.set), args.cases, args.laws)
    for row in measure.summary(outcomes):
        table.add_row(
            row.cell,
            row.family,
            row.law,
            str(row.cases),
            f"{1e3 * row.error:.1f}",
            f"{1e3 * row.bias:+.1f}",
            f"{row.covered:.0%}",
            f"{row.width / max(row.error, 1e-9):.1f}",
        )
    console.print(table)
    prior = numbers["prior"]
    pairs = ", ".join(f"{name} {mean:.3g} ({prior['sd'][name]:.2g})" for name, mean in prior["mean"].items())
    console.print(f"\nprior of all families, mean (spread): {pairs}", soft_wrap=True, highlight=False)
    factors = ", ".join(f"{mode} {value:.2f}" for mode, value in numbers["interval"]["factor"].items())
    console.print(f"factors of the intervals: {factors}", soft_wrap=True, highlight=False)
    if args.write:
        write_json(args.write, numbers)
        console.print(f"written to {args.write}", soft_wrap=True, highlight=False)
    return 0


def changed(numbers: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Return the constants with those named in ``words``, GROUP.NAME=NUMBER, replaced; UserError for any other."""
    result: dict[str, Any] = copy.deepcopy(dict(numbers))
    for word in words:
        key, _, value = word.partition("=")
        group, _, name = key.partition(".")
        if not isinstance(result.get(group, {}).get(name), (int, float)):
            known = [
                f"{a}.{b}" for a, part in result.items() for b, old in part.items() if isinstance(old, (int, float))
            ]
            raise UserError(f"--set {key} is not a constant{nearest(key, known)}: choose from {', '.join(known)}")
        try:
            result[group][name] = float(value)
        except ValueError:
            raise UserError(f"--set {key} must be a number, e.g. {key}={result[group][name]} (got '{value}')") from None
    return result
