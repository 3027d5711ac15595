"""Hashes of files: sha256 for identity, a fast checksum for damage."""

import contextlib
import glob
import hashlib
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import xxhash

from rwkv_lab.config.errors import UserError
from rwkv_lab.util.io import write_atomic, write_json

LARGE = 1 << 26  # bytes; smaller files are hashed anew by every process
BLOCK = 1 << 20
CHECKSUM = "xxh3_128"
Buffer = bytes | bytearray | memoryview


def text_sha256(data: bytes) -> str:
    """Return the sha256 of ``data`` (hex)."""
    return hashlib.sha256(data).hexdigest()


def expand(path: str, key: str = "data.path", suffix: str = ".txt") -> list[Path]:
    """Return the files ``path`` names, sorted: the file itself, a folder's ``suffix`` files at any depth, or a glob's.

    ``~`` is the home folder. Raises UserError naming ``key`` if there is none.
    """
    plain = home_expanded(path, key)
    if plain.is_file():
        return [plain]
    if plain.is_dir():
        found = sorted(file for file in plain.rglob(f"*{suffix}") if file.is_file())
        if not found:
            raise UserError(f"{key}={path} has no {suffix} file in it: give a file or another folder")
        return found
    found = sorted(Path(name) for name in glob.glob(str(plain), recursive=True) if os.path.isfile(name))
    if not found:
        missing = "is neither a file nor a folder" if plain.exists() else "does not exist"
        kind = "matches no file" if glob.has_magic(path) else missing
        raise UserError(f"{key}={path} {kind}: give an existing file, folder or glob")
    return found


def home_expanded(path: str, key: str) -> Path:
    """Return ``path`` with ``~`` expanded; UserError naming ``key`` for a home folder that is not known."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{key}={path}: the home folder is not known: write the path from / on") from None


def fingerprint(path: Path) -> tuple[str, int, int, int, int]:
    """Return (path, size, mtime, ctime, inode): while these stay, so does the content."""
    stat = path.stat()
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def file_sha256(path: str | Path, key: str = "data.path", suffix: str = ".txt", memo: Path | None = None) -> str:
    """Return the sha256 (hex) of a file; of a folder or glob, the hash of its files' hashes in sorted order.

    A file is not read again while its fingerprint stays: within the process, and for large files across processes if
    ``memo`` names a folder. Raises UserError naming ``key`` for a missing or unreadable file.
    """
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
    with contextlib.suppress(OSError, UnicodeDecodeError):
        known, _, seal = note.read_text().partition(" ")
        if seal == text_sha256(f"{note.name} {known}".encode()):
            return known
    found = _hash(mark)
    with contextlib.suppress(OSError):
        memo.mkdir(parents=True, exist_ok=True)
        write_atomic(note, f"{found} {text_sha256(f'{note.name} {found}'.encode())}".encode())
    return found


@lru_cache(maxsize=4096)
def _hash(mark: tuple[str, int, int, int, int]) -> str:
    with open(mark[0], "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Checksum:
    """A running checksum: XXH3 of 128 bits, which finds damage at the speed of memory and proves no origin."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_128()

    def update(self, data: Buffer) -> None:
        self._state.update(data)

    def text(self) -> str:
        """Return the checksum as it is recorded: ``xxh3_128:`` and 32 hex digits."""
        return f"{CHECKSUM}:{self._state.hexdigest()}"


def checksum(path: Path) -> str:
    """Return the checksum of a file, for a manifest; OSError if it cannot be read."""
    total = Checksum()
    buffer = memoryview(bytearray(BLOCK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total.update(buffer[:count])
    return total.text()


def intact(path: Path, recorded: str | None) -> bool:
    """Return whether a file still has its ``recorded`` checksum.

    True for None, as manifests written before checksums have it. False for a file that is missing or unreadable.
    """
    if recorded is None:
        return True
    try:
        return checksum(path) == recorded
    except OSError:
        return False


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Replace ``path`` by JSON of ``value`` and a checksum of it under ``seal``, in one step."""
    write_json(path, {**value, "seal": _seal(value)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Return what ``write_sealed`` wrote; ValueError if its seal does not match, OSError if it cannot be read."""
    value = json.loads(path.read_bytes())
    if not isinstance(value, dict) or value.pop("seal", None) != _seal(value):
        raise ValueError(f"{path} does not match its checksum")
    return value


def _seal(value: Mapping[str, Any]) -> str:
    total = Checksum()
    total.update(json.dumps(value, sort_keys=True).encode())
    return total.text()
