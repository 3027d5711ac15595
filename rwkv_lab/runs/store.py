"""Taking, choosing, removing and unlocking run directories.

One process per run: an advisory lock that the system frees when its holder dies, so it is never stale.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from rwkv_lab.config.errors import UserError, nearest
from rwkv_lab.runs.manifest import FORMAT, write_manifest
from rwkv_lab.runs.run import LOCK_NAME, Run, find, is_locked, is_run, load
from rwkv_lab.util.paths import runs_dir

State = Literal["new", "resume", "complete", "stopped early", "locked"]


@dataclass
class RunHandle:
    """A run directory and what this process may do with it; locked for this process if ``new`` or ``resume``."""

    path: Path
    state: State
    manifest: dict[str, Any]
    lock: FileLock | None = None

    def record(self, **fields: Any) -> None:
        """Update run.json in one atomic step."""
        self.manifest |= fields
        write_manifest(self.path, self.manifest)

    def release(self) -> None:
        """Free the lock, if this process holds it."""
        if self.lock is not None:
            self.lock.release()


def lock(folder: Path) -> FileLock | None:
    """Take the run's lock; None if another process holds it.

    Waits a second first, since ``is_locked`` in another process holds the lock for an instant.
    """
    taken = FileLock(folder / LOCK_NAME)
    try:
        taken.acquire(timeout=1.0)
    except Timeout:
        return None
    return taken


def _over(status: str | None, rerun: bool, early: bool) -> bool:
    """Return whether a run of ``status`` needs no more work; ``early``: one that was stopped early is left so."""
    return not rerun and (status == "complete" or (early and status == "stopped early"))


def unavailable(path: Path, rerun: bool, early: bool = False) -> RunHandle | None:
    """Return the handle of a run that is over or locked, without touching it; None if there is work to do."""
    status = Run(path).status if is_run(path) else None
    if _over(status, rerun, early):
        return RunHandle(path, status, Run(path).manifest)  # type: ignore[arg-type]
    if status == "running":
        return RunHandle(path, "locked", Run(path).manifest)
    return None


def acquire_run(path: Path, rerun: bool, early: bool = False) -> RunHandle:
    """Take the run directory ``path``, which is made if it is missing.

    complete, stopped early   nothing to do; the second only with ``early``, else such a run is resumed
    locked                    another process has the run
    new, resume               locked for this process; ``rerun`` empties the directory first

    Raises UserError if the directory cannot be written.
    """
    status = Run(path).status if is_run(path) and not rerun else None
    if _over(status, rerun, early):
        return RunHandle(path, status, Run(path).manifest)  # type: ignore[arg-type]
    try:
        path.mkdir(parents=True, exist_ok=True)
        taken = lock(path)
    except OSError as error:
        raise UserError(f"the run directory {path} cannot be written: {error.strerror}") from None
    if taken is None:
        return RunHandle(path, "locked", Run(path).manifest if is_run(path) else {})
    try:
        # Another process may have finished the run while this one waited for the lock.
        run = Run(path) if is_run(path) else None
        if run and not rerun and _over(run.manifest.get("status"), rerun, early):
            taken.release()
            return RunHandle(path, run.manifest["status"], run.manifest)
        if run is None or rerun:
            _empty(path)
            return RunHandle(path, "new", {"format": FORMAT}, taken)
        for leftover in (*path.glob("*.partial"), *path.glob(".tmp*")):
            leftover.unlink(missing_ok=True)
        return RunHandle(path, "resume", dict(run.manifest), taken)
    except BaseException:
        taken.release()
        raise


def discard_if_empty(handle: RunHandle) -> None:
    """Remove the directory of a new run that was refused before it recorded anything."""
    if handle.state == "new" and not is_run(handle.path) and {p.name for p in handle.path.iterdir()} <= {LOCK_NAME}:
        shutil.rmtree(handle.path, ignore_errors=True)


def _empty(path: Path) -> None:
    # The manifest goes first: after a kill in between the run must not count as complete.
    (path / "run.json").unlink(missing_ok=True)
    for item in path.iterdir():
        if item.name == LOCK_NAME:
            continue
        shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()


def remove(folder: Path) -> bool:
    """Remove a run's directory, and its study's if that is empty then; False if a process holds the run."""
    try:
        taken = lock(folder)
        if taken is None:
            return False
        try:
            # Without its manifest it is not a run any more, however far the rest comes.
            (folder / "run.json").unlink(missing_ok=True)
            shutil.rmtree(folder)
        finally:
            taken.release()
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()
    except OSError as error:
        raise UserError(f"{folder} cannot be removed: {error.strerror}") from None
    return True


def unlock(folder: Path, force: bool) -> bool:
    """Remove the lock's file; False if a living process holds it and ``force`` is not set.

    On file systems with locks a dead process holds none; on some network shares its file stays behind.
    """
    if is_locked(folder) and not force:
        return False
    try:
        (folder / LOCK_NAME).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder / LOCK_NAME} cannot be removed: {error.strerror}") from None
    return True


def studies(names: Sequence[str], root: Path | None = None) -> list[Run]:
    """Return the runs of studies, given as names below ``root`` (default: runs/) or paths; of all without a name."""
    root = root or runs_dir()
    if not names:
        return find(root) if any(root.glob("*/*/run.json")) else []
    found: dict[Path, Run] = {}
    for name in names:
        folder = root / name if (root / name).is_dir() else Path(name)
        if not folder.is_dir():
            known = sorted(path.name for path in root.glob("*") if path.is_dir() and not path.name.startswith("."))
            raise UserError(f"there is no study {name}{nearest(name, known)}: {root} has {', '.join(known) or 'none'}")
        found |= {run.path: run for run in find(folder)}
    return list(found.values())


def select(text: str, root: Path | None = None, exact: bool = False) -> Run:
    """Return the run that ``text`` names: a path, STUDY/NAME, a name or its start, or an id.

    ``root``   folder of all runs (default: runs/)
    ``exact``  the start of a name does not count, as before something is destroyed

    Raises UserError if there is none, or several.
    """
    root = root or runs_dir()
    for path in (Path(text), root / text):
        if is_run(path):
            return load(path)
    for path in (root / text, Path(text)):
        below = find(path) if text.strip("./") and path.is_dir() and any(path.glob("**/run.json")) else []
        if below:
            raise UserError(f"{text} contains {len(below)} runs: name one, e.g. {below[0].study}/{below[0].name}")
    # STUDY/NAME never matches a run of another study.
    study, _, wanted = text.rpartition("/")
    every = [manifest.parent for manifest in sorted(root.glob("*/*/run.json"))]
    candidates = [path for path in every if study in ("", path.parent.name)]
    matching = [path for path in candidates if wanted and wanted in (path.name, path.name.rpartition("-")[2])]
    if not matching and not exact and wanted:
        matching = [path for path in candidates if path.name.startswith(wanted)]
    if len(matching) == 1:
        return load(matching[0])
    if matching:
        shown = ", ".join(f"{path.parent.name}/{path.name}" for path in matching[:5])
        raise UserError(f"{text} is the name of {len(matching)} runs: {shown}{', ...' if len(matching) > 5 else ''}")
    whole = " (give the whole name, STUDY/NAME or an id)" if exact else ""
    likely = nearest(wanted, [path.name for path in candidates])
    raise UserError(f"there is no run {text or repr('')}{likely}{whole} in {root}: see rwkv-lab runs list")
