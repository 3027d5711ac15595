"""Content hashes of files, folders and globs, computed once per process and content."""

import glob
import hashlib
import os
from functools import lru_cache
from pathlib import Path

from rwkv_lab.errors import Mistake

BLOCK = 1 << 20


def text_sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def expand(path: str, key: str = "data.path", suffix: str = ".txt") -> list[Path]:
    """Files that ``path`` names: the file itself, the ``suffix`` files of a folder (recursively) or the matches of a
    glob, in sorted order. Raises ``Mistake`` naming ``key`` when there is none."""
    plain = Path(path).expanduser()
    if plain.is_file():
        return [plain]
    if plain.is_dir():
        found = sorted(file for file in plain.rglob(f"*{suffix}") if file.is_file())
        if not found:
            raise Mistake(f"{key}={path} is a folder without any {suffix} file")
        return found
    found = sorted(Path(name) for name in glob.glob(str(plain), recursive=True) if os.path.isfile(name))
    if not found:
        kind = "matches no file" if glob.has_magic(path) else "does not exist"
        raise Mistake(f"{key}={path} {kind}: give an existing file, folder or glob")
    return found


def fingerprint(path: Path) -> tuple[str, int, int, int, int]:
    """(path, size, mtime, ctime, inode): as long as this is the same, so is the content."""
    stat = path.stat()
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def file_sha256(path: str | Path, key: str = "data.path", suffix: str = ".txt") -> str:
    """sha256 (hex) of the file ``path``; of a folder or glob, the hash of its files' hashes in sorted order.

    Streamed. Raises ``Mistake`` naming ``key`` when nothing is there or it cannot be read."""
    files = expand(str(path), key, suffix)
    try:
        hashes = [_hash(fingerprint(file)) for file in files]
    except OSError as error:
        raise Mistake(f"{key}={path} cannot be read: {error.strerror}") from error
    return hashes[0] if len(hashes) == 1 else text_sha256("\n".join(hashes).encode())


@lru_cache(maxsize=4096)
def _hash(mark: tuple[str, int, int, int, int]) -> str:
    digest = hashlib.sha256()
    with open(mark[0], "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
