"""Taking runs away, and freeing one whose lock outlived its holder."""

import shutil
from pathlib import Path

from rwkv_lab.config.errors import UserError
from rwkv_lab.runs import lock


def remove(folder: Path) -> bool:
    """Removes a run's directory, and its study's when that is empty then; False where a process holds the run."""
    try:
        held = lock.acquire(folder)
        if held is None:
            return False
        try:
            # Without its manifest it is no run any more, however far the rest comes.
            (folder / "run.json").unlink(missing_ok=True)
            shutil.rmtree(folder)
        finally:
            held.release()
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()
    except OSError as error:
        raise UserError(f"{folder} cannot be removed: {error.strerror}") from None
    return True


def unlock(folder: Path, force: bool) -> bool:
    """Removes the lock's file unless a living process holds it; ``force`` removes it all the same.

    On file systems with locks a dead process holds none; on others, some network shares, its file stays behind.
    """
    if lock.is_held(folder) and not force:
        return False
    try:
        (folder / lock.LOCK_NAME).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder / lock.LOCK_NAME} cannot be removed: {error.strerror}") from None
    return True
