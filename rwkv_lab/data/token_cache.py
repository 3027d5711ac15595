"""Token ids on disk: built once, memory-mapped afterwards, safe against other processes, kills and damage.

An entry is the folder <cache>/tokens/<key> with <split>.tokens, <split>.lengths (bytes of text behind each token),
tokenizer.json and meta.json. It is written under another name, flushed, and renamed when complete. meta.json carries a
checksum of every file and one of its own; all are verified when an entry is opened, and a damaged entry is made again.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.kinds import DataConfig
from rwkv_lab.data.sampling import offsets, windows
from rwkv_lab.util.console import say, warn
from rwkv_lab.util.hashing import Checksum, checksum, home_expanded, intact, read_sealed, write_sealed
from rwkv_lab.util.io import sync, sync_tree

FORMAT = 2
FILL = 1 << 20
Stream = Iterator[tuple[np.ndarray, np.ndarray | None]]  # ids, and bytes of text behind each; None: one number for all


class Sequences(NamedTuple):
    """Some sequences of a split, and what a corpus may tell of them beside their tokens."""

    rows: np.ndarray  # [B,T+1] token ids
    weights: Any = None  # [B,T] of the losses of rows[:, 1:], or [B,T,J] of those of ``targets``; None: all alike
    targets: Any = None  # [B,T] or [B,T,J] tokens in place of rows[:, 1:], J at each position
    start: Any = None  # [B] place of the first token in its picture


@dataclass(frozen=True, eq=False)
class Split:
    """A part of a corpus: its tokens, memory-mapped, and the bytes of text they stand for."""

    tokens: np.ndarray  # [N] uint8, uint16 or uint32
    lengths: np.ndarray | int  # bytes of text behind each token [N]; or one number for all: 1, or 0 for unknown
    unknown: int = 0  # tokens that stand for an unknown character

    weighted: ClassVar[bool] = False  # whether ``sequences`` gives weights
    counted: ClassVar[str] = "answers"  # what has a weight above 0, in words

    def sequences(self, order: str, ctx_len: int, seed: int, first: int, count: int) -> tuple[Any, ...]:
        """Return the sequences number ``first`` to ``first + count - 1``, int64 [count,T+1], and None for weights.

        Other corpora give more, as in ``Sequences``.
        """
        return windows(self.tokens, offsets(order, len(self.tokens), ctx_len, seed, first, count), ctx_len), None

    def __len__(self) -> int:
        return len(self.tokens)

    def whole(self, ctx_len: int) -> int:
        """Return how many sequences of ``ctx_len`` it takes to read a weighted split once."""
        return len(self) // (ctx_len + 1)

    def bytes_between(self, start: int, stop: int) -> int:
        """Return the bytes of text behind the tokens ``start`` to ``stop - 1``; 0 for token ids without text."""
        if isinstance(self.lengths, int):
            return self.lengths * (stop - start)
        return int(self.lengths[start:stop].sum(dtype=np.int64))

    def first(self, count: int) -> "Split":
        """Return the first ``count`` tokens, as a view; ``unknown`` stays that of the whole."""
        return Split(
            self.tokens[:count], self.lengths if isinstance(self.lengths, int) else self.lengths[:count], self.unknown
        )


def id_type(vocab_size: int) -> type[np.unsignedinteger]:
    """Return the smallest type for the ids of a vocabulary."""
    return np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.uint32


def with_progress(stream: Stream, size: int, what: str) -> Stream:
    """Yield from a stream of text of ``size`` bytes; a terminal shows bytes, rate and time left after a second."""
    from tqdm import tqdm

    with tqdm(total=size, desc=what, unit="B", unit_scale=True, disable=None, delay=1, leave=False) as bar:
        for ids, sizes in stream:
            yield ids, sizes
            bar.update(len(ids) if sizes is None else int(sizes.sum(dtype=np.int64)))


class Part:
    """A writer of one split into the folder of an entry, block by block."""

    def __init__(self, folder: Path, name: str, vocab_size: int, unknown_id: int | None) -> None:
        self.folder, self.name, self.unknown_id = folder, name, unknown_id
        self.dtype = id_type(vocab_size)

    def write(self, stream: Stream, bytes_each: int = 1, keep: bool = True) -> dict[str, Any]:
        """Return what meta.json has of the split; a block without lengths has ``bytes_each`` behind every token.

        No lengths are stored until a block comes with its own, and no tokens without ``keep``.
        """
        count = unknown = text_bytes = 0
        lengths_type: np.dtype | None = None
        with (
            _summed(self.folder / f"{self.name}.tokens") as tokens,
            _summed(self.folder / f"{self.name}.lengths") as lengths,
        ):
            for ids, sizes in stream:
                if keep:
                    tokens.write(ids.astype(self.dtype, copy=False))
                if sizes is not None and lengths_type is None:
                    lengths_type = sizes.dtype
                    lengths.fill(bytes_each, count, lengths_type)
                if lengths_type is not None:
                    lengths.write(np.full(len(ids), bytes_each, lengths_type) if sizes is None else sizes)
                count += len(ids)
                if self.unknown_id is not None:
                    unknown += int(np.count_nonzero(ids == self.unknown_id))
                text_bytes += bytes_each * len(ids) if sizes is None else int(sizes.sum(dtype=np.int64))
        checksums = {}
        for summed, stored in ((tokens, keep), (lengths, lengths_type is not None)):
            if stored:
                checksums[summed.path.name] = summed.total.text()
            else:
                summed.path.unlink()
        return {
            "tokens": count,
            "type": np.dtype(self.dtype).name,
            "lengths": bytes_each if lengths_type is None else lengths_type.name,
            "unknown": unknown,
            "text_bytes": text_bytes,
            "checksums": checksums,
        }


class _Summed(NamedTuple):
    """An open file with a running checksum of what is written."""

    path: Path
    file: Any
    total: Checksum

    def write(self, array: np.ndarray) -> None:
        if not array.size:
            return
        block = np.ascontiguousarray(array).data.cast("B")
        self.total.update(block)
        self.file.write(block)

    def fill(self, value: int, count: int, dtype: np.dtype) -> None:
        for start in range(0, count, FILL):
            self.write(np.full(min(FILL, count - start), value, dtype))


@contextmanager
def _summed(path: Path) -> Iterator[_Summed]:
    with open(path, "wb") as file:
        yield _Summed(path, file, Checksum())


def entry(cache: Path, key: str, build: Callable[[Path], Mapping[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """Return the folder and meta.json of the entry ``key``; ``build(folder) -> meta`` makes one that is not whole."""
    folder = cache / "tokens" / key
    meta, _ = _opened(folder)
    if meta is not None:
        return folder, meta
    with locked(cache, f"tokens-{key}"), cache_errors(cache):
        meta, damaged = _opened(folder)
        if meta is None:
            if damaged:
                warn(f"{folder / damaged} is damaged; the tokens are made again")
            meta = _built(folder, build)
    return folder, meta


def _built(folder: Path, build: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    partial = folder.with_name(f"{folder.name}.partial")
    for stale in (partial, folder):
        shutil.rmtree(stale, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        meta = {"format": FORMAT, **build(partial)}
        checksums = {"tokenizer.json": checksum(partial / "tokenizer.json")}
        for part in meta["splits"].values():
            checksums |= part.pop("checksums")
        meta["checksums"] = checksums
        write_sealed(partial / "meta.json", meta)
        sync_tree(partial)
        partial.rename(folder)
        sync(folder.parent)
    finally:
        # After an error, such as a full disk, the rest is worthless.
        shutil.rmtree(partial, ignore_errors=True)
    return meta


def open_split(folder: Path, name: str, meta: Mapping[str, Any], mapped: np.ndarray | None = None) -> Split | None:
    """Return the split ``name`` of an entry, with its tokens or those ``mapped`` elsewhere; None if it is empty."""
    part = meta["splits"].get(name)
    if not part or not part["tokens"]:
        return None
    tokens = np.memmap(folder / f"{name}.tokens", part["type"], mode="r") if mapped is None else mapped
    lengths = part["lengths"]
    if isinstance(lengths, str):
        lengths = np.memmap(folder / f"{name}.lengths", lengths, mode="r")
    return Split(tokens, lengths, part["unknown"])


def _opened(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """Return meta.json of an entry that is whole; else None and the name of a damaged file, empty for no entry."""
    try:
        meta = read_sealed(folder / "meta.json")
        if meta["format"] != FORMAT:
            return None, ""
        damaged = [name for name, recorded in meta["checksums"].items() if not intact(folder / name, recorded)]
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, "meta.json" if _sealed(folder / "meta.json") else ""
    return (None, damaged[0]) if damaged else (meta, "")


def _sealed(file: Path) -> bool:
    """Return whether meta.json is later than format 1, which had no checksums."""
    try:
        return b'"format": 1' not in file.read_bytes()
    except OSError:
        return True


def cache_dir(data: DataConfig) -> Path:
    """Return ``data.cache_dir``, or rwkv_lab in the user's cache folder."""
    if data.cache_dir:
        return home_expanded(data.cache_dir, "data.cache_dir").absolute()
    from platformdirs import user_cache_path

    with contextlib.suppress(RuntimeError):
        folder = user_cache_path("rwkv_lab")
        if folder.is_absolute():
            return folder
    raise UserError("data.cache_dir must be given: the home folder is not known (HOME is not set)")


@contextmanager
def locked(cache: Path, name: str) -> Iterator[None]:
    """Hold the lock ``name`` of the cache, with a line if another process has it. A process that dies releases it."""
    from filelock import FileLock, Timeout

    with cache_errors(cache):
        (cache / "locks").mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache / "locks" / f"{name}.lock")
        try:
            # The ranks of a run come here together: a second passes without a line.
            lock.acquire(timeout=1)
        except Timeout:
            say("waiting for another process that prepares the same data")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def cache_errors(cache: Path) -> Iterator[None]:
    """Turn a failed write to the cache, e.g. one that is full or read-only, into a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"data.cache_dir={cache} cannot be written: {error.strerror or error}") from error
