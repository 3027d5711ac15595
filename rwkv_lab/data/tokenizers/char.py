"""One token a character, with the vocabulary of the training text."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from rwkv_lab.config.kinds import TokenizerConfig
from rwkv_lab.config.registry import register
from rwkv_lab.data.sources import Segment, Sources, text_blocks
from rwkv_lab.data.token_cache import Stream, id_type

CODE_POINTS = 0x110000
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
NOT_ASCII = bytes(range(0x80, 0x100))
BLOCK = 1 << 18  # bytes; the arrays of a block stay in the processor's cache


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
        """The id of every code point [CODE_POINTS]."""
        table = np.full(CODE_POINTS, self.unknown_id, id_type(self.vocab_size))
        table[_code_points(self.characters)] = np.arange(len(self.characters))
        return table

    def encode(self, text: str) -> np.ndarray:
        return self._ids[_code_points(text)].astype(np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.characters[i] if i < len(self.characters) else REPLACEMENT for i in ids)

    def start(self) -> list[int]:
        return [max(0, self.characters.find("\n"))]

    def to_json(self) -> str:
        return json.dumps({"kind": "char", "characters": self.characters})

    def hugging_face(self) -> dict[str, Any]:
        """Return the content of a Hugging Face tokenizer.json with the same ids: BPE without merges."""
        unknown = "<unknown>" if REPLACEMENT in self.characters else REPLACEMENT
        vocabulary = {character: i for i, character in enumerate((*self.characters, unknown))}
        return {
            "version": "1.0",
            "added_tokens": [],
            "decoder": {"type": "Fuse"},
            "model": {
                "type": "BPE",
                "vocab": vocabulary,
                "merges": [],
                "unk_token": unknown,
                "fuse_unk": False,
                "byte_fallback": False,
            },
        }

    def stream(self, segments: Sequence[Segment]) -> Stream:
        of_ascii = self._ids[:256].tobytes() if self._ids.dtype == np.uint8 else None
        for text in text_blocks(segments, BLOCK):
            if text.isascii() and of_ascii:
                yield np.frombuffer(text.encode("ascii").translate(of_ascii), np.uint8), None
            else:
                points = _code_points(text)
                yield self._ids.take(points), None if text.isascii() else _utf8_lengths(points)

    def bytes_of_ids(self) -> np.ndarray:
        """Return the UTF-8 bytes of each character [V]; 0 for the unknown one."""
        return np.append(_utf8_lengths(_code_points(self.characters)), np.uint8(0))


def char_vocabulary(segments: Sequence[Segment]) -> CharTokenizer:
    """Return the tokenizer of the characters in these segments, read once."""
    seen = np.zeros(CODE_POINTS, bool)
    known = NOT_ASCII  # bytes to pass over: all but the ASCII characters not seen yet
    for text in text_blocks(segments, BLOCK):
        known += bytes(set(text.encode().translate(None, known)))
        if not text.isascii():
            points = _code_points(text)
            seen[points[points >= 0x80]] = True
    seen[list(known[len(NOT_ASCII) :])] = True
    return CharTokenizer("".join(map(chr, np.flatnonzero(seen))))


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _utf8_lengths(points: np.ndarray) -> np.ndarray:
    """Return the bytes that UTF-8 takes for each code point, uint8 [N]."""
    lengths = np.ones(len(points), np.uint8)
    for first in (0x80, 0x800, 0x10000):
        lengths += points >= first
    return lengths


@register("tokenizer", "char")
@dataclass
class CharConfig(TokenizerConfig):
    """One token a character, vocabulary of the training text."""

    name: str = "char"

    def build(self, sources: Sources) -> CharTokenizer:
        return char_vocabulary(sources.parts["train"])

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> CharTokenizer:
        if not isinstance(stored["characters"], str):
            raise TypeError("characters is not a string")
        return CharTokenizer(stored["characters"])
