"""``rwkv-lab runs``: list, show, compare, watch, remove and unlock runs. Imports no torch."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rwkv_lab.cli.arguments import Arguments
from rwkv_lab.config import registry
from rwkv_lab.config.errors import UserError, nearest
from rwkv_lab.runs import STATUSES, Run, listing, store
from rwkv_lab.runs.listing import MISSING, UNREADABLE, Row
from rwkv_lab.util.console import harmless, table_lines, terminal_width
from rwkv_lab.util.paths import runs_dir

SORTS = ("path", "run", "name", "status", "val_bpb", "tokens_per_second", "age")
# Names of a row's own fields as filters, beside every key of the configuration.
FILTERS = ("status", "model", "data", "seed")


LOOP = ("forecast", "predicted", "measured")  # final losses: of a run that trains, and of one trained from a fit


def print_json(value: Any) -> None:
    # Escaped to ASCII: no value can steer a terminal, and any encoding has it.
    print(json.dumps(value, indent=1))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], droppable: Sequence[str] = ()) -> None:
    """Print a table that fits the terminal, if there is one."""
    header, *shown = ([harmless(cell).replace("\n", " ") for cell in line] for line in (header, *rows))
    for line in table_lines(header, shown, terminal_width(), droppable, left=len(header)):
        print(line)


def number(value: float | None, form: str) -> str:
    return MISSING if value is None else format(value, form)


def list_runs(options: argparse.Namespace) -> int:
    studies = [word for word in options.words if "=" not in word]
    filters = [word.partition("=")[::2] for word in options.words if "=" in word]
    filters += [(key, value) for key in FILTERS if (value := getattr(options, key))]
    rows = listing.rows(store.studies(studies, runs_dir(options.runs_dir)), datetime.now(UTC))
    # Columns come from all runs of a study, so that a filter does not hide what it filters by.
    swept = _swept(rows) if len({row.path.rpartition("/")[0] for row in rows}) == 1 else []
    for key, value in filters:
        keep = _filter(key, value, rows)
        rows = [row for row in rows if keep(row)]
    _sort(rows, options.sort, swept)
    if options.json:
        print_json([{key: value for key, value in dataclasses.asdict(row).items() if key != "config"} for row in rows])
    elif not rows:
        print("no runs")
    else:
        _print_rows(rows, swept, options.ids)
    return 0


def _print_rows(rows: Sequence[Row], swept: Sequence[str], ids: bool) -> None:
    """Print one line a run: a column for every swept key of one study, or else study and short name."""
    if swept:
        header = [key.removesuffix(".name").rpartition(".")[2] for key in swept]
        first = [[listing.short(row.config.get(key)) for key in swept] for row in rows]
        for cells, row in zip(first, rows, strict=True):
            # A run without a configuration has nothing else to be known by.
            cells[0] = cells[0] if row.config else row.run
    else:
        header = ["run"]
        first = [[f"{row.study}/{row.run}" if ids else f"{row.study}/{row.name}"] for row in rows]
    # Columns without any value are left out.
    print_table(
        (*header, *(["id"] if ids and swept else []), "status", "val_bpb", *LOOP, "tokens/s", "age"),
        [
            (
                *cells,
                *([row.run] if ids and swept else []),
                row.status,
                number(row.val_bpb, ".4f"),
                _ranged(row.forecast),
                *_prediction(row),
                number(row.tokens_per_second, ".0f"),
                listing.shown_age(row.age),
            )
            for cells, row in zip(first, rows, strict=True)
        ],
        droppable=("tokens/s", "age"),
    )


def _ranged(forecast: dict[str, float]) -> str:
    """Return a forecast of the final loss with its interval; empty without one."""
    if not {"loss", "low", "high"} <= forecast.keys():
        return ""
    return f"{forecast['loss']:.4f} ({forecast['low']:.3f}–{forecast['high']:.3f})"


def _prediction(row: Row) -> tuple[str, str]:
    """Return the cells of a run trained from a fit: the loss predicted with its interval, the loss measured."""
    if row.predicted is None or row.interval is None:
        return "", ""
    low, high = row.interval
    verdict = "" if row.measured is None else f" {'inside' if low <= row.measured <= high else 'outside'}"
    return f"{row.predicted:.4f} ({low:.3f}–{high:.3f})", "" if row.measured is None else f"{row.measured:.4f}{verdict}"


def _swept(rows: Sequence[Row]) -> list[str]:
    return listing.telling_keys([row.config for row in rows if row.config])


def _full_key(key: str, known: Sequence[str]) -> str | None:
    """Return the key of the configuration that ``key`` means: itself, its last part (lr_init), or a group (model)."""
    fits = [each for each in known if each in (key, f"{key}.name") or each.rpartition(".")[2] == key]
    return fits[0] if fits else None


def _filter(key: str, value: str, rows: Sequence[Row]) -> Callable[[Row], bool]:
    """Return the test of one filter; values are separated by commas. UserError for an unknown key or name."""
    wanted = value.split(",")
    if key in FILTERS:
        for each in wanted:
            allowed = {"status": [*STATUSES, UNREADABLE], "model": registry.names("model")}.get(key, wanted)
            if each not in allowed:
                raise UserError(f"{key}={each} is unknown{nearest(each, allowed)}: choose from {', '.join(allowed)}")
            if key == "seed" and not (each.isascii() and each.isdigit()):
                raise UserError(f"seed={each} is not a seed: give whole numbers, separated by commas")
        return lambda row: str(getattr(row, key)) in wanted
    known = list(dict.fromkeys(name for row in rows for name in row.config))
    full = _full_key(key, known)
    if full is None:
        likely = nearest(key, known)
        raise UserError(f"{key} is not a key of these runs{likely}: write KEY=VALUE, e.g. status=complete")
    return lambda row: any(_same(row.config.get(full), each) for each in wanted)


def _same(value: Any, text: str) -> bool:
    """Return whether a configured value equals what was typed: 4e-3 is 0.004, null is None."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(text) == value
        except ValueError:
            return False
    return text == ("null" if value is None else listing.short(value))


