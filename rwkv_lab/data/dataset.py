"""``load``: from the configs of corpus and tokenizer to memory-mapped splits."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rwkv_lab.config import registry
from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import instance, validate
from rwkv_lab.config.kinds import DataConfig, TokenizerConfig
from rwkv_lab.config.run_hash import canonical
from rwkv_lab.data.sources import PARTS, Sources
from rwkv_lab.data.token_cache import Part, Split, Stream, cache_dir, entry, open_split, with_progress
from rwkv_lab.data.tokenizers.base import Tokenizer, from_json
from rwkv_lab.util.hashing import file_sha256, text_sha256

FILES_NAMED = 16  # above this number of source files the manifest has one hash of all


@dataclass(frozen=True)
class Corpus:
    """A text ready for training: tokenizer and splits, and what they were made from."""

    tokenizer: Tokenizer
    train: Split
    val: Split | None
    test: Split | None
    sha256: dict[str, str]  # source file -> sha256 of its content
    notes: list[str] = field(default_factory=list)  # what a reader of the result should know, one sentence each
    folder: Path | None = None  # of the cache, with the tokens


def load(data: DataConfig, tokenizer: TokenizerConfig, stored: Tokenizer | None = None) -> Corpus:
    """Return the corpus of these configs; download and tokenise what the cache does not have.

    ``stored`` is the tokenizer of an earlier run, used in place of the one ``tokenizer`` describes. Raises UserError
    naming the key and the file.
    """
    for group, config in (("data", data), ("tokenizer", tokenizer)):
        validate(config, f"{group}.")
        config.check()
    tokenizer.check_data(data)
    if (made := data.made(tokenizer, stored)) is not None:
        return made
    cache = cache_dir(data)
    sources = data.sources(cache)
    key = _key(sources, canonical(tokenizer, tokenizer.file_hashes("tokenizer"), "tokenizer."))
    if stored is not None and not _holds(cache, key, stored):
        key = _key(sources, stored.to_json())
    folder, meta = entry(cache, key, lambda partial: _build(partial, sources, tokenizer, stored))
    splits = {name: open_split(folder, name, meta, _mapped(sources, name)) for name in PARTS}
    if splits["train"] is None:
        raise UserError("data.split leaves no token to train on: the first part is the training text")
    return Corpus(
        from_json((folder / "tokenizer.json").read_text(encoding="utf-8")),
        splits["train"],
        splits["val"],
        splits["test"],
        _source_hashes(sources),
        [*sources.notes, *meta["notes"], *_split_notes(splits)],
        folder,
    )


def stored_configs(config: Mapping[str, Any]) -> tuple[DataConfig, TokenizerConfig]:
    """Return the data and tokenizer configs of a run's config.yaml, also one of an earlier version.

    A field that its component no longer has must be unset there. Raises UserError for anything else.
    """
    return _stored("data", config), _stored("tokenizer", config)


def _stored(group: str, config: Mapping[str, Any]) -> Any:
    content = config.get(group)
    if not isinstance(content, Mapping):
        raise UserError(f"config.yaml has no group {group}: start the run afresh with rerun=true")
    owner = registry.get(group, str(content.get("name")), f"{group}.name")
    known = {each.name for each in dataclasses.fields(owner)}
    unknown = sorted(str(key) for key, value in content.items() if key not in known and value is not None)
    if unknown:
        raise UserError(f"config.yaml has the unknown key {group}.{unknown[0]}: start the run afresh with rerun=true")
    return instance(owner, {str(key): value for key, value in content.items() if key in known}, f"{group}.")


def require_length(corpus: Corpus, ctx_len: int) -> None:
    """Raise UserError if a split is too short for one sequence of ``ctx_len`` tokens and its targets."""
    for name, split in (("training", corpus.train), ("validation", corpus.val)):
        if split is not None and not split.weighted and len(split) <= ctx_len:
            raise UserError(
                f"model.ctx_len={ctx_len} is too long for the {name} text of {len(split)} tokens: "
                f"at most {len(split) - 1}, or give more data"
            )


def _key(sources: Sources, tokenizer: Any) -> str:
    parts = {
        name: [[segment.sha256, segment.start, segment.stop] for segment in segments]
        for name, segments in sources.parts.items()
    }
    return text_sha256(json.dumps([parts, sources.layout, tokenizer], sort_keys=True).encode())[:24]


def _holds(cache: Path, key: str, tokenizer: Tokenizer) -> bool:
    file = cache / "tokens" / key / "tokenizer.json"
    return file.is_file() and file.read_bytes() == tokenizer.to_json().encode()


def _build(folder: Path, sources: Sources, config: TokenizerConfig, stored: Tokenizer | None) -> Mapping[str, Any]:
    tokenizer = stored or config.build(sources)
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    splits = {}
    for name in sources.parts:
        part = Part(folder, name, tokenizer.vocab_size, tokenizer.unknown_id)
        if sources.ids is None:
            size = sum(segment.stop - segment.start for segment in sources.parts[name])
            splits[name] = part.write(with_progress(tokenizer.stream(sources.parts[name]), size, f"tokens of {name}"))
        else:
            each = tokenizer.bytes_of_ids()
            stream = _stream_ids(sources, name, tokenizer)
            splits[name] = part.write(stream, each if isinstance(each, int) else 0, _mapped(sources, name) is None)
    for segment in {segment.path: segment for segment in sources.segments()}.values():
        if file_sha256(segment.path, segment.key) != segment.sha256:
            raise UserError(f"{segment.key}={segment.path} changed while it was read: run again")
    return {"splits": splits, "notes": [] if stored else config.notes(sources)}


def _stream_ids(sources: Sources, part: str, tokenizer: Tokenizer) -> Stream:
    """Yield the ids of a part and the bytes of text behind each; UserError for an id outside the vocabulary."""
    assert sources.ids is not None
    lengths = tokenizer.bytes_of_ids()
    for segment in sources.parts[part]:
        position = segment.start
        for ids in sources.ids(segment):
            for wrong in (int(ids.argmin()), int(ids.argmax())):
                if not 0 <= ids[wrong] < tokenizer.vocab_size:
                    raise UserError(
                        f"{segment.key}={segment.path} has the token id {ids[wrong]} at position {position + wrong}: "
                        f"the tokenizer has 0 to {tokenizer.vocab_size - 1} (see tokenizer.vocab_size)"
                    )
            yield ids, None if isinstance(lengths, int) else lengths[ids]
            position += len(ids)


def _mapped(sources: Sources, part: str) -> np.ndarray | None:
    """Return the token ids of a part where they lie [N]; None if they are to be copied into the cache."""
    segments = sources.parts.get(part, [])
    return sources.mapped(segments[0]) if sources.mapped and len(segments) == 1 else None


def _source_hashes(sources: Sources) -> dict[str, str]:
    files = {segment.path: segment.sha256 for segment in sources.segments()}
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
