"""Texts in lines of JSON, plain or compressed."""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.registry import register
from rwkv_lab.data.sources import Divided, OwnFiles, Sources, divided, own_text
from rwkv_lab.data.token_cache import cache_errors, locked
from rwkv_lab.util.hashing import checksum, expand, file_sha256, intact, read_sealed, text_sha256, write_sealed
from rwkv_lab.util.io import writing

BLOCK = 1 << 20


@register("data", "jsonl")
@dataclass
class JsonlConfig(OwnFiles, Divided):
    """One JSON object a line, in .jsonl, .jsonl.gz or .jsonl.zst files; their texts are joined by a separator."""

    name: str = "jsonl"
    field: str = "text"  # key of the text
    separator: str = "\n"  # written after each text, e.g. a tokenizer's end-of-text token

    suffix: ClassVar[str] = ".jsonl*"
    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".gz", ".zst")

    def sources(self, cache: Path) -> Sources:
        if self.train_path:
            parts = {key: self._texts(key, cache) for key in ("train_path", "val_path", "test_path")}
            train, val, test = (str(file) if file else None for file in parts.values())
            return own_text(JsonlConfig(train_path=train, val_path=val, test_path=test), cache)
        file = self._texts("path", cache)
        assert file is not None
        return Sources(divided([file], self, "data.path", cache))

    def _texts(self, key: str, cache: Path) -> Path | None:
        """Return a file of the cache with the texts of the files under ``key``, made again if it is damaged."""
        path, key = getattr(self, key), f"data.{key}"
        if not path:
            return None
        files = expand(path, key, self.suffix)
        hashes = [file_sha256(file, key, memo=cache / "hashes") for file in files]
        name = text_sha256(json.dumps([hashes, self.field, self.separator]).encode())[:24]
        target, seal = cache / "texts" / f"jsonl-{name}.txt", cache / "texts" / f"jsonl-{name}.json"
        with locked(cache, f"jsonl-{name}"), cache_errors(cache):
            try:
                whole = intact(target, str(read_sealed(seal)["checksum"]))
            except (OSError, ValueError, KeyError):
                whole = False
            if not whole:
                target.parent.mkdir(parents=True, exist_ok=True)
                with writing(target) as out:
                    for file in files:
                        for text in self._in_order(file, key):
                            out.write(f"{text}{self.separator}".encode())
                write_sealed(seal, {"checksum": checksum(target)})
        return target

    def _in_order(self, file: Path, key: str) -> Iterator[str]:
        """Yield the text of each line; UserError names the line."""
        for number, line in enumerate(_lines(_blocks(file, key)), 1):
            place = f"{key}={file}, line {number},"
            if not line.strip():
                continue
            try:
                content = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{place} is not readable JSON in UTF-8: {error}") from None
            if not isinstance(content, dict) or not isinstance(content.get(self.field), str):
                raise UserError(f"{place} must be an object with a text under {self.field} (data.field={self.field})")
            yield content[self.field]


def _lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _blocks(file: Path, key: str) -> Iterator[bytes]:
    """Yield the unpacked content of a file in blocks; UserError names it if it cannot be read."""
    try:
        if file.suffix == ".zst":
            yield from _zstd_blocks(file, key)
        else:
            with gzip.open(file, "rb") if file.suffix == ".gz" else open(file, "rb") as stream:
                while block := stream.read(BLOCK):
                    yield block
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{key}={file} cannot be read: {error}") from None


def _zstd_blocks(file: Path, key: str) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise UserError(f"{key}={file} needs the package zstandard: pip install 'rwkv_lab[zstd]'") from None
    frame = zstandard.ZstdDecompressor().decompressobj()
    with open(file, "rb") as stream:
        try:
            while block := stream.read(BLOCK):
                while block:
                    if frame.eof:
                        frame = zstandard.ZstdDecompressor().decompressobj()
                    yield frame.decompress(block)
                    block = frame.unused_data
        except zstandard.ZstdError as error:
            raise UserError(f"{key}={file} cannot be read: {error}") from None
    if not frame.eof:
        raise EOFError("it ends before its end was marked")
