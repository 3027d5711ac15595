"""The progress of a sweep, read from its run directories and so the same under every launcher."""

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import Run, is_run, last_step
from rwkv_lab.sweeps import plan
from rwkv_lab.sweeps.plan import Job
from rwkv_lab.util.console import count, duration, harmless, say, table_lines, terminal_width

ORDER = ("complete", "stopped early", "running", "failed", "interrupted", "left out", "pending")
OVER = ("complete", "stopped early", "failed", "left out")
LOOK_SECONDS = 1.0
REPEAT_SECONDS = 60.0
# Columns to leave out of a table for a narrow terminal, the least important first.
_DROPPABLE = ("spent", "time", "tokens/s", "saved", "val_loss")


@dataclass(frozen=True)
class JobState:
    """A job as its run directory shows it at one moment."""

    status: str  # one of ORDER; pending: not begun; left out: cannot be composed
    done: float  # fraction of its updates; 1 if nothing more will happen
    manifest: dict[str, Any]
    reason: str | None = None
    step: int = 0  # completed updates, as far as they are logged
    forecast: dict[str, float] = field(default_factory=dict)  # loss, low, high of the final loss; empty without one

    @property
    def saved(self) -> int:
        """Updates that stopping early saved."""
        return max(0, int(self.manifest.get("steps") or 0) - self.step) if self.status == "stopped early" else 0


def job_state(job: Job, earlier: str | None = None) -> JobState:
    """Return the job's present state. A result that ended at ``earlier``, before this sweep, does not count."""
    if job.path is None or job.config is None:
        return JobState("left out", 1.0, {}, job.error)
    try:
        status = plan.status(job.path)
        manifest = Run(job.path).manifest if is_run(job.path) else {}
    except UserError:
        # Read in the instant in which a rerun empties the directory.
        status, manifest = "pending", {}
    if status == "stopped early" and job.config.stop is None:
        # Without a stop rule the job is to be finished.
        status = "interrupted"
    if status in ("complete", "failed", "stopped early") and earlier is not None and manifest.get("ended") == earlier:
        return JobState("pending", 0.0, {})
    return run_state(job.path, status, manifest)


def run_state(path: Path, status: str, manifest: dict[str, Any]) -> JobState:
    """Return the state of a run of ``status``; reads only the end of its metrics.csv."""
    steps = int(manifest.get("steps") or 0)
    recorded = dict(manifest.get("forecast") or {})
    if status in ("complete", "failed"):
        step = steps if status == "complete" else 0
        return JobState(status, 1.0, manifest, manifest.get("reason"), step, recorded)
    step = last_step(path / "metrics.csv") if steps else 0
    if status == "stopped early":
        return JobState(status, 1.0, manifest, manifest.get("reason"), step, recorded)
    forecast = Run(path).forecast if steps else recorded
    return JobState(status, step / steps if steps else 0.0, manifest, step=step, forecast=forecast)


def counted(states: Sequence[JobState]) -> str:
    """Return ``12 complete, 2 running, 1 failed, 5 pending``."""
    found = [state.status for state in states]
    return ", ".join(f"{found.count(name)} {name}" for name in ORDER if name in found)


def seconds_left(elapsed: float, at_start: float, now: float, jobs: int) -> float | None:
    """Return the seconds until ``jobs`` jobs are done; ``at_start`` were at first and ``now`` are. None if unknown.

    Work is counted in jobs, so this holds for any number of processes that share it.
    """
    gained = now - at_start
    return elapsed * (jobs - now) / gained if gained > 0.01 * jobs else None


