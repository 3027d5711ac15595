"""What commands write: results in one step each or a sentence, figures as decoration."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rwkv_lab.config.errors import UserError
from rwkv_lab.util.console import harmless, warn

TRIAL_BYTES = 1 << 16


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Show a spinner with ``what`` while the block works, on a terminal only."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


def folder_for_results(folder: Path) -> Path:
    """Make ``folder`` and return it; UserError unless a small file can be written there.

    Commands call this before the work whose results go there.
    """
    with unwritten(f"--out {folder}"):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--out {folder} is a file: give a folder")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(TRIAL_BYTES))
    return folder


@contextmanager
def unwritten(name: str) -> Iterator[None]:
    """Turn a failed write, e.g. on a full disk, into a UserError about ``name``."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{name} cannot be written: {error.strerror or error}") from None


def drawn(draw: Callable[[], Sequence[str]]) -> list[str]:
    """Return the names of the figures that ``draw`` makes; one warning and none if it fails."""
    try:
        return list(draw())
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warn(f"the figures could not be made: {reason}")
        return []


def listed(folder: Path, files: Sequence[str], figures: Sequence[str]) -> str:
    """Return the line on what was written: files, and figures by their names."""
    names = [*files, *([f"{', '.join(figures)} (.png, .svg)"] if figures else [])]
    return harmless(f"\nwritten to {folder}/: {', '.join(names)}")