def _sort(rows: list[Row], key: str, swept: Sequence[str]) -> None:
    """Sort by a column or a key of the configuration; rows without a value come last."""
    if key in SORTS:
        rows.sort(key=lambda row: ((value := getattr(row, key)) is None, value))
        return
    full = _full_key(key, list(dict.fromkeys((*swept, *(name for row in rows for name in row.config)))))
    if full is None:
        allowed = (*SORTS, *swept)
        raise UserError(f"--sort: {key} is unknown{nearest(key, allowed)}: choose one of {', '.join(allowed)}")
    rows.sort(key=lambda row: (isinstance(v := row.config.get(full), str), v is None, v if v is not None else 0))


def show(options: argparse.Namespace) -> int:
    run = store.select(options.run, runs_dir(options.runs_dir))
    if options.json:
        print_json({"path": str(run.path), "status": run.status, "config": run.config, "manifest": run.manifest})
        return 0
    file = run.path / "config.yaml"
    # Read before anything is printed: what is no configuration is refused in one sentence.
    config = harmless(file.read_text(encoding="utf-8")) if file.exists() and run.config else ""
    lines = {"path": run.path, "status": run.status, "command": listing.command(run)}
    hidden = ("format", "status", "overrides", "name", "study")
    lines |= {key: value for key, value in listing.flat(run.manifest).items() if key not in hidden}
    width = max(map(len, lines))
    for key, value in lines.items():
        if value is not None:
            print(harmless(f"{key:<{width}}  {value}"))
    print(f"\n{config}")
    return 0


def diff(options: argparse.Namespace) -> int:
    left, right = (store.select(text, runs_dir(options.runs_dir)) for text in options.runs)
    found = listing.differences(left, right)
    if options.json:
        print_json({key: list(values) for key, values in found.items()})
    elif not found:
        print("the two runs do not differ")
    else:
        lines = [[key, *(MISSING if value is None else str(value) for value in pair)] for key, pair in found.items()]
        shown = [left.name, right.name] if options.ids else listing.names([left, right])
        print_table(("key", *(f"{run.study}/{name}" for run, name in zip((left, right), shown, strict=True))), lines)
    return 0


def watch(options: argparse.Namespace) -> int:
    from rwkv_lab.cli.watch import watch_study

    return watch_study(options.study, runs_dir(options.runs_dir), options.once)


