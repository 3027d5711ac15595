"""Token ids of one's own in ``.npy`` files: checked, divided and streamed like text."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rwkv_lab.config.errors import UserError
from rwkv_lab.data.config import DataConfig
from rwkv_lab.data.corpora import PARTS, Sources, between, cut_points
from rwkv_lab.data.reading import Segment
from rwkv_lab.util.hashing import expand, file_sha256

BLOCK = 1 << 22


def locate_ids(config: DataConfig, cache: Path) -> Sources:
    """The parts of ``data=npy``; the segments' start and stop count tokens, and so does ``data.split``."""
    if config.train_path:
        named = {name: getattr(config, f"{name}_path") for name in PARTS}
        return Sources({n: _whole(path, f"data.{n}_path", cache) if path else [] for n, path in named.items()}, [])
    segments = _whole(str(config.path), "data.path", cache)
    total = sum(segment.stop for segment in segments)
    cuts = cut_points(list(config.split or ()), total)
    if cuts[-1] > total:
        raise UserError(f"data.split asks for {cuts[-1]} tokens, but data.path={config.path} has {total}")
    return Sources({n: between(segments, a, b) for n, a, b in zip(PARTS, [0, *cuts], cuts, strict=False)}, [])


def largest_id(segments: list[Segment]) -> int:
    """The largest token id of these segments. Raises ``UserError`` for a negative one."""
    largest = 0
    for segment in segments:
        for ids in _blocks(segment):
            if ids.min() < 0:
                raise UserError(f"{segment.key}={segment.path} holds the negative token id {ids.min()}: ids start at 0")
            largest = max(largest, int(ids.max()))
    return largest


def stream_ids(
    segments: list[Segment], vocab_size: int, bytes_of_ids: np.ndarray | None
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Ids and the bytes of text behind each, by the table ``bytes_of_ids`` [V]; None without one.

    Raises ``UserError`` for an id outside the vocabulary."""
    for segment in segments:
        for ids in _blocks(segment):
            if not 0 <= ids.min() <= ids.max() < vocab_size:
                wrong = ids.min() if ids.min() < 0 else ids.max()
                raise UserError(
                    f"{segment.key}={segment.path} holds the token id {wrong}: the tokenizer has 0 to {vocab_size - 1}"
                )
            yield ids, None if bytes_of_ids is None else bytes_of_ids[ids]


def _whole(path: str, key: str, cache: Path) -> list[Segment]:
    return [
        Segment(file, 0, len(_open(file, key)), key, file_sha256(file, key, ".npy", cache / "hashes"))
        for file in expand(path, key, ".npy")
    ]


def _open(file: Path, key: str) -> np.ndarray:
    try:
        ids = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{key}={file} is no readable .npy file of numbers: save one with numpy.save") from error
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind not in "iu" or not len(ids):
        shown = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, np.ndarray) else "an archive"
        raise UserError(f"{key}={file} holds {shown}: one row of whole numbers, the token ids, is expected")
    return ids


def _blocks(segment: Segment) -> Iterator[np.ndarray]:
    for start in range(segment.start, segment.stop, BLOCK):
        yield np.array(_open(segment.path, segment.key)[start : min(start + BLOCK, segment.stop)])
