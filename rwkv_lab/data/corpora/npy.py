"""Token ids of the user's own in ``.npy`` files: checked, divided and streamed like text."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.kinds import Holding
from rwkv_lab.config.registry import register
from rwkv_lab.data.sources import PARTS, Divided, OwnFiles, Segment, Sources, between
from rwkv_lab.util.hashing import expand, file_sha256

BLOCK = 1 << 22


@register("data", "npy")
@dataclass
class NpyConfig(OwnFiles, Divided):
    """One row of whole numbers, the token ids; ``split`` counts tokens."""

    name: str = "npy"

    holds: ClassVar[Holding] = "token ids"
    suffix: ClassVar[str] = ".npy"
    suffixes: ClassVar[tuple[str, ...]] = (".npy",)

    def sources(self, cache: Path) -> Sources:
        def whole(files: list[Path], key: str) -> list[Segment]:
            hashes = [file_sha256(file, key, memo=cache / "hashes") for file in files]
            return [
                Segment(file, 0, len(_open(file, key)), key, sha256) for file, sha256 in zip(files, hashes, strict=True)
            ]

        if self.train_path:
            return Sources(self.own_parts(whole), ids=_blocks)
        segments = whole(expand(str(self.path), suffix=self.suffix), "data.path")
        cuts = self.cuts(sum(segment.stop for segment in segments), f"data.path={self.path}", "tokens")
        parts = {name: between(segments, a, b) for name, a, b in zip(PARTS, [0, *cuts], cuts, strict=False)}
        return Sources(parts, ids=_blocks)


def _open(file: Path, key: str) -> np.ndarray:
    try:
        ids = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{key}={file} is not a readable .npy file of numbers: save one with numpy.save") from error
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind not in "iu" or not len(ids):
        shown = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, np.ndarray) else "an archive"
        raise UserError(f"{key}={file} must be one row of whole numbers, the token ids (got {shown})")
    return ids


def _blocks(segment: Segment) -> Iterator[np.ndarray]:
    """Yield the ids of a segment [N], copied block by block."""
    for start in range(segment.start, segment.stop, BLOCK):
        yield np.array(_open(segment.path, segment.key)[start : min(start + BLOCK, segment.stop)])