def rm(options: argparse.Namespace) -> int:
    if not options.failed and not options.names:
        raise UserError("rm needs runs, or --failed for all failed runs, or --failed STUDY for those of a study")
    root = runs_dir(options.runs_dir)
    if options.failed:
        found = store.studies(options.names, root)
        runs = [Run(Path(row.path)) for row in listing.rows(found, datetime.now(UTC)) if row.status == "failed"]
    else:
        runs = [store.select(name, root, exact=True) for name in options.names]
    if not options.dry_run and runs:
        _confirm(runs, options)
    removed: list[Run] = []
    for run in runs:
        if options.dry_run or store.remove(run.path):
            removed.append(run)
        elif not options.json:
            print(harmless(f"left alone: {run.study}/{run.name} is running"))
    if options.json:
        print_json([str(run.path) for run in removed])
    else:
        for run in removed:
            print(harmless(f"{'would remove' if options.dry_run else 'removed'} {run.path}"))
        print(f"{len(removed)} {'to remove' if options.dry_run else 'removed'}")
    return 0 if len(removed) == len(runs) else 1


def _confirm(runs: Sequence[Run], options: argparse.Namespace) -> None:
    """Show what is to be removed and ask; UserError if the answer is not yes, or if nobody can be asked."""
    if not options.json:
        for run in runs:
            print(harmless(f"to remove: {run.path}"))
    if options.yes:
        return
    if not sys.stdin.isatty():
        raise UserError(f"{len(runs)} {'run' if len(runs) == 1 else 'runs'} would be removed: add --yes to do it")
    sys.stdout.flush()
    if input("remove? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserError("nothing was removed")


def unlock(options: argparse.Namespace) -> int:
    run = store.select(options.run, runs_dir(options.runs_dir))
    locked = not store.unlock(run.path, options.force)
    if options.json:
        print_json({"path": str(run.path), "unlocked": not locked})
    elif locked:
        pid = run.manifest.get("pid", "unknown")
        print(f"{run.study}/{run.name} is locked by a living process (pid {pid}): end that first, or add --force")
    else:
        print(f"{run.study}/{run.name} is not locked")
    return 1 if locked else 0


def parser() -> argparse.ArgumentParser:
    top = Arguments(prog="rwkv-lab runs", description="List, inspect, watch and remove runs.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    place = Arguments(add_help=False)
    place.add_argument("--runs-dir", metavar="PATH", help="folder of all runs (default: runs/)")
    shared = Arguments(add_help=False, parents=[place])
    shared.add_argument("--json", action="store_true", help="print JSON, for programs")
    run_help = "path, STUDY/NAME, start of a name, or id"

    command = commands.add_parser("list", parents=[shared], help="one line a run; one study: a column a swept key")
    command.add_argument(
        "words", nargs="*", metavar="STUDY|KEY=VALUE", help="names below runs/ or folders; filters, e.g. seed=1,2 (all)"
    )
    for key in FILTERS:
        command.add_argument(f"--{key}", help=f"the same as the filter {key}=..., values separated by commas")
    command.add_argument("--sort", metavar="KEY", default="path", help=f"{', '.join(SORTS)}, or a swept key (path)")
    command.add_argument("--ids", action="store_true", help="whole names of runs, with their ids")
    command.set_defaults(main=list_runs)

    command = commands.add_parser("show", parents=[shared], help="manifest and configuration of one run")
    command.add_argument("run", metavar="RUN", help=run_help)
    command.set_defaults(main=show)

    command = commands.add_parser("diff", parents=[shared], help="keys in which two runs differ")
    command.add_argument("runs", nargs=2, metavar="RUN", help=run_help)
    command.add_argument("--ids", action="store_true", help="whole names of runs, with their ids")
    command.set_defaults(main=diff)

    command = commands.add_parser("watch", parents=[place], help="live view of a study, until its last job ends")
    command.add_argument("study", metavar="STUDY", help="name below runs/, or folder")
    command.add_argument("--once", action="store_true", help="print the present state and end")
    command.set_defaults(main=watch)

    command = commands.add_parser("rm", parents=[shared], help="remove runs, except those that are running")
    command.add_argument("names", nargs="*", metavar="RUN", help="path, STUDY/NAME, name or id; with --failed, studies")
    command.add_argument("--failed", action="store_true", help="all failed runs")
    command.add_argument("--dry-run", action="store_true", help="only print which")
    command.add_argument("--yes", action="store_true", help="do not ask; needed when not on a terminal")
    command.set_defaults(main=rm)

    command = commands.add_parser("unlock", parents=[shared], help="free a run that no process holds")
    command.add_argument("run", metavar="RUN", help=run_help)
    command.add_argument("--force", action="store_true", help="even if a process seems to hold it")
    command.set_defaults(main=unlock)
    return top


def main(argv: list[str]) -> int:
    """Run ``argv`` (without the program's name); return the exit code."""
    options = parser().parse_args(argv)
    return options.main(options)
