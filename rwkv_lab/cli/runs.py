"""``python -m rwkv_lab.runs``: lists, shows, compares, removes and unlocks runs. Imports no torch."""

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rwkv_lab.cli.arguments import Arguments
from rwkv_lab.config.errors import UserError, nearest
from rwkv_lab.models.registry import MODELS
from rwkv_lab.runs import STATUSES, Run, listing, remove, select

SORTS = ("path", "run", "status", "val_bpb", "tokens_per_second", "age")


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    for line in (header, *rows):
        cells = [text.ljust(width) for text, width in zip(line, widths, strict=True)]
        print("  ".join(cells).rstrip())


def number(value: float | None, form: str) -> str:
    return listing.MISSING if value is None else format(value, form)


def shown(value: Any) -> str:
    return listing.MISSING if value is None else str(value)


def list_runs(options: argparse.Namespace) -> int:
    now = datetime.now(UTC)
    rows = [listing.row(run, now) for run in select.studies(options.study)]
    for key in ("status", "model", "data", "seed"):
        wanted = getattr(options, key)
        if wanted:
            _check_filter(key, wanted.split(","))
            rows = [row for row in rows if str(getattr(row, key)) in wanted.split(",")]
    rows.sort(key=lambda row: ((value := getattr(row, options.sort)) is None, value))
    if options.json:
        print_json([row._asdict() for row in rows])
        return 0
    if not rows:
        print("no runs")
        return 0
    print_table(
        ("run", "status", "model", "data", "seed", "val_bpb", "tokens/s", "age"),
        [
            (
                f"{row.study}/{row.run}",
                row.status,
                row.model,
                row.data,
                number(row.seed, "d"),
                number(row.val_bpb, ".4f"),
                number(row.tokens_per_second, ".0f"),
                listing.ago(row.age),
            )
            for row in rows
        ],
    )
    return 0


def _check_filter(key: str, wanted: Sequence[str]) -> None:
    allowed = {"status": (*STATUSES, "unreadable"), "model": MODELS}.get(key, wanted)
    for each in wanted:
        if each not in allowed:
            raise UserError(f"--{key} {each} is unknown{nearest(each, allowed)}: choose from {', '.join(allowed)}")
        if key == "seed" and not each.isdigit():
            raise UserError(f"--seed {each} is no seed: give whole numbers, separated by commas")


def show(options: argparse.Namespace) -> int:
    run = select.one(options.run)
    if options.json:
        print_json({"path": str(run.path), "status": run.status, "config": run.config, "manifest": run.manifest})
        return 0
    lines = {"path": run.path, "status": run.status, "command": listing.command(run)}
    hidden = ("format", "status", "overrides", "name", "study")
    lines |= {key: value for key, value in listing.flat(run.manifest).items() if key not in hidden}
    width = max(map(len, lines))
    for key, value in lines.items():
        if value is not None:
            print(f"{key:<{width}}  {value}")
    print("\n" + (run.path / "config.yaml").read_text() if (run.path / "config.yaml").exists() else "")
    return 0


def diff(options: argparse.Namespace) -> int:
    left, right = (select.one(text) for text in options.runs)
    found = listing.differences(left, right)
    if options.json:
        print_json({key: list(values) for key, values in found.items()})
        return 0
    if not found:
        print("the two runs do not differ")
        return 0
    shown = [
        [key, *(listing.MISSING if value is None else str(value) for value in pair)] for key, pair in found.items()
    ]
    print_table(("key", f"{left.study}/{left.name}", f"{right.study}/{right.name}"), shown)
    return 0


def rm(options: argparse.Namespace) -> int:
    if not options.failed and not options.names:
        raise UserError("rm needs runs, or --failed for all failed runs, or --failed STUDY for those of a study")
    if options.failed:
        runs = [run for run in select.studies(options.names) if listing.row(run, datetime.now(UTC)).status == "failed"]
    else:
        runs = [select.one(name) for name in options.names]
    removed: list[Run] = []
    for run in runs:
        if options.dry_run or remove.remove(run.path):
            removed.append(run)
        elif not options.json:
            print(f"left alone: {run.study}/{run.name} is running")
    if options.json:
        print_json([str(run.path) for run in removed])
    else:
        for run in removed:
            print(f"{'would remove' if options.dry_run else 'removed'} {run.study}/{run.name}")
        print(f"{len(removed)} {'to remove' if options.dry_run else 'removed'}")
    return 0 if len(removed) == len(runs) else 1


def unlock(options: argparse.Namespace) -> int:
    run = select.one(options.run)
    held = not remove.unlock(run.path, options.force)
    if options.json:
        print_json({"path": str(run.path), "unlocked": not held})
    elif held:
        pid = run.manifest.get("pid", "unknown")
        print(f"{run.study}/{run.name} is locked by a living process (pid {pid}): end that first, or add --force")
    else:
        print(f"{run.study}/{run.name} is not locked")
    return 1 if held else 0


def parser() -> argparse.ArgumentParser:
    top = Arguments(prog="python -m rwkv_lab.runs", description="What is in runs/.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    shared = Arguments(add_help=False)
    shared.add_argument("--json", action="store_true", help="for programs")

    command = commands.add_parser("list", parents=[shared], help="one line a run")
    command.add_argument("study", nargs="*", metavar="STUDY", help="names below runs/ or folders (all)")
    command.add_argument("--status", help=f"only these, separated by commas: {', '.join((*STATUSES, 'unreadable'))}")
    command.add_argument("--model", help="only these, separated by commas")
    command.add_argument("--data", help="only these, separated by commas")
    command.add_argument("--seed", help="only these, separated by commas")
    command.add_argument("--sort", choices=SORTS, default="path", help="order of the lines (path)")
    command.set_defaults(main=list_runs)

    command = commands.add_parser("show", parents=[shared], help="manifest and configuration of one run")
    command.add_argument("run", metavar="RUN", help="path, STUDY/NAME, start of a name, or id")
    command.set_defaults(main=show)

    command = commands.add_parser("diff", parents=[shared], help="keys in which two runs differ")
    command.add_argument("runs", nargs=2, metavar="RUN")
    command.set_defaults(main=diff)

    command = commands.add_parser("rm", parents=[shared], help="remove runs; those that are running stay")
    command.add_argument("names", nargs="*", metavar="RUN", help="runs; with --failed, studies")
    command.add_argument("--failed", action="store_true", help="all failed runs")
    command.add_argument("--dry-run", action="store_true", help="only say which")
    command.set_defaults(main=rm)

    command = commands.add_parser("unlock", parents=[shared], help="free a run that no process holds")
    command.add_argument("run", metavar="RUN")
    command.add_argument("--force", action="store_true", help="although a process seems to hold it")
    command.set_defaults(main=unlock)
    return top


def main(argv: list[str]) -> int:
    """Run ``argv`` (without the program's name); return the exit code."""
    options = parser().parse_args(argv)
    return options.main(options)
