"""Where a corpus is: byte ranges of files that are its training, validation and test part.

Corpora share the fields and rules here: ``Divided`` for text that ``data.split`` cuts, ``OwnFiles`` for files of the
user's own.
"""

import codecs
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import setting
from rwkv_lab.config.kinds import DataConfig
from rwkv_lab.data.token_cache import cache_dir, cache_errors
from rwkv_lab.util.hashing import expand, file_sha256, home_expanded, text_sha256
from rwkv_lab.util.io import write_atomic

BLOCK = 1 << 22


class Segment(NamedTuple):
    """Bytes, or token ids, ``start`` to ``stop`` of a file."""

    path: Path
    start: int
    stop: int
    key: str  # config key that named the file
    sha256: str  # of its whole content


def byte_blocks(segments: Sequence[Segment], size: int = BLOCK) -> Iterator[bytes]:
    """Yield the bytes of the segments in blocks of at most ``size``."""
    for segment in segments:
        for _, block in _blocks(segment, size):
            yield block


def text_blocks(segments: Sequence[Segment], size: int = BLOCK) -> Iterator[str]:
    """Yield the text of the segments in blocks, line ends as they are; UserError for bytes that are not UTF-8."""
    for segment in segments:
        decoder = codecs.getincrementaldecoder("utf-8")()
        for offset, block in _blocks(segment, size):
            pending = len(decoder.getstate()[0])
            if b"\0" in block:
                where = offset + block.index(b"\0")
                raise UserError(
                    f"{segment.key}={segment.path} is a binary file (a zero at byte {where}): use tokenizer=byte"
                )
            try:
                text = decoder.decode(block, offset + len(block) == segment.stop)
            except UnicodeDecodeError as error:
                where = offset - pending + error.start
                raise UserError(
                    f"{segment.key}={segment.path} is not UTF-8 text (byte {where}): convert it, or use tokenizer=byte"
                ) from error
            if text:
                yield text


def boundary(path: Path, cut: int, size: int) -> int:
    """Return the first byte from ``cut`` on that begins a UTF-8 character; ``cut`` itself in other bytes."""
    if not 0 < cut < size:
        return cut
    with open(path, "rb") as file:
        file.seek(cut)
        following = file.read(min(4, size - cut))
    for skip, byte in enumerate(following):
        if byte & 0xC0 != 0x80:
            return cut + skip
    return cut if following[3:] else size


def _blocks(segment: Segment, size: int) -> Iterator[tuple[int, bytes]]:
    try:
        with open(segment.path, "rb") as file:
            file.seek(segment.start)
            offset = segment.start
            while offset < segment.stop:
                block = file.read(min(size, segment.stop - offset))
                if not block:
                    raise UserError(f"{segment.key}={segment.path} became shorter while it was read: run again")
                yield offset, block
                offset += len(block)
    except OSError as error:
        raise UserError(f"{segment.key}={segment.path} cannot be read: {error.strerror}") from error


PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Sources:
    """The parts of a corpus; segments count bytes of text, or token ids if ``ids`` reads them."""

    parts: dict[str, list[Segment]]  # train, val, test -> where its content is, in order
    notes: list[str] = field(default_factory=list)  # what a reader of the result should know
    ids: Callable[[Segment], Iterator[np.ndarray]] | None = None  # the token ids of a segment, in blocks
    mapped: Callable[[Segment], np.ndarray] | None = None  # the same, memory-mapped: such a part is not copied
    layout: str = ""  # whatever else decides how bytes are read

    def segments(self) -> list[Segment]:
        """Return the segments of all parts."""
        return [segment for part in self.parts.values() for segment in part]


@dataclass
class Divided(DataConfig):
    """A corpus that ``data.split`` cuts into its parts."""

    split: list[float] | None = setting(
        factory=lambda: [0.9, 0.1]
    )  # [train,val] or [train,val,test]: fractions or sizes

    def check(self) -> None:
        super().check()
        if self.split is not None:
            check_split(list(self.split))

    def cuts(self, total: int, key: str, unit: str) -> list[int]:
        """Return where each part ends, of ``total`` bytes or tokens that ``key`` names."""
        if self.split is None:
            raise UserError("data.split is missing: give fractions such as [0.9,0.1], or sizes")
        if not total:
            raise UserError(f"{key} is empty: give a text to train on")
        cuts = cut_points(list(self.split), total)
        if cuts[-1] > total:
            raise UserError(f"data.split asks for {cuts[-1]} {unit}, but {key} has {total}")
        return cuts


