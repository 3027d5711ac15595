"""Byte ranges of files and how they are read: streamed, and every fault said with the key and the file."""

import codecs
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rwkv_lab.config.errors import UserError

BLOCK = 1 << 22


class Segment(NamedTuple):
    """Bytes ``start`` to ``stop`` of a file; ``key`` is the config key that named it, ``sha256`` its content's hash."""

    path: Path
    start: int
    stop: int
    key: str
    sha256: str


def byte_blocks(segments: Sequence[Segment], size: int = BLOCK) -> Iterator[bytes]:
    """The bytes of the segments, in blocks of at most ``size``."""
    for segment in segments:
        for _, block in _blocks(segment, size):
            yield block


def text_blocks(segments: Sequence[Segment], size: int = BLOCK) -> Iterator[str]:
    """The text of the segments in blocks; line ends are left as they are.

    Raises ``UserError`` where the bytes are not UTF-8 text."""
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
    """The first byte at or after ``cut`` that begins a UTF-8 character; ``cut`` itself where it is no text."""
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
