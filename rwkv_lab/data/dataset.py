"""``load``: from the config to tokenizer and memory-mapped splits."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rwkv_lab.config.errors import UserError
from rwkv_lab.data.config import DataConfig, TokenizerConfig, check
from rwkv_lab.data.corpora import PARTS, Sources, builtin_text, kjv_text, locate
from rwkv_lab.data.npy import largest_id, locate_ids, stream_ids
from rwkv_lab.data.token_cache import Part, Split, entry, open_split
from rwkv_lab.data.tokenizers.bpe import BpeTokenizer, read_bpe
from rwkv_lab.data.tokenizers.text import ByteTokenizer, IdsTokenizer, Tokenizer, char_vocabulary, from_json
from rwkv_lab.util.hashing import file_sha256, text_sha256

# above this number of source files the manifest gives one hash of all
FILES_NAMED = 16


@dataclass(frozen=True)
class Corpus:
    """A text made ready for training: tokenizer and splits, and what they were made from."""

    tokenizer: Tokenizer
    train: Split
    val: Split | None
    test: Split | None
    # source file -> sha256 of its content
    sha256: dict[str, str]
    # what a reader of the result should know, one sentence each
    notes: list[str] = field(default_factory=list)
    # the folder of the cache that holds the tokens
    folder: Path | None = None


def load(data: DataConfig, tokenizer: TokenizerConfig, stored: Tokenizer | None = None) -> Corpus:
    """The corpus of these configs; downloads and tokenises what the cache does not have.

    ``stored`` is the tokenizer of an earlier run, used as it is instead of the one ``tokenizer`` describes.
    Raises ``UserError`` naming the key and the file."""
    check(data, tokenizer)
    cache = cache_dir(data)
    sources = locate_ids(data, cache) if data.name == "npy" else locate(data, cache)
    key = _key(sources, _description(tokenizer))
    if stored is not None and not _holds(cache, key, stored):
        key = _key(sources, stored.to_json())
    folder, meta = entry(cache, key, lambda partial: _build(partial, data, sources, tokenizer, stored))
    splits = {name: open_split(folder, name, meta) for name in PARTS}
    if splits["train"] is None:
        raise UserError("data.split leaves no token to train on: the first part is the training text")
    return Corpus(
        from_json((folder / "tokenizer.json").read_text(encoding="utf-8")),
        splits["train"],
        splits["val"],
        splits["test"],
        _source_hashes(sources),
        sources.notes + _split_notes(splits),
        folder,
    )


def require_length(corpus: Corpus, ctx_len: int) -> None:
    """Raises ``UserError`` when a split is too short for one sequence of ``ctx_len`` tokens and its targets."""
    for name, split in (("training", corpus.train), ("validation", corpus.val)):
        if split is not None and len(split) <= ctx_len:
            raise UserError(
                f"model.ctx_len={ctx_len} is too long for the {name} text of {len(split)} tokens: "
                f"at most {len(split) - 1}, or give more data"
            )


def source_files(data: DataConfig) -> dict[str, str]:
    """Config keys that name files, with their values: these count in a run's identity by content, not by name."""
    named = {f"data.{key}": getattr(data, key) for key in ("path", "train_path", "val_path", "test_path")}
    return {key: path for key, path in named.items() if path}


def content_hashes(data: DataConfig) -> dict[str, str]:
    """sha256 of the content behind every key of ``source_files``, and of text that varies with the installation."""
    suffix = ".npy" if data.name == "npy" else ".txt"
    memo = cache_dir(data) / "hashes"
    hashes = {key: file_sha256(path, key, suffix, memo) for key, path in source_files(data).items()}
    if data.name in ("builtin", "kjv"):
        hashes["data.name"] = text_sha256(builtin_text() if data.name == "builtin" else kjv_text())
    return hashes


def cache_dir(data: DataConfig) -> Path:
    """The cache folder: ``data.cache_dir``, or rwkv_lab in the user's cache folder."""
    if data.cache_dir:
        return Path(data.cache_dir).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("rwkv_lab")


def _description(config: TokenizerConfig) -> str:
    content = file_sha256(config.path, "tokenizer.path") if config.path else config.vocab_size
    return f"{config.name} {content}"


def _key(sources: Sources, tokenizer: str) -> str:
    parts = {
        name: [[segment.sha256, segment.start, segment.stop] for segment in segments]
        for name, segments in sources.parts.items()
    }
    return text_sha256(json.dumps([parts, tokenizer], sort_keys=True).encode())[:24]


def _holds(cache: Path, key: str, tokenizer: Tokenizer) -> bool:
    file = cache / "tokens" / key / "tokenizer.json"
    return file.is_file() and file.read_text(encoding="utf-8") == tokenizer.to_json()


def _build(
    folder: Path, data: DataConfig, sources: Sources, config: TokenizerConfig, stored: Tokenizer | None
) -> Mapping[str, Any]:
    tokenizer = stored or _tokenizer(config, sources)
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    splits = {}
    for name, segments in sources.parts.items():
        part = Part(folder, name, tokenizer.vocab_size, tokenizer.unknown_id)
        if data.name == "npy":
            table = tokenizer.bytes_of_ids() if isinstance(tokenizer, BpeTokenizer) else None
            each = int(isinstance(tokenizer, ByteTokenizer))
            splits[name] = part.write(stream_ids(segments, tokenizer.vocab_size, table), each)
        else:
            splits[name] = part.write(tokenizer.stream(segments))
    for segment in {segment.path: segment for part in sources.parts.values() for segment in part}.values():
        if file_sha256(segment.path, segment.key) != segment.sha256:
            raise UserError(f"{segment.key}={segment.path} changed while it was read: run again")
    return {"splits": splits}


def _tokenizer(config: TokenizerConfig, sources: Sources) -> Tokenizer:
    if config.name == "byte":
        return ByteTokenizer()
    if config.name == "char":
        return char_vocabulary(sources.parts["train"])
    if config.name == "bpe":
        return read_bpe(str(config.path))
    parts = [segment for part in sources.parts.values() for segment in part]
    return IdsTokenizer(config.vocab_size or largest_id(parts) + 1)


def _source_hashes(sources: Sources) -> dict[str, str]:
    files = {segment.path: segment.sha256 for part in sources.parts.values() for segment in part}
    if len(files) > FILES_NAMED:
        return {f"{len(files)} files": text_sha256("\n".join(files.values()).encode())}
    names = [file.name for file in files]
    return {file.name if names.count(file.name) == 1 else str(file): sha256 for file, sha256 in files.items()}


def _split_notes(splits: Mapping[str, Split | None]) -> list[str]:
    present = {name: split for name, split in splits.items() if split is not None}
    notes = [
        f"{split.unknown} of {len(split)} {name} tokens are characters that the vocabulary does not have"
        for name, split in present.items()
        if split.unknown
    ]
    if any(isinstance(split.lengths, int) and split.lengths == 0 for split in present.values()):
        notes.append("val_bpb is not measured: the token ids came without text")
    return notes
