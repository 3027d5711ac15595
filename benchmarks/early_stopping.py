"""python -m benchmarks.early_stopping STUDY...: what each stop rule would have saved of finished sweeps.

Every job of the studies has been trained to its end. A replay goes through them one after another in a shuffled order,
shows each rule the curves as far as they would have come, and stops the jobs that the rule gives up.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np

from analysis.curves.loading import load_run
from rwkv_lab.cli.arguments import Arguments
from rwkv_lab.config import registry
from rwkv_lab.config.errors import UserError, main_guard
from rwkv_lab.config.fields import instance
from rwkv_lab.config.kinds import StopConfig
from rwkv_lab.runs import find, listing
from rwkv_lab.sweeps.stopping.curves import JobCurve, Verdict, read_curve

SHUFFLES = 20
CLOSE = 0.03  # nats from the best within which a job counts as close
LEAST_JOBS = 3


@dataclass(frozen=True)
class Replay:
    """One rule on one order of the jobs."""

    order: tuple[int, ...]
    spent: tuple[int, ...]  # updates of each job, by its number
    reasons: tuple[str, ...]  # why each was stopped; empty if it was not
    losses: tuple[float, ...]  # final losses, all trained in full
    totals: tuple[int, ...]

    @property
    def winner(self) -> int:
        """The job that is best if every one is trained in full."""
        return int(np.argmin(self.losses))

    @property
    def kept(self) -> bool:
        """Return whether the winner is trained to its end, and so wins the sweep."""
        return not self.reasons[self.winner]

    @property
    def lost(self) -> float:
        """Nats by which the best job that was trained to its end is behind the winner."""
        ended = [loss for loss, reason in zip(self.losses, self.reasons, strict=True) if not reason]
        return min(ended, default=float("nan")) - self.losses[self.winner]

    @property
    def share(self) -> float:
        """Part of the updates of the whole sweep that is spent."""
        return sum(self.spent) / sum(self.totals)


def read_study(path: str | Path) -> list[JobCurve]:
    """Return the curves of a study whose jobs are all complete, with their rates; UserError if it is not."""
    runs = find(path)
    found = []
    for run, name in zip(runs, listing.names(runs), strict=True):
        curve = read_curve(run)
        if run.status != "complete" or curve is None:
            raise UserError(f"{run.path}: a replay needs jobs trained to their end, with val_loss (got {run.status})")
        found.append(replace(curve, name=name, forecast=None, lr=load_run(run.path, "val_loss").lr))
    if len(found) < LEAST_JOBS:
        raise UserError(f"{path}: a replay needs at least {LEAST_JOBS} jobs (got {len(found)})")
    return found


def moments(job: JobCurve) -> Iterator[JobCurve]:
    """Yield the job as it is at each of its evaluations but the last."""
    for end in range(1, len(job.step)):
        yield replace(job, step=job.step[:end], loss=job.loss[:end], complete=False, forecast=None)


def replay(rule: StopConfig, jobs: Sequence[JobCurve], order: Sequence[int]) -> Replay:
    """Train ``jobs`` again on paper, one after another in ``order``, each until it ends or the rule gives it up."""
    over: list[JobCurve] = []
    spent, reasons = [job.total for job in jobs], [""] * len(jobs)
    for number in order:
        last, forecast = jobs[number], None
        for now in moments(jobs[number]):
            if now.done < rule.after or not over:
                continue
            verdict = _verdict(rule, now, over)
            if verdict.forecast:
                forecast = (verdict.forecast["low"], verdict.forecast["high"])
            if verdict.reason:
                last, spent[number], reasons[number] = now, int(now.step[-1]), verdict.reason
                break
        over.append(replace(last, forecast=forecast, lr=None))
    losses = tuple(float(job.loss[-1]) for job in jobs)
    return Replay(tuple(order), tuple(spent), tuple(reasons), losses, tuple(job.total for job in jobs))


def _verdict(rule: StopConfig, now: JobCurve, over: Sequence[JobCurve]) -> Verdict:
    """Return the verdict; a rule that fails lets the job go on, as it does in a sweep."""
    try:
        return rule.verdict(now, over)
    except (UserError, ValueError, ArithmeticError, np.linalg.LinAlgError):
        return Verdict()


def orders(jobs: int, shuffles: int) -> list[tuple[int, ...]]:
    """Return the same ``shuffles`` orders of the jobs every time."""
    draw = np.random.default_rng(0)
    return [tuple(draw.permutation(jobs).tolist()) for _ in range(shuffles)]


def summary(replays: Sequence[Replay]) -> str:
    """Return one row of the table: winner kept, share of the updates with its range, jobs stopped, loss given away."""
    shares = [100 * each.share for each in replays]
    stopped = [sum(map(bool, each.reasons)) for each in replays]
    kept = sum(each.kept for each in replays)
    return (
        f"{kept} of {len(replays)} | {len(replays) - kept} | {np.mean(shares):.0f} % | {min(shares):.0f}–"
        f"{max(shares):.0f} % | {np.mean(stopped):.1f} | {max(each.lost for each in replays):.4f}"
    )


def census(jobs: Sequence[JobCurve]) -> str:
    """Return how many jobs end close to the best, and which is best."""
    losses = np.array([job.loss[-1] for job in jobs])
    close = int((losses <= losses.min() + CLOSE).sum())
    return (
        f"{len(jobs)} jobs of {jobs[0].total} updates, {close} of them within {CLOSE:g} nats of the best "
        f"({jobs[int(losses.argmin())].name}, {losses.min():.4f}); the worst {losses.max():.4f}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Replay every rule on every study; print a Markdown table for each."""
    parser = Arguments(prog="python -m benchmarks.early_stopping", description=str(__doc__).partition("\n")[2].strip())
    parser.add_argument("studies", nargs="+", metavar="STUDY", help="folder of a sweep whose jobs are all complete")
    parser.add_argument("--rule", nargs="+", choices=registry.names("stop"), default=registry.names("stop"))
    parser.add_argument("--shuffles", type=int, default=SHUFFLES, metavar="N", help=f"orders of the jobs ({SHUFFLES})")
    parser.add_argument("--after", type=float, metavar="SHARE", help="stop.after of every rule (its default)")
    parser.add_argument("--verbose", action="store_true", help="also each job that was stopped although it wins")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="replays side by side (1)")
    options = parser.parse_args(argv)
    for study in options.studies:
        jobs = read_study(study)
        print(f"\n**{Path(study).name}**: {census(jobs)}\n")
        print("| rule | winner kept | false stops | updates spent | range | jobs stopped | worst loss given away |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        for name in options.rule:
            replays = _replays(rule_of(name, options.after), jobs, options)
            print(f"| {name} | {summary(replays)} |", flush=True)
            for each in replays if options.verbose else ():
                if not each.kept:
                    print(f"false stop: {jobs[each.winner].name}: {each.reasons[each.winner]}", file=sys.stderr)
    return 0


def rule_of(name: str, after: float | None = None) -> StopConfig:
    """Return the stop rule ``name`` with its defaults."""
    return instance(registry.get("stop", name), {"name": name} | ({} if after is None else {"after": after}))


def _replays(rule: StopConfig, jobs: Sequence[JobCurve], options: argparse.Namespace) -> list[Replay]:
    every = orders(len(jobs), options.shuffles)
    if options.processes == 1:
        return [replay(rule, jobs, order) for order in every]
    with Pool(options.processes) as pool:
        return pool.map(partial(replay, rule, jobs), every)


if __name__ == "__main__":
    sys.exit(main_guard(main))
