"""``python -m rwkv_lab.tracking sync [STUDY]...``: uploads to a tracker's server what it does not have yet."""

import argparse
import dataclasses
import functools
import sys
import tempfile
from pathlib import Path

from rwkv_lab.cli.arguments import Arguments
from rwkv_lab.config.errors import UserError
from rwkv_lab.util.console import say

LIMIT_SECONDS = 120.0
CHANGEABLE = ("project", "entity")


def sync_studies(options: argparse.Namespace) -> int:
    from rwkv_lab.runs import store
    from rwkv_lab.tracking.sync import sync

    if not options.limit > 0:
        raise UserError(f"--limit must be above 0, in seconds, e.g. 120 (got {options.limit:g})")
    changed = {key: getattr(options, key) for key in CHANGEABLE if getattr(options, key)}
    counts: dict[str, int] = {}
    runs = store.studies(options.study)
    try:
        with tempfile.TemporaryDirectory(prefix="rwkv_lab-sync-") as folder:
            for number, run in enumerate(runs, 1):
                name = f"{run.study}/{run.name}"
                show = functools.partial(_show, f"{name} ({number} of {len(runs)})")
                done = sync(run, Path(folder), changed, options.limit, show)
                counts[done.outcome] = counts.get(done.outcome, 0) + 1
                if done.outcome not in ("whole", "untracked"):
                    say(f"{done.outcome:<10} {name}" + (f": {done.reason}" if done.reason else ""))
                if done.outcome == "failed":
                    # The next would fail in the same way, after the same wait.
                    say("stopped at the first failure; the same command again goes on")
                    break
    except KeyboardInterrupt:
        print("stopped: the same command again uploads the rest", file=sys.stderr)
        return 130
    say(", ".join(f"{number} {outcome}" for outcome, number in counts.items()) or "no runs")
    return 1 if counts.keys() & {"failed", "unreadable"} else 0


def _show(name: str, seconds: float) -> None:
    say(f"uploading  {name}: {seconds:.0f} s")


def follow_run(options: argparse.Namespace) -> int:
    from rwkv_lab.tracking.follower import follow

    follow(options.run, options.after)
    return 0


def upload_run(options: argparse.Namespace) -> int:
    from rwkv_lab.runs import Run
    from rwkv_lab.tracking.follower import print_line, upload
    from rwkv_lab.tracking.tracker import settings_of

    try:
        settings = settings_of(Run(options.run)).uploading(options.folder)
        if settings is None:
            raise UserError(f"the tracker of {options.run} has no server")
        for key in CHANGEABLE:
            if getattr(options, key):
                if key not in [field.name for field in dataclasses.fields(settings)]:
                    raise UserError(f"--{key} is not a setting of the tracker {settings.name}")
                setattr(settings, key, getattr(options, key))
        settings.check()
        failed = upload(options.run, settings)
    except UserError as mistake:
        failed = str(mistake)
    if failed:
        print_line(failed)
    return 1 if failed else 0


def main(argv: list[str]) -> int:
    """Run ``argv`` (without the program's name); return the exit code."""
    top = Arguments(prog="rwkv-lab tracking", description="Runs and experiment trackers.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    changed = Arguments(add_help=False)
    changed.add_argument("--project", help="instead of the run's own tracker.project")
    changed.add_argument("--entity", help="instead of the run's own tracker.entity")
    command = commands.add_parser("sync", parents=[changed], help="upload to the tracker's server what it lacks")
    command.add_argument("study", nargs="*", metavar="STUDY", help="names below runs/ or folders (default: all)")
    command.add_argument(
        "--limit", type=float, default=LIMIT_SECONDS, metavar="SECONDS", help="most time for one run (default: 120)"
    )
    command.set_defaults(main=sync_studies)
    command = commands.add_parser("follow", help="feed the tracker of a run (runs start this themselves)")
    command.add_argument("run", type=Path, metavar="RUN")
    command.add_argument("--after", type=int, default=0, metavar="STEP", help="only rows behind this one (default: 0)")
    command.set_defaults(main=follow_run)
    command = commands.add_parser("upload", parents=[changed], help="upload one run (sync starts this itself)")
    command.add_argument("run", type=Path, metavar="RUN")
    command.add_argument("--folder", type=Path, required=True, help="where the tracker's files go")
    command.set_defaults(main=upload_run)
    options = top.parse_args(argv)
    return options.main(options)
