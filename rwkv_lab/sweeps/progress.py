"""The progress of a sweep as its run directories tell it, which is the same under every launcher."""

import math
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import Run, is_run, read_metrics
from rwkv_lab.sweeps import plan
from rwkv_lab.sweeps.plan import Job
from rwkv_lab.util.console import count, duration, say

ORDER = ("complete", "running", "failed", "interrupted", "mistake", "left")
LOOK_SECONDS = 1.0
REPEAT_SECONDS = 60.0


@dataclass(frozen=True)
class Seen:
    """What a job's run directory says at one moment."""

    status: str  # one of ORDER; left: not begun
    done: float  # fraction of its updates; 1 where nothing more will happen
    manifest: dict[str, Any]
    reason: str | None = None


def see(job: Job, earlier: str | None = None) -> Seen:
    """The job's present state. A result whose end is ``earlier`` dates from before the sweep and does not count."""
    if job.path is None:
        return Seen("mistake", 1.0, {}, job.mistake)
    try:
        status = plan.status(job.path)
        manifest = Run(job.path).manifest if is_run(job.path) else {}
    except UserError:
        # Read in the instant in which a rerun empties the directory.
        status, manifest = "left", {}
    if status in ("complete", "failed") and earlier is not None and manifest.get("ended") == earlier:
        return Seen("left", 0.0, {})
    if status in ("complete", "failed"):
        return Seen(status, 1.0, manifest, manifest.get("reason"))
    return Seen(status, _fraction(job.path, manifest), manifest)


def _fraction(path: Path, manifest: dict[str, Any]) -> float:
    steps = read_metrics(path / "metrics.csv").get("step") if manifest.get("steps") else None
    return float(steps[-1]) / manifest["steps"] if steps is not None and len(steps) else 0.0


def counted(states: Sequence[Seen]) -> str:
    """12 complete, 2 running, 1 failed, 5 left."""
    names = [seen.status for seen in states]
    return ", ".join(f"{names.count(name)} {name}" for name in ORDER if name in names)


def seconds_left(elapsed: float, at_start: float, now: float, jobs: int) -> float | None:
    """Seconds until ``jobs`` jobs are done, of which ``at_start`` were at first and ``now`` are; None: cannot be told.

    Work is counted in jobs, so this holds for any number of processes that share it.
    """
    gained = now - at_start
    return elapsed * (jobs - now) / gained if gained > 0.01 * jobs else None


@dataclass
class Watch:
    """Says once what became of every job, as soon as its run directory shows it."""

    planned: list[Job]
    earlier: dict[Path, str] = field(default_factory=dict)  # ends of runs that are to be made again
    _states: list[Seen] = field(default_factory=list)
    _began: tuple[float, float] = (0.0, 0.0)  # time and fraction done when the sweep began
    _said: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        for job in self.planned:
            if job.path is not None and job.config is not None and is_run(job.path):
                run = Run(job.path)
                if run.status == "failed" or (job.config.rerun and run.status == "complete"):
                    self.earlier[job.path] = str(run.manifest.get("ended"))
        self._states = self.states()
        self._began = (time.monotonic(), math.fsum(seen.done for seen in self._states))
        self._said = time.monotonic()
        say(f"{len(self.planned)} jobs: {counted(self._states)}")
        for job in self.planned:
            if job.mistake:
                say(f"left out: {job.name}: {job.mistake}")

    def states(self) -> list[Seen]:
        return [see(job, self.earlier.get(job.path) if job.path else None) for job in self.planned]

    def state(self, job: Job) -> Seen:
        return see(job, self.earlier.get(job.path) if job.path else None)

    def is_open(self, job: Job) -> bool:
        """Whether there is something to do for the job that nobody has done in this sweep."""
        return self.state(job).status in ("left", "interrupted", "running")

    def look(self, repeat: bool = False) -> None:
        """Says what changed since the last look; with ``repeat`` the counts now and then although nothing did."""
        with self._lock:
            before, self._states = self._states, self.states()
            news = [
                (job, now)
                for job, then, now in zip(self.planned, before, self._states, strict=True)
                if now.status != then.status and now.status in ("complete", "failed", "interrupted")
            ]
            for job, now in news:
                say(_ended(job, now))
            if news or (repeat and time.monotonic() - self._said >= REPEAT_SECONDS):
                self._said = time.monotonic()
                say(self.summary())

    def summary(self) -> str:
        """The counts and the time left."""
        now = math.fsum(seen.done for seen in self._states)
        left = seconds_left(time.monotonic() - self._began[0], self._began[1], now, len(self._states))
        percent = f"{math.floor(100 * now / len(self._states))} % done"
        rest = f", about {duration(left)} to go" if left else ""
        return f"{counted(self._states)}; {percent}{rest}"

    def wait(self, jobs: Sequence[Job], most_seconds: float = math.inf) -> None:
        """Returns when none of ``jobs`` is running any more, in whatever process, or ``most_seconds`` have passed."""
        until = time.monotonic() + most_seconds
        while any(self.state(job).status == "running" for job in jobs) and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)


def _ended(job: Job, seen: Seen) -> str:
    result = seen.manifest.get("result")
    if seen.status == "complete" and result:
        return f"complete: {job.name}  val_loss {result['val_loss']:.4f}  {duration(seen.manifest['seconds'])}"
    return f"{seen.status}: {job.name}" + (f": {seen.reason}" if seen.reason else "")


@contextmanager
def watching(watch: Watch, repeat: bool) -> Iterator[None]:
    """Looks every second until the context ends; ``repeat`` where the jobs themselves are silent."""
    over = threading.Event()

    def keep_looking() -> None:
        while not over.wait(LOOK_SECONDS):
            watch.look(repeat)

    watch.start()
    thread = threading.Thread(target=keep_looking, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        watch.look()


def table(planned: Sequence[Job], states: Sequence[Seen]) -> None:
    """Prints every job with its status and result, or the reason why there is none."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("run", "status", "val_bpb", "val_loss", "tokens/s", "time"):
        rows.add_column(column, justify="left" if column in ("run", "status") else "right", overflow="fold")
    for job, seen in zip(planned, states, strict=True):
        result = seen.manifest.get("result") or {}
        rows.add_row(
            job.name,
            f"{seen.status}: {seen.reason}" if seen.reason else seen.status,
            f"{result['val_bpb']:.4f}" if result.get("val_bpb") is not None else "",
            f"{result['val_loss']:.4f}" if "val_loss" in result else "",
            count(result["tokens_per_second"]) if "tokens_per_second" in result else "",
            duration(seen.manifest["seconds"]) if "seconds" in seen.manifest else "",
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(rows)
    console.print(counted(states), highlight=False)
