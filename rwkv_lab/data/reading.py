"""Byte ranges of files, read in blocks; every fault names the key and the file."""

import codecs
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rwkv_lab.config.errors import UserError

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
