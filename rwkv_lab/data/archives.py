"""Takes chosen files out of a zip archive without trusting what the archive says about itself."""

import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from rwkv_lab.config.errors import UserError

BLOCK = 1 << 20


def extract(archive: Path, wanted: Mapping[str, Path], limit: int, key: str) -> None:
    """Writes each member ``wanted`` names to the path that stands beside it, through a temporary file.

    A member is found by the end of its name (``folder/train.txt``), and only its bytes are used: names with ``..``,
    absolute names and everything unasked-for are ignored, and no more than ``limit`` bytes are written of any member.
    Raises ``UserError`` naming ``key`` and the archive."""
    try:
        with zipfile.ZipFile(archive) as content:
            for suffix, target in wanted.items():
                _copy(content, _member(content, suffix, archive, key), target, limit, archive, key)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise UserError(f"{key}={archive} is no readable zip archive: {error}") from error


def _member(content: zipfile.ZipFile, suffix: str, archive: Path, key: str) -> zipfile.ZipInfo:
    asked = PurePosixPath(suffix).parts
    found = [
        info
        for info in content.infolist()
        if _plain(info) and PurePosixPath(info.filename).parts[-len(asked) :] == asked
    ]
    if len(found) != 1:
        raise UserError(f"{key}={archive} holds {len(found) or 'no'} files {suffix}: exactly one is expected")
    return found[0]


def _plain(info: zipfile.ZipInfo) -> bool:
    name = info.filename
    return not (info.is_dir() or name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/"))


def _copy(content: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, limit: int, archive: Path, key: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    written = 0
    with content.open(info) as source, open(partial, "wb") as file:
        while block := source.read(BLOCK):
            written += len(block)
            if written > limit:
                partial.unlink()
                raise UserError(f"{key}={archive}: {info.filename} is larger than the {limit} bytes it may have")
            file.write(block)
    partial.replace(target)
