"""Chosen files of a zip archive, unpacked into the cache without trusting names and sizes inside the archive."""

import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from rwkv_lab.config.errors import UserError
from rwkv_lab.data.cache import cache_errors, locked
from rwkv_lab.util.hashing import checksum, file_sha256, intact, read_sealed, write_sealed
from rwkv_lab.util.io import writing

BLOCK = 1 << 20
MANIFEST = "unpacked.json"


def unpacked(archive: Path, name: str, members: tuple[str, ...], limit: int, cache: Path, key: str) -> list[Path]:
    """Return ``members`` of the archive as files of the cache, in a folder of their own for an archive of the user's.

    A file that is missing, or that does not match the checksum taken when it was unpacked, is unpacked again. Raises
    UserError naming ``key`` and the archive.
    """
    folder = name if key != "data.path" else f"{name}-{file_sha256(archive, key, memo=cache / 'hashes')[:16]}"
    base = cache / "corpora" / folder
    targets = {member: base / member for member in members}
    with locked(cache, f"extract-{folder}"), cache_errors(cache):
        recorded = _recorded(base / MANIFEST)
        wanted = {
            member: target
            for member, target in targets.items()
            if member not in recorded or not intact(target, recorded[member])
        }
        if wanted:
            extract(archive, wanted, limit, key)
            write_sealed(base / MANIFEST, recorded | {member: checksum(target) for member, target in wanted.items()})
    return list(targets.values())


def _recorded(manifest: Path) -> dict[str, Any]:
    try:
        return read_sealed(manifest)
    except (OSError, ValueError):
        return {}


def extract(archive: Path, wanted: Mapping[str, Path], limit: int, key: str) -> None:
    """Write each member that ``wanted`` names to the path beside it.

    A member is found by the end of its name (``folder/train.txt``), and only its bytes are used: names with ``..``,
    absolute names and all other members are ignored, and a member is at most ``limit`` bytes. Raises UserError naming
    ``key`` and the archive.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            for suffix, target in wanted.items():
                _copy(content, _member(content, suffix, archive, key), target, limit, archive, key)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise UserError(f"{key}={archive} is not a readable zip archive: {error}") from error


def _member(content: zipfile.ZipFile, suffix: str, archive: Path, key: str) -> zipfile.ZipInfo:
    asked = PurePosixPath(suffix).parts
    found = [
        info
        for info in content.infolist()
        if _plain(info) and PurePosixPath(info.filename).parts[-len(asked) :] == asked
    ]
    if len(found) != 1:
        raise UserError(f"{key}={archive} must have exactly one file {suffix} (it has {len(found)})")
    return found[0]


def _plain(info: zipfile.ZipInfo) -> bool:
    name = info.filename
    return not (info.is_dir() or name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"))


def _copy(content: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, limit: int, archive: Path, key: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with content.open(info) as source, writing(target) as file:
        while block := source.read(BLOCK):
            written += len(block)
            if written > limit:
                raise UserError(f"{key}={archive}: {info.filename} is larger than the {limit} bytes it may have")
            file.write(block)
