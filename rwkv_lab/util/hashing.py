"""Content hashes of files, folders and globs, computed once per process and content."""

import contextlib
import glob
import hashlib
import os
from functools import lru_cache
from pathlib import Path

from rwkv_lab.config.errors import UserError

# files below this size are hashed anew by every process, which takes less than 0.2 s
LARGE = 1 << 26


def text_sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def expand(path: str, key: str = "data.path", suffix: str = ".txt") -> list[Path]:
    """Files that ``path`` names: the file itself, the ``suffix`` files of a folder (recursively) or the matches of a
    glob, in sorted order. Raises ``UserError`` naming ``key`` when there is none."""
    plain = Path(path).expanduser()
    if plain.is_file():
        return [plain]
    if plain.is_dir():
        found = sorted(file for file in plain.rglob(f"*{suffix}") if file.is_file())
        if not found:
            raise UserError(f"{key}={path} is a folder without any {suffix} file")
        return found
    found = sorted(Path(name) for name in glob.glob(str(plain), recursive=True) if os.path.isfile(name))
    if not found:
        missing = "is neither a file nor a folder" if plain.exists() else "does not exist"
        kind = "matches no file" if glob.has_magic(path) else missing
        raise UserError(f"{key}={path} {kind}: give an existing file, folder or glob")
    return found


def fingerprint(path: Path) -> tuple[str, int, int, int, int]:
    """(path, size, mtime, ctime, inode): as long as this is the same, so is the content."""
    stat = path.stat()
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def file_sha256(path: str | Path, key: str = "data.path", suffix: str = ".txt", memo: Path | None = None) -> str:
    """sha256 (hex) of the file ``path``; of a folder or glob, the hash of its files' hashes in sorted order.

    Streamed. Large files are not read again while size, times and inode stay the same: within the process, and across
    processes where ``memo`` names a folder. Raises ``UserError`` naming ``key`` for a missing or unreadable file."""
    files = expand(str(path), key, suffix)
    try:
        hashes = [_remembered(fingerprint(file), memo) for file in files]
    except OSError as error:
        raise UserError(f"{key}={path} cannot be read: {error.strerror}") from error
    return hashes[0] if len(hashes) == 1 else text_sha256("\n".join(hashes).encode())


def _remembered(mark: tuple[str, int, int, int, int], memo: Path | None) -> str:
    if memo is None or mark[1] < LARGE:
        return _hash(mark)
    note = memo / text_sha256(repr(mark).encode())
    if note.is_file() and len(known := note.read_text()) == 64:
        return known
    found = _hash(mark)
    with contextlib.suppress(OSError):
        memo.mkdir(parents=True, exist_ok=True)
        partial = note.with_suffix(f".{os.getpid()}")
        partial.write_text(found)
        partial.replace(note)
    return found


@lru_cache(maxsize=4096)
def _hash(mark: tuple[str, int, int, int, int]) -> str:
    with open(mark[0], "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
