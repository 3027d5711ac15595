"""Files that survive a power cut: written under another name, flushed to the disk with their folder, then renamed.

Every writer here leaves the old file or the new one, never half, and no partial file after an error.
"""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the name of a file to write; afterwards it takes the place of ``path``, on the disk and in its folder.

    For writers that want a name; ``writing`` opens the file itself.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Yield an open file for content of any size; afterwards it takes the place of ``path``."""
    with replacing(path) as partial, open(partial, "wb") as file:
        yield file


def write_atomic(path: Path, content: bytes) -> None:
    """Replace ``path`` by a file of this ``content`` in one step."""
    with writing(path) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as readable JSON in one step."""
    write_atomic(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        # Some network and FUSE file systems cannot.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(number)


def sync_tree(folder: Path) -> None:
    """Wait until every file below ``folder``, and ``folder`` itself, is on the disk."""
    for inner, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(inner, name))
        sync(Path(inner))
