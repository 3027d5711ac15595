"""Downloads into the cache: once for all processes, verified, retried, and explained if they fail."""

import json
import shutil
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from rwkv_lab.config.errors import UserError
from rwkv_lab.data.token_cache import cache_errors, locked
from rwkv_lab.util.hashing import checksum, file_sha256, intact, read_sealed, write_sealed
from rwkv_lab.util.io import sync, write_json, writing

RETRIES = 3
TIMEOUT = 30


class _Refused(Exception):
    """An answer of the server that would not change."""


def fetch(name: str, urls: Sequence[str], sha256: str | None, cache: Path, corpus: str) -> Path:
    """Return the file ``name`` in the cache's downloads, fetched from the first of ``urls`` that gives it.

    It must have ``sha256``; for None, the first download is trusted, recorded, and expected from then on. Raises
    UserError that names the file to fetch by other means and where to put it.
    """
    folder = cache / "downloads"
    target = folder / name
    with locked(cache, f"download-{name}"):
        expected = sha256 or recorded(folder, name)
        if target.is_file():
            found = file_sha256(target, f"data={corpus}")
            if expected and found != expected:
                raise UserError(_changed(target, found, expected))
        else:
            reasons = []
            for url in urls:
                with cache_errors(cache):
                    reason = _retrieve(url, expected, target)
                if reason is None:
                    break
                reasons.append(f"{url}: {reason}")
            else:
                raise UserError(
                    f"data={corpus} cannot be downloaded ({'; '.join(reasons)}): fetch {name} by other means "
                    f"and put it at {target}, or give a local copy by data.path="
                )
        if sha256 is None:
            record(folder, name, target)
    return target


def record(folder: Path, name: str, file: Path, memo: Path | None = None) -> str:
    """Record the sha256 of ``file`` under ``name`` at its first use, and return it.

    Raises UserError if another one is recorded.
    """
    found, expected = file_sha256(file, "data", memo=memo), recorded(folder, name)
    if expected is None:
        note = _record_file(folder, name)
        with cache_errors(folder):
            note.parent.mkdir(parents=True, exist_ok=True)
            write_json(note, {"sha256": found})
    elif found != expected:
        raise UserError(_changed(file, found, expected))
    return found


def recorded(folder: Path, name: str) -> str | None:
    """Return the sha256 recorded for ``name`` at its first use; None before that."""
    try:
        return str(json.loads(_record_file(folder, name).read_bytes())["sha256"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{_record_file(folder, name)} is damaged: remove it to trust {name} as it is now") from error


def _record_file(folder: Path, name: str) -> Path:
    return folder / f"{name.replace('/', '-')}.sha256.json"


def _changed(file: Path, found: str, expected: str) -> str:
    return f"{file} is not the file expected (sha256 {found[:16]}…, not {expected[:16]}…): remove it to fetch it again"


def _retrieve(url: str, sha256: str | None, target: Path) -> str | None:
    """Download ``url`` to ``target``; return None, or the reason of a failure in a few words."""
    import pooch
    import requests

    download = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), chunk_size=1 << 16, timeout=TIMEOUT)

    def give_up_early(url: str, output_file: Any, pooch: Any, check_only: bool = False) -> Any:
        try:
            return download(url, output_file, pooch, check_only)
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if 400 <= status < 500 and status not in (408, 429):
                raise _Refused(f"the server answered {status}") from error
            raise

    pooch.get_logger().setLevel("ERROR")
    work = target.with_name(f"{target.name}.partial")
    manager = pooch.create(work, "", registry={target.name: sha256}, urls={target.name: url}, retry_if_failed=RETRIES)
    print(f"downloading {url}", file=sys.stderr)
    try:
        shutil.rmtree(work, ignore_errors=True)
        fetched = Path(manager.fetch(target.name, downloader=give_up_early))
        sync(fetched)
        fetched.rename(target)
        sync(target.parent)
    except _Refused as refused:
        return str(refused)
    except requests.HTTPError as error:
        return f"the server answered {error.response.status_code if error.response is not None else 'with an error'}"
    except requests.Timeout:
        return f"no answer within {TIMEOUT} seconds"
    except requests.exceptions.ChunkedEncodingError:
        return "the connection was cut again and again"
    except requests.ConnectionError:
        return "no connection"
    except ValueError:
        return "its sha256 is not the one expected"
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return None


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
