"""Where things are, and how files are written so that a crash leaves the old or the new one, never half."""

import errno
import json
import os
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


def runs_dir(config_value: str | None = None) -> Path:
    """Return the folder of all runs: ``config_value`` (``~`` expands), or by default runs/ of the checkout.

    Installed outside a checkout, the default is runs/ of the current folder.
    """
    if config_value:
        return Path(config_value).expanduser().absolute()
    in_checkout = (REPOSITORY / "run.py").is_file()
    return (REPOSITORY if in_checkout else Path.cwd()) / "runs"


def put_in_place(partial: Path, path: Path) -> None:
    """Rename the written file ``partial`` to ``path``; both its content and its name then survive a power cut."""
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names of new files in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and FUSE file systems cannot.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: bytes) -> None:
    """Replace ``path`` in one step; on any error the old file stays and no partial file is left behind."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
        put_in_place(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """``value`` as readable JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())
