"""Text to token ids and back: bytes, characters, or any Hugging Face ``tokenizer.json``.

Every tokenizer has ``vocab_size``, ``unknown_id`` (None: nothing is unknown to it), ``encode(str) -> ids``,
``decode(ids) -> str``, ``to_json() -> str`` and ``stream(segments)``, which yields (ids, bytes of text behind each id)
block by block; None for the latter means one byte each.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from rwkv_lab.config.errors import UserError
from rwkv_lab.data.reading import Segment, byte_blocks, text_blocks
from rwkv_lab.data.tokenizers.bpe import BpeTokenizer

CODE_POINTS = 0x110000
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
Stream = Iterator[tuple[np.ndarray, np.ndarray | None]]


class Tokenizer(Protocol):
    """What the rest of the laboratory asks of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def unknown_id(self) -> int | None: ...
    def encode(self, text: str) -> np.ndarray: ...
    def decode(self, ids: Iterable[int]) -> str: ...
    def to_json(self) -> str: ...
    def stream(self, segments: Sequence[Segment]) -> Stream: ...


@dataclass(frozen=True)
class ByteTokenizer:
    """Ids are the bytes of the UTF-8 text."""

    vocab_size: int = 256
    unknown_id: None = None

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8).astype(np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(int(i) for i in ids).decode("utf-8", "replace")

    def to_json(self) -> str:
        return json.dumps({"kind": "byte"})

    def stream(self, segments: Sequence[Segment]) -> Stream:
        for block in byte_blocks(segments):
            yield np.frombuffer(block, np.uint8), None


@dataclass(frozen=True)
class CharTokenizer:
    """Ids are characters, sorted by code point; the last id stands for every character not among them."""

    characters: str = field(repr=False)

    @property
    def vocab_size(self) -> int:
        return len(self.characters) + 1

    @property
    def unknown_id(self) -> int:
        return len(self.characters)

    @cached_property
    def _ids(self) -> np.ndarray:
        table = np.full(CODE_POINTS, self.unknown_id, _id_type(self.vocab_size))
        table[_code_points(self.characters)] = np.arange(len(self.characters))
        return table

    def encode(self, text: str) -> np.ndarray:
        return self._ids[_code_points(text)].astype(np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.characters[i] if i < len(self.characters) else REPLACEMENT for i in ids)

    def to_json(self) -> str:
        return json.dumps({"kind": "char", "characters": self.characters})

    def stream(self, segments: Sequence[Segment]) -> Stream:
        for text in text_blocks(segments):
            points = _code_points(text)
            yield self._ids[points], _utf8_lengths(points)


@dataclass(frozen=True)
class IdsTokenizer:
    """Token ids that come without text: a prompt is numbers, a sample is numbers, bytes are not known."""

    vocab_size: int
    unknown_id: None = None

    def encode(self, text: str) -> np.ndarray:
        try:
            ids = np.array([int(word) for word in text.split()], np.int64)
        except ValueError:
            raise UserError(
                "this run has token ids and no tokenizer: a prompt is numbers with spaces between"
            ) from None
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise UserError(f"token ids of a prompt are 0 to {self.vocab_size - 1}")
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(str(int(i)) for i in ids)

    def to_json(self) -> str:
        return json.dumps({"kind": "ids", "vocab_size": self.vocab_size})

    def stream(self, segments: Sequence[Segment]) -> Stream:
        raise UserError("tokenizer=ids reads no text: use it with data=npy")


def char_vocabulary(segments: Sequence[Segment]) -> CharTokenizer:
    """The characters of these segments, in one streamed pass."""
    seen = np.zeros(CODE_POINTS, bool)
    for text in text_blocks(segments):
        seen[_code_points(text)] = True
    return CharTokenizer("".join(map(chr, np.flatnonzero(seen))))


def unknown_in(tokenizer: Tokenizer, text: str) -> str | None:
    """One sentence on what of a prompt the tokenizer does not know; None when it knows all."""
    if tokenizer.unknown_id is None:
        return None
    count = int((tokenizer.encode(text) == tokenizer.unknown_id).sum())
    if not count:
        return None
    strange = "".join(sorted(c for c in set(text) if tokenizer.unknown_id in tokenizer.encode(c)))
    return f"the prompt has characters unknown to the tokenizer, {strange!r} ({count} in all), read as one and the same"


def from_json(text: str) -> Tokenizer:
    """The tokenizer that ``to_json`` stored with a run. Raises ``UserError`` when the text is none."""
    try:
        stored: dict[str, Any] = json.loads(text)
        kind = stored["kind"]
        if kind == "byte":
            return ByteTokenizer()
        if kind == "char":
            return CharTokenizer(str(stored["characters"]))
        if kind == "bpe":
            return BpeTokenizer(json.dumps(stored["tokenizer"]))
        if kind == "ids":
            return IdsTokenizer(int(stored["vocab_size"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"the stored tokenizer cannot be read: {error}") from error
    raise UserError(f"the stored tokenizer is of an unknown kind: {kind}")


def _id_type(vocab_size: int) -> type[np.unsignedinteger]:
    return np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.uint32


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _utf8_lengths(points: np.ndarray) -> np.ndarray:
    lengths = np.ones(len(points), np.uint8)
    for first in (0x80, 0x800, 0x10000):
        lengths += points >= first
    return lengths
