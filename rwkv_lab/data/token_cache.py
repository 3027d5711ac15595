"""Token ids on disk: built once, memory-mapped afterwards, safe against a second process and a killed one.

An entry is the folder <cache>/tokens/<key> with <split>.tokens, <split>.lengths (bytes of text behind each token),
tokenizer.json and meta.json. It is written under another name and renamed when complete.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rwkv_lab.config.errors import UserError
from rwkv_lab.util.console import say

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Split:
    """A part of a corpus: its tokens, memory-mapped, and the bytes of text they stand for."""

    # [N] uint8, uint16 or uint32
    tokens: np.ndarray
    # bytes of text behind each token [N]; or one number for all: 1, or 0 where they are not known
    lengths: np.ndarray | int
    # how many tokens stand for an unknown character
    unknown: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    def bytes_between(self, start: int, stop: int) -> int:
        """Bytes of the text behind the tokens ``start`` to ``stop - 1``; 0 when token ids came without text."""
        if isinstance(self.lengths, int):
            return self.lengths * (stop - start)
        return int(self.lengths[start:stop].sum(dtype=np.int64))

    def first(self, count: int) -> "Split":
        """The first ``count`` tokens, as a view; ``unknown`` stays that of the whole."""
        return Split(
            self.tokens[:count], self.lengths if isinstance(self.lengths, int) else self.lengths[:count], self.unknown
        )


class Part:
    """Writes one split into the folder of an entry, block by block."""

    def __init__(self, folder: Path, name: str, vocab_size: int, unknown_id: int | None) -> None:
        self.folder, self.name, self.unknown_id = folder, name, unknown_id
        self.dtype = np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.uint32

    def write(self, stream: Iterator[tuple[np.ndarray, np.ndarray | None]], bytes_each: int = 1) -> dict[str, Any]:
        """What meta.json says of the split; ``bytes_each`` counts where the stream gives no lengths."""
        count = unknown = text_bytes = 0
        lengths_type = None
        with (
            _file(self.folder / f"{self.name}.tokens") as tokens,
            _file(self.folder / f"{self.name}.lengths") as lengths,
        ):
            for ids, sizes in stream:
                ids.astype(self.dtype, copy=False).tofile(tokens)
                count += len(ids)
                if self.unknown_id is not None:
                    unknown += int((ids == self.unknown_id).sum())
                if sizes is not None:
                    sizes.tofile(lengths)
                    lengths_type = sizes.dtype.name
                text_bytes += bytes_each * len(ids) if sizes is None else int(sizes.sum(dtype=np.int64))
        if lengths_type is None:
            (self.folder / f"{self.name}.lengths").unlink()
        return {
            "tokens": count,
            "type": np.dtype(self.dtype).name,
            "lengths": lengths_type or bytes_each,
            "unknown": unknown,
            "text_bytes": text_bytes,
        }


def entry(cache: Path, key: str, build: Callable[[Path], Mapping[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """The folder and meta.json of the entry ``key``, calling ``build(folder) -> meta`` unless it is there and whole."""
    folder = cache / "tokens" / key
    meta = _whole(folder)
    if meta is not None:
        return folder, meta
    with locked(cache, f"tokens-{key}"), writing(cache):
        meta = _whole(folder)
        if meta is None:
            meta = _built(folder, build)
    return folder, dict(meta)


def _built(folder: Path, build: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    partial = folder.with_name(f"{folder.name}.partial")
    for stale in (partial, folder):
        shutil.rmtree(stale, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        meta = {"format": FORMAT, **build(partial)}
        with _file(partial / "meta.json") as file:
            file.write(json.dumps(meta, indent=1).encode())
        partial.rename(folder)
    finally:
        # after an error, such as a full disk, what was written is of no use
        shutil.rmtree(partial, ignore_errors=True)
    return meta


def open_split(folder: Path, name: str, meta: Mapping[str, Any]) -> Split | None:
    """The split ``name`` of an entry, None when it is empty or not there."""
    part = meta["splits"].get(name)
    if not part or not part["tokens"]:
        return None
    tokens = np.memmap(folder / f"{name}.tokens", part["type"], mode="r")
    lengths = part["lengths"]
    if isinstance(lengths, str):
        lengths = np.memmap(folder / f"{name}.lengths", lengths, mode="r")
    return Split(tokens, lengths, part["unknown"])


@contextmanager
def locked(cache: Path, name: str) -> Iterator[None]:
    """Holds the lock ``name`` of the cache; says so when another process has it. A dead process holds none."""
    from filelock import FileLock, Timeout

    with writing(cache):
        (cache / "locks").mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache / "locks" / f"{name}.lock")
        try:
            # A second passes without a word: the ranks of a run come here together.
            lock.acquire(timeout=1)
        except Timeout:
            say("waiting for another process that prepares the same data")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def writing(cache: Path) -> Iterator[None]:
    """Turns a failed write to the cache (full, read-only) into a ``UserError`` that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"data.cache_dir={cache} cannot be written: {error.strerror or error}") from error


def write_once(path: Path, data: bytes) -> Path:
    """A file of the cache with this content, written under another name and renamed."""
    if path.is_file() and path.stat().st_size == len(data):
        return path
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.write_bytes(data)
        partial.replace(path)
    return path


def _whole(folder: Path) -> dict[str, Any] | None:
    """meta.json of a complete entry: right format, every file of the size it should have."""
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_bytes())
        if meta["format"] != FORMAT:
            return None
        for name, part in meta["splits"].items():
            sizes = {"tokens": part["type"]} | (
                {"lengths": part["lengths"]} if isinstance(part["lengths"], str) else {}
            )
            for suffix, kind in sizes.items():
                if (folder / f"{name}.{suffix}").stat().st_size != part["tokens"] * np.dtype(kind).itemsize:
                    return None
        return meta
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _file(path: Path) -> Iterator[Any]:
    """A new file whose content has reached the disk when the block is left."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
