"""Taking a run directory: is there anything to do, may this process do it, and from where."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import FORMAT, Run, is_run, lock
from rwkv_lab.util.paths import write_json


@dataclass
class Claim:
    """A run directory and what this process may do with it; it holds the lock where there is work to do."""

    path: Path
    state: Literal["fresh", "resume", "complete", "busy"]
    manifest: dict[str, Any]
    lock: FileLock | None = None

    def record(self, **fields: Any) -> None:
        """Updates run.json in one atomic step."""
        self.manifest |= fields
        write_json(self.path / "run.json", self.manifest)

    def release(self) -> None:
        if self.lock is not None:
            self.lock.release()


def nothing_to_do(path: Path, rerun: bool) -> Claim | None:
    """The claim of a run that is complete or busy, found without touching it; None where there is work to do."""
    status = Run(path).status if is_run(path) else None
    if status == "complete" and not rerun:
        return Claim(path, "complete", Run(path).manifest)
    if status == "running":
        return Claim(path, "busy", Run(path).manifest)
    return None


def claim(path: Path, rerun: bool) -> Claim:
    """Claims the run directory ``path``, made where it is missing.

    complete: nothing to do. busy: another process has it. fresh or resume: locked for this process; ``rerun`` empties
    the directory first. A Mistake where the directory cannot be written.
    """
    if is_run(path) and not rerun and Run(path).status == "complete":
        return Claim(path, "complete", Run(path).manifest)
    try:
        path.mkdir(parents=True, exist_ok=True)
        held = lock.acquire(path)
    except OSError as error:
        raise UserError(f"the run directory {path} cannot be written: {error.strerror}") from None
    if held is None:
        return Claim(path, "busy", Run(path).manifest if is_run(path) else {})
    # Another process may have finished the run while this one waited for the lock.
    run = Run(path) if is_run(path) else None
    if run and not rerun and run.manifest.get("status") == "complete":
        held.release()
        return Claim(path, "complete", run.manifest)
    if run is None or rerun:
        _empty(path)
        return Claim(path, "fresh", {"format": FORMAT}, held)
    for leftover in (*path.glob("*.partial"), *path.glob(".tmp*")):
        leftover.unlink(missing_ok=True)
    return Claim(path, "resume", dict(run.manifest), held)


def _empty(path: Path) -> None:
    # The manifest goes first: a kill in between must not leave a run that calls itself complete.
    (path / "run.json").unlink(missing_ok=True)
    for item in path.iterdir():
        if item.name == lock.LOCK_NAME:
            continue
        shutil.rmtree(item) if item.is_dir() else item.unlink()