@dataclass
class Watch:
    """Print once how every job ended, as soon as its run directory shows it."""

    planned: list[Job]
    earlier: dict[Path, str] = field(default_factory=dict)  # ends of runs that are to be made again
    _names: list[str] = field(default_factory=list)
    _states: list[JobState] = field(default_factory=list)
    _began: tuple[float, float] = (0.0, 0.0)  # time and fraction done when the sweep began
    _printed: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Print the counts, and the jobs that are left out."""
        for job in self.planned:
            if job.path is not None and job.config is not None and is_run(job.path):
                run = Run(job.path)
                if run.status == "failed" or (job.config.rerun and run.status in ("complete", "stopped early")):
                    self.earlier[job.path] = str(run.manifest.get("ended"))
        self._names = plan.names(self.planned)
        self._states = self.states()
        self._began = (time.monotonic(), math.fsum(state.done for state in self._states))
        self._printed = time.monotonic()
        say(f"{len(self.planned)} jobs: {counted(self._states)}")
        for job in self.planned:
            if job.error:
                say(f"left out: {job.name}: {job.error}")

    def states(self) -> list[JobState]:
        """Return the present state of every job; one that is over is not read again."""
        if not self._states:
            return [self.state(job) for job in self.planned]
        known = zip(self.planned, self._states, strict=True)
        return [then if then.status in OVER else self.state(job) for job, then in known]

    def state(self, job: Job) -> JobState:
        """Return the present state of one job."""
        return job_state(job, self.earlier.get(job.path) if job.path else None)

    def is_open(self, job: Job) -> bool:
        """Return whether work is left for the job that nobody has done in this sweep."""
        return self.state(job).status not in OVER

    def look(self, repeat: bool = False) -> None:
        """Print what changed since the last look; with ``repeat`` the counts now and then even if nothing did."""
        with self._lock:
            before, self._states = self._states, self.states()
            news = [
                (name, now)
                for name, then, now in zip(self._names, before, self._states, strict=True)
                if now.status != then.status and now.status in ("complete", "stopped early", "failed", "interrupted")
            ]
            for name, now in news:
                say(_ended(name, now))
            if news or (repeat and time.monotonic() - self._printed >= REPEAT_SECONDS):
                self._printed = time.monotonic()
                say(self.summary())

    def summary(self) -> str:
        """Return the counts and the time left."""
        now = math.fsum(state.done for state in self._states)
        left = seconds_left(time.monotonic() - self._began[0], self._began[1], now, len(self._states))
        percent = f"{math.floor(100 * now / len(self._states))} % done"
        rest = f", about {duration(left)} to go" if left else ""
        return f"{counted(self._states)}; {percent}{rest}"

    def wait(self, jobs: Sequence[Job], most_seconds: float = math.inf) -> None:
        """Return when none of ``jobs`` is running any more, in any process, or ``most_seconds`` have passed."""
        until = time.monotonic() + most_seconds
        while any(self.state(job).status == "running" for job in jobs) and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)


def _ended(name: str, state: JobState) -> str:
    result = state.manifest.get("result")
    if state.status == "complete" and result:
        seconds = state.manifest.get("seconds")
        return f"complete: {name}  val_loss {result['val_loss']:.4f}" + (f"  {duration(seconds)}" if seconds else "")
    return f"{state.status}: {name}" + (f": {state.reason}" if state.reason else "")


@contextmanager
def watching(watch: Watch, repeat: bool) -> Iterator[None]:
    """Context manager: looks every second until it ends; ``repeat`` if the jobs themselves are silent."""
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


def table(names: Sequence[str], states: Sequence[JobState], width: int | None = None) -> None:
    """Print every job with its status and numbers, the reasons of those without, and the counts.

    ``width``   columns to fit into (default: the terminal's; any width if there is none)
    """
    header = ("run", "status", "val_bpb", "val_loss", "forecast", "tokens/s", "time", "spent", "saved")
    saved = sum(state.saved for state in states)
    rows = [(harmless(name), *_cells(state, saved > 0)) for name, state in zip(names, states, strict=True)]
    for line in table_lines(header, rows, width or terminal_width(), _DROPPABLE, left=2):
        say(line)
    for name, state in zip(names, states, strict=True):
        if state.reason:
            say(f"{state.status}: {name}: {state.reason}")
    say(counted(states) + (f"; {count(saved)} updates saved" if saved else ""))


def _cells(state: JobState, spent: bool) -> tuple[str, ...]:
    manifest, forecast = state.manifest, state.forecast
    result = manifest.get("result") or {}
    ranged = f"{forecast['low']:.3g}–{forecast['high']:.3g}" if {"low", "high"} <= forecast.keys() else ""
    return (
        state.status,
        f"{result['val_bpb']:.4f}" if result.get("val_bpb") is not None else "",
        f"{result['val_loss']:.4f}" if "val_loss" in result else "",
        ranged,
        count(result["tokens_per_second"]) if "tokens_per_second" in result else "",
        duration(manifest["seconds"]) if manifest.get("seconds") else "",
        count(state.step) if spent and state.step else "",
        count(state.saved) if state.saved else "",
    )
