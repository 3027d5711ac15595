"""``python -m rwkv_lab.tracking sync [STUDY]...``: uploads to wandb what it does not have yet."""

import argparse
import tempfile
from pathlib import Path

from rwkv_lab.cli.arguments import Arguments
from rwkv_lab.util.console import say


def sync_studies(options: argparse.Namespace) -> int:
    from rwkv_lab.runs import select
    from rwkv_lab.tracking import sync

    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="rwkv_lab-sync-") as place:
        for run in select.studies(options.study):
            done = sync.sync(run, Path(place), project=options.project, entity=options.entity)
            counts[done.outcome] = counts.get(done.outcome, 0) + 1
            if done.outcome != "whole":
                reason = f": {done.reason}" if done.reason else ""
                say(f"{done.outcome:<10} {run.study}/{run.name}{reason}")
            if done.outcome == "failed":
                # The next would fail in the same way, after the same wait.
                say("stopped at the first failure; the same command again goes on")
                break
    say(", ".join(f"{number} {outcome}" for outcome, number in counts.items()) or "no runs")
    return 1 if counts.keys() & {"failed", "unreadable"} else 0


def follow_run(options: argparse.Namespace) -> int:
    from rwkv_lab.tracking.follower import follow

    follow(options.run, options.place, options.after, options.mode)
    return 0


def main(argv: list[str]) -> int:
    """Run ``argv`` (without the program's name); return the exit code."""
    top = Arguments(prog="python -m rwkv_lab.tracking", description="Runs and experiment trackers.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("sync", help="upload to wandb what it does not have yet")
    command.add_argument("study", nargs="*", metavar="STUDY", help="names below runs/ or folders (all)")
    command.add_argument("--project", help="instead of the run's own tracker.project")
    command.add_argument("--entity", help="instead of the run's own tracker.entity")
    command.set_defaults(main=sync_studies)
    command = commands.add_parser("follow", help="feed the tracker of a run (runs start this themselves)")
    command.add_argument("run", type=Path, metavar="RUN")
    command.add_argument("--place", type=Path, required=True, help="where the tracker's files go")
    command.add_argument("--after", type=int, default=0, metavar="STEP", help="rows up to here are known already (0)")
    command.add_argument("--mode", choices=("online", "offline"), help="instead of the run's own tracker.mode")
    command.set_defaults(main=follow_run)
    options = top.parse_args(argv)
    return options.main(options)
