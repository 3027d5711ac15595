"""From a corpus name to the byte ranges of files that are its training, validation and test text."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rwkv_lab.data.config import DataConfig
from rwkv_lab.data.hashing import expand, file_sha256, text_sha256
from rwkv_lab.data.reading import Segment, boundary
from rwkv_lab.data.store import write_once
from rwkv_lab.errors import Mistake

PARTS = ("train", "val", "test")


class Sources(NamedTuple):
    """Where the text of a corpus is."""

    # train, val, test -> where its bytes are, in order
    parts: dict[str, list[Segment]]
    # what a reader of the result should know
    notes: list[str]


def locate(config: DataConfig, cache: Path) -> Sources:
    """Finds (downloads, where that is what the corpus means) the text of ``config``.

    Raises ``Mistake`` naming the key and the file."""
    if config.train_path:
        return Sources(_own_parts(config), [])
    return CORPORA[config.name](config, cache)


def builtin_text() -> bytes:
    """The language reference inside CPython: the topics of ``pydoc``, in sorted order."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        raise Mistake("data=builtin: this Python comes without pydoc_data: use data=text data.path=FILE") from None
    return "\n".join(topics[name] for name in sorted(topics)).encode()


def divide(files: list[Path], config: DataConfig, key: str) -> dict[str, list[Segment]]:
    """The text of ``files``, one after the other, cut by ``data.split``; every cut falls on a character."""
    split = list(config.split or ())
    sizes = [file.stat().st_size for file in files]
    total = sum(sizes)
    if not total:
        raise Mistake(f"{key}={files[0]} is empty: give a text to train on")
    if all(part <= 1 for part in split):
        cuts = [round(total * sum(split[: i + 1])) for i in range(len(split))]
    else:
        cuts = [int(sum(split[: i + 1])) for i in range(len(split))]
    if cuts[-1] > total:
        raise Mistake(f"data.split asks for {cuts[-1]} bytes, but {key}={_shown(files)} has {total}")
    hashes = [file_sha256(file, key) for file in files]
    parts: dict[str, list[Segment]] = {}
    for name, start, stop in zip(PARTS, [0, *cuts], cuts, strict=False):
        segments = []
        base = 0
        for file, size, sha256 in zip(files, sizes, hashes, strict=True):
            low, high = max(start - base, 0), min(stop - base, size)
            base += size
            if low < high:
                low, high = boundary(file, low, size), boundary(file, high, size)
                segments.append(Segment(file, low, high, key, sha256))
        parts[name] = [segment for segment in segments if segment.start < segment.stop]
    return parts


def whole(files: list[Path], key: str) -> list[Segment]:
    """The whole of each file."""
    return [Segment(file, 0, file.stat().st_size, key, file_sha256(file, key)) for file in files]


def _own_parts(config: DataConfig) -> dict[str, list[Segment]]:
    parts = {}
    for name in PARTS:
        path, key = getattr(config, f"{name}_path"), f"data.{name}_path"
        parts[name] = whole(expand(path, key), key) if path else []
        if path and not any(segment.stop for segment in parts[name]):
            raise Mistake(f"{key}={path} is empty: give a text")
    return parts


def _builtin(config: DataConfig, cache: Path) -> Sources:
    return _made("builtin", builtin_text(), config, cache)


def _text(config: DataConfig, cache: Path) -> Sources:
    return Sources(divide(expand(str(config.path)), config, "data.path"), [])


def _made(name: str, text: bytes, config: DataConfig, cache: Path) -> Sources:
    file = write_once(cache / "texts" / f"{name}-{text_sha256(text)[:16]}.txt", text)
    return Sources(divide([file], config, f"data={name}"), [])


def _shown(files: list[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0].parent} ({len(files)} files)"


CORPORA: dict[str, Callable[[DataConfig, Path], Sources]] = {
    "builtin": _builtin,
    "text": _text,
}
