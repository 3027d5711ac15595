"""Token ids in the .bin and .idx files of Megatron-LM and GPT-NeoX, read where they lie."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.kinds import Holding
from rwkv_lab.config.registry import register
from rwkv_lab.data.sources import PARTS, Divided, OwnFiles, Segment, Sources, between
from rwkv_lab.data.token_cache import cache_dir
from rwkv_lab.util.hashing import expand, file_sha256, home_expanded, text_sha256
from rwkv_lab.util.io import writing

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")  # magic, version, code of the type, sequences, entries of the document index
TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # 6 and 7 are floats
BLOCK = 1 << 22


@register("data", "binidx")
@dataclass
class BinidxConfig(OwnFiles, Divided):
    """Pairs PREFIX.bin and PREFIX.idx, joined in sorted order; ``split`` counts tokens, cut between documents."""

    name: str = "binidx"

    holds: ClassVar[Holding] = "token ids"
    suffix: ClassVar[str] = ".idx"
    suffixes: ClassVar[tuple[str, ...]] = (".idx", ".bin")

    def sources(self, cache: Path) -> Sources:
        layout: list[str] = []

        def whole(files: list[Path], key: str) -> list[Segment]:
            found = []
            for file in files:
                index = read_index(file, key)
                layout.append(index.type.str)
                data = file.with_suffix(".bin")
                found.append(Segment(data, 0, index.tokens, key, file_sha256(data, key, memo=cache / "hashes")))
            return found

        if self.train_path:
            return Sources(self.own_parts(whole), ids=_blocks, mapped=_mapped, layout=" ".join(layout))
        files = self.files(str(self.path), "data.path")
        segments = whole(files, "data.path")
        total = sum(segment.stop for segment in segments)
        bounds = _document_bounds(files, segments)
        cuts = self.cuts(total, f"data.path={self.path}", "tokens")
        cuts = [int(bounds[np.searchsorted(bounds, cut)]) for cut in cuts]
        parts = {name: between(segments, a, b) for name, a, b in zip(PARTS, [0, *cuts], cuts, strict=False)}
        return Sources(parts, ids=_blocks, mapped=_mapped, layout=" ".join(layout))

    def files(self, path: str, key: str) -> list[Path]:
        """Return the .idx files of a PREFIX, a .bin or .idx file, a folder or a glob."""
        beside = home_expanded(f"{path.removesuffix('.bin').removesuffix('.idx')}.idx", key)
        return [beside] if beside.is_file() else expand(path, key, self.suffix)

    def file_hashes(self, group: str) -> dict[str, str]:
        named = {f"{group}.{key}": getattr(self, key) for key in ("path", "train_path", "val_path", "test_path")}
        memo = cache_dir(self) / "hashes"
        hashes = {}
        for key, path in named.items():
            if path:
                files = [each for file in self.files(path, key) for each in (file, _data(file, key))]
                hashes[key] = text_sha256("\n".join(file_sha256(file, key, memo=memo) for file in files).encode())
        return hashes


class Index(NamedTuple):
    """The content of an .idx file."""

    type: np.dtype
    tokens: int
    documents: np.ndarray  # tokens before each document, and all [D+1]


def read_index(file: Path, key: str) -> Index:
    """Return the index of a pair; UserError for one that is damaged, not of this format, or not in order."""
    data = _data(file, key)
    try:
        content = file.read_bytes()
        magic, version, code, sequences, entries = HEADER.unpack_from(content)
        if magic != MAGIC or version != 1:
            raise UserError(f"{key}={file} is not a Megatron index of version 1")
        if code not in TYPES:
            raise UserError(f"{key}={file} has type code {code}: token ids must be integers (codes 1 to 5 and 8)")
        dtype, at = np.dtype(TYPES[code]), HEADER.size
        sizes = np.frombuffer(content, "<i4", sequences, at).astype(np.int64)
        pointers = np.frombuffer(content, "<i8", sequences, at + 4 * sequences)
        documents = np.frombuffer(content, "<i8", entries, at + 12 * sequences)
        ends = np.concatenate([[0], np.cumsum(sizes)])
        ordered = bool((sizes >= 0).all()) and np.array_equal(pointers, ends[:-1] * dtype.itemsize)
        bounds = np.unique(np.concatenate([[0], ends[documents], ends[-1:]]))
    except (OSError, ValueError, IndexError, struct.error, OverflowError) as error:
        raise UserError(f"{key}={file} is not a readable Megatron index: {error}") from error
    if not ordered or data.stat().st_size != ends[-1] * dtype.itemsize:
        raise UserError(
            f"{key}={file} does not fit {data.name}: its sequences must follow each other and fill the file"
        )
    return Index(dtype, int(ends[-1]), bounds)


def write_pair(prefix: Path, ids: np.ndarray, vocab_size: int) -> None:
    """Write token ids [N] as one document, PREFIX.bin and PREFIX.idx, each in one step."""
    code = 8 if vocab_size <= 1 << 16 else 4
    dtype = np.dtype(TYPES[code])
    if len(ids) >= 1 << 31:
        raise UserError(f"{prefix}: a document of this format has fewer than 2**31 tokens (got {len(ids)})")
    with writing(prefix.with_name(f"{prefix.name}.bin")) as file:
        for start in range(0, len(ids), BLOCK):
            file.write(np.asarray(ids[start : start + BLOCK]).astype(dtype).tobytes())
    with writing(prefix.with_name(f"{prefix.name}.idx")) as file:
        file.write(HEADER.pack(MAGIC, 1, code, 1, 2))
        file.write(np.array([len(ids)], "<i4").tobytes() + np.array([0], "<i8").tobytes())
        file.write(np.array([0, 1], "<i8").tobytes())


def _data(file: Path, key: str) -> Path:
    data = file.with_suffix(".bin")
    if not data.is_file():
        raise UserError(f"{key}={file} has no {data.name} beside it")
    return data


def _document_bounds(files: list[Path], segments: list[Segment]) -> np.ndarray:
    """Return the tokens before each document of all files, and all of them."""
    bounds, base = [np.zeros(1, np.int64)], 0
    for file, segment in zip(files, segments, strict=True):
        bounds.append(read_index(file, segment.key).documents + base)
        base += segment.stop
    return np.unique(np.concatenate(bounds))


def _mapped(segment: Segment) -> np.ndarray:
    """Return the ids of a segment [N], memory-mapped."""
    index = read_index(segment.path.with_suffix(".idx"), segment.key)
    return np.memmap(segment.path, index.type, "r")[segment.start : segment.stop]


def _blocks(segment: Segment) -> Iterator[np.ndarray]:
    ids = _mapped(segment)
    for start in range(0, len(ids), BLOCK):
        yield np.array(ids[start : start + BLOCK])
