"""Downloads into the cache: once for all processes, verified, retried, and explained when it cannot be done."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rwkv_lab.config.errors import UserError
from rwkv_lab.data.token_cache import locked, write_once, writing
from rwkv_lab.util.hashing import file_sha256

RETRIES = 3
TIMEOUT = 30


class _Refused(Exception):
    """The server answered, and asking again would not help."""


def fetch(name: str, urls: Sequence[str], sha256: str | None, cache: Path, corpus: str) -> Path:
    """The file ``name`` in the cache's downloads, fetched from the first of ``urls`` that gives it.

    It must have ``sha256``; with None, whatever came first is trusted, recorded, and expected ever after. Raises
    ``UserError`` that says which file to fetch by other means and where to put it."""
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
                with writing(cache):
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
    """Trust on first use: notes the sha256 of ``file`` under ``name`` and returns it.

    Raises ``UserError`` when another one was noted before."""
    found, expected = file_sha256(file, "data", memo=memo), recorded(folder, name)
    if expected is None:
        write_once(_record_file(folder, name), json.dumps({"sha256": found}).encode())
    elif found != expected:
        raise UserError(_changed(file, found, expected))
    return found


def recorded(folder: Path, name: str) -> str | None:
    """The sha256 noted for ``name`` when it was first used."""
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
    """Downloads ``url`` to ``target``; None, or in a few words why that was not possible."""
    import pooch
    import requests

    download = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), chunk_size=1 << 16, timeout=TIMEOUT)

    def give_up_early(url: str, output_file: Any, pooch: Any, check_only: bool = False) -> Any:
        try:
            return download(url, output_file, pooch, check_only)
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if 400 <= status < 500 and status not in (408, 429):
                raise _Refused(f"the server says {status}") from error
            raise

    pooch.get_logger().setLevel("ERROR")
    work = target.with_name(f"{target.name}.partial")
    manager = pooch.create(work, "", registry={target.name: sha256}, urls={target.name: url}, retry_if_failed=RETRIES)
    print(f"downloading {url}", file=sys.stderr)
    try:
        shutil.rmtree(work, ignore_errors=True)
        Path(manager.fetch(target.name, downloader=give_up_early)).rename(target)
    except _Refused as refused:
        return str(refused)
    except requests.HTTPError as error:
        return "the server says " + (str(error.response.status_code) if error.response is not None else "nothing")
    except requests.Timeout:
        return f"no answer within {TIMEOUT} seconds"
    except requests.exceptions.ChunkedEncodingError:
        return "the connection was cut again and again"
    except requests.ConnectionError:
        return "no connection"
    except ValueError:
        return "what came has another sha256 than it should"
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return None