@dataclass
class OwnFiles(DataConfig):
    """A corpus that takes files of the user's own: one to divide, or its parts."""

    path: str | None = None  # file, folder or glob to divide
    train_path: str | None = None  # files that are divided already: these instead of path
    val_path: str | None = None  # held-out text
    test_path: str | None = None  # text of `rwkv-lab evaluate --split test`

    suffix: ClassVar[str] = ".txt"  # of the files taken from a folder
    needs_files: ClassVar[bool] = True  # whether the corpus is nothing without files

    def check(self) -> None:
        super().check()
        own = [key for key in ("train_path", "val_path", "test_path") if getattr(self, key)]
        if self.path and own:
            raise UserError(f"data.path and data.{own[0]} exclude each other: give one file to divide, or its parts")
        if own and not (self.train_path and self.val_path):
            missing = "train_path" if not self.train_path else "val_path"
            raise UserError(f"data.{missing} is missing: data.train_path and data.val_path go together")
        if self.needs_files and not (self.path or own):
            raise UserError(
                f"data.path is missing: data={self.name} needs data.path=FILE, or data.train_path and data.val_path"
            )

    def files(self, path: str, key: str) -> list[Path]:
        """Return the files that ``path`` names; UserError naming ``key`` if there are none."""
        return expand(path, key, self.suffix)

    def file_hashes(self, group: str) -> dict[str, str]:
        named = {f"{group}.{key}": getattr(self, key) for key in ("path", "train_path", "val_path", "test_path")}
        memo = cache_dir(self) / "hashes"
        return {key: file_sha256(path, key, self.suffix, memo) for key, path in named.items() if path}

    def own_parts(self, whole: Callable[[list[Path], str], list[Segment]]) -> dict[str, list[Segment]]:
        """Return the parts that ``train_path``, ``val_path`` and ``test_path`` name, each read by ``whole``."""
        parts = {}
        for name in PARTS:
            path, key = getattr(self, f"{name}_path"), f"data.{name}_path"
            parts[name] = whole(self.files(path, key), key) if path else []
            if path and not any(segment.stop for segment in parts[name]):
                raise UserError(f"{key}={path} is empty: give a text")
        return parts


def own_text(config: OwnFiles, cache: Path) -> Sources:
    """Return the user's own parts of a text; a note if they stand in for those of a published corpus."""
    notes = []
    if not config.needs_files:
        notes.append(f"val_bpb is not comparable: own files stand in for the parts of {config.name}")
    return Sources(config.own_parts(lambda files, key: whole(files, key, cache)), notes)


def divided(files: list[Path], config: Divided, key: str, cache: Path) -> dict[str, list[Segment]]:
    """Return the text of ``files``, one after the other, cut by ``data.split``; every cut falls on a character."""
    segments = whole(files, key, cache)
    cuts = config.cuts(sum(segment.stop for segment in segments), f"{key}={files[0]}", "bytes")
    ranges = {name: between(segments, a, b) for name, a, b in zip(PARTS, [0, *cuts], cuts, strict=False)}
    return {name: [_on_characters(segment) for segment in found] for name, found in ranges.items()}


def made_text(name: str, text: bytes, config: Divided, cache: Path) -> Sources:
    """Return a text that a package carries, by way of a file in the cache that is written again if it is damaged."""
    sha256 = text_sha256(text)
    file = cache / "texts" / f"{name}-{sha256[:16]}.txt"
    if not file.is_file() or file_sha256(file) != sha256:
        with cache_errors(cache):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, text)
    return Sources(divided([file], config, f"data={name}", cache))


def whole(files: list[Path], key: str, cache: Path) -> list[Segment]:
    """Return the whole of each file."""
    hashes = [file_sha256(file, key, memo=cache / "hashes") for file in files]
    try:
        sizes = [file.stat().st_size for file in files]
    except OSError as error:
        raise UserError(f"{key}={error.filename} cannot be read: {error.strerror}") from error
    return [Segment(file, 0, size, key, sha256) for file, size, sha256 in zip(files, sizes, hashes, strict=True)]


def between(segments: list[Segment], start: int, stop: int) -> list[Segment]:
    """Return what lies from ``start`` to ``stop`` of segments, each from 0, that follow each other."""
    found = []
    base = 0
    for segment in segments:
        low, high = max(start - base, 0), min(stop - base, segment.stop)
        base += segment.stop
        if low < high:
            found.append(segment._replace(start=low, stop=high))
    return found


def local_file(path: str) -> Path:
    """Return the file that ``data.path`` names; UserError if there is none."""
    file = home_expanded(path, "data.path")
    if not file.is_file():
        raise UserError(f"data.path={path} does not exist: give an existing file")
    return file


def cut_points(split: list[float], total: int) -> list[int]:
    """Return where each part ends, of ``total`` bytes or tokens; ``split`` as ``data.split``."""
    if all(part <= 1 for part in split):
        return [round(total * sum(split[: i + 1])) for i in range(len(split))]
    return [int(sum(split[: i + 1])) for i in range(len(split))]


def check_split(split: list[float]) -> None:
    """Raise UserError for a ``data.split`` that no text could have."""
    shown = "data.split=[" + ",".join(f"{part:g}" for part in split) + "]"
    if len(split) not in (2, 3):
        raise UserError(f"{shown} has {len(split)} parts: give [train,val] or [train,val,test]")
    if any(not part >= 0 for part in split) or not 0 < split[0] < float("inf"):
        raise UserError(f"{shown} must have parts of at least 0, and the training part above 0, e.g. [0.9,0.1]")
    fractions = [part <= 1 for part in split]
    if all(fractions) and sum(split) > 1 + 1e-9:
        raise UserError(f"{shown} adds up to {sum(split):g}: fractions add up to at most 1, e.g. [0.9,0.1]")
    if not all(fractions) and any(part != int(part) for part in split):
        raise UserError(f"{shown} mixes fractions and sizes: give all at most 1, or all whole numbers")


def _on_characters(segment: Segment) -> Segment:
    size = segment.path.stat().st_size
    start, stop = (boundary(segment.path, cut, size) for cut in (segment.start, segment.stop))
    return segment._replace(start=start, stop=stop)
