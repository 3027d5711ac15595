"""``load``: from the config to tokenizer and memory-mapped splits."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rwkv_lab.data.config import DataConfig, TokenizerConfig, check
from rwkv_lab.data.corpora import PARTS, Sources, builtin_text, locate
from rwkv_lab.data.hashing import file_sha256, text_sha256
from rwkv_lab.data.reading import Segment
from rwkv_lab.data.store import Part, Split, entry, open_split
from rwkv_lab.data.tokenizers import ByteTokenizer, Tokenizer, char_vocabulary, from_json
from rwkv_lab.errors import Mistake


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
    Raises ``Mistake`` naming the key and the file."""
    check(data, tokenizer)
    cache = cache_dir(data)
    sources = locate(data, cache)
    segments = [segment for part in sources.parts.values() for segment in part]
    key = _key(sources, stored.to_json() if stored else _description(tokenizer))
    folder, meta = entry(cache, key, lambda partial: _tokenise(partial, sources, tokenizer, stored))
    splits = {name: open_split(folder, name, meta) for name in PARTS}
    if splits["train"] is None:
        raise Mistake(f"data.split leaves no token to train on: {segments[0].path if segments else data.name}")
    return Corpus(
        from_json((folder / "tokenizer.json").read_text(encoding="utf-8")),
        splits["train"],
        splits["val"],
        splits["test"],
        {segment.path.name: segment.sha256 for segment in segments},
        sources.notes + _unknown_notes(splits),
        folder,
    )


def require_length(corpus: Corpus, ctx_len: int) -> None:
    """Raises ``Mistake`` when a split is too short for one sequence of ``ctx_len`` tokens and its targets."""
    for name, split in (("training", corpus.train), ("validation", corpus.val)):
        if split is not None and len(split) <= ctx_len:
            raise Mistake(
                f"model.ctx_len={ctx_len} is too long for the {name} text of {len(split)} tokens: "
                f"at most {len(split) - 1}, or give more data"
            )


def source_files(data: DataConfig, tokenizer: TokenizerConfig) -> dict[str, str]:
    """Config keys that name files, with their values: these count in a run's identity by content, not by name."""
    named = {f"data.{key}": getattr(data, key) for key in ("path", "train_path", "val_path", "test_path")}
    named["tokenizer.path"] = tokenizer.path
    return {key: path for key, path in named.items() if path}


def content_hashes(data: DataConfig, tokenizer: TokenizerConfig) -> dict[str, str]:
    """sha256 of the content behind every key of ``source_files``, and of text that varies with the installation."""
    hashes = {key: file_sha256(path, key) for key, path in source_files(data, tokenizer).items()}
    if data.name == "builtin":
        hashes["data.name"] = text_sha256(builtin_text())
    return hashes


def cache_dir(data: DataConfig) -> Path:
    """The cache folder: ``data.cache_dir``, or rwkv_lab in the user's cache folder."""
    if data.cache_dir:
        return Path(data.cache_dir).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("rwkv_lab")


def _description(config: TokenizerConfig) -> str:
    return f"{config.name} {file_sha256(config.path, 'tokenizer.path')}" if config.path else config.name


def _key(sources: Sources, tokenizer: str) -> str:
    parts = {
        name: [[segment.sha256, segment.start, segment.stop] for segment in segments]
        for name, segments in sources.parts.items()
    }
    return text_sha256(json.dumps([parts, tokenizer], sort_keys=True).encode())[:24]


def _tokenise(folder: Path, sources: Sources, config: TokenizerConfig, stored: Tokenizer | None) -> Mapping[str, Any]:
    tokenizer = stored or _make(config, sources.parts["train"])
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    splits = {
        name: Part(folder, name, tokenizer.vocab_size, tokenizer.unknown_id).write(tokenizer.stream(segments))
        for name, segments in sources.parts.items()
    }
    return {"splits": splits}


def _make(config: TokenizerConfig, train: list[Segment]) -> Tokenizer:
    if config.name == "byte":
        return ByteTokenizer()
    return char_vocabulary(train)


def _unknown_notes(splits: Mapping[str, Split | None]) -> list[str]:
    return [
        f"{split.unknown} of {len(split)} {name} tokens are characters that the vocabulary does not have"
        for name, split in splits.items()
        if split is not None and split.unknown
    ]
