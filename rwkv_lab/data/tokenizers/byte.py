"""One token a byte."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rwkv_lab.config.kinds import Holding, TokenizerConfig
from rwkv_lab.config.registry import register
from rwkv_lab.data.sources import Segment, Sources, byte_blocks
from rwkv_lab.data.token_cache import Stream


@dataclass(frozen=True)
class ByteTokenizer:
    """Ids are the bytes of the UTF-8 text, or of any other file."""

    vocab_size: int = 256
    unknown_id: None = None

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8).astype(np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(int(i) for i in ids).decode("utf-8", "replace")

    def start(self) -> list[int]:
        return [ord("\n")]

    def to_json(self) -> str:
        return json.dumps({"kind": "byte"})

    def hugging_face(self) -> dict[str, Any]:
        """Return the content of a Hugging Face tokenizer.json with the same ids: byte-level BPE without merges."""
        # The characters that ByteLevel shows bytes as: themselves if printable in Latin-1, others from U+0100 on.
        shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in shown]
        vocabulary = {chr(byte): byte for byte in shown} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        return {
            "version": "1.0",
            "added_tokens": [],
            "pre_tokenizer": level,
            "decoder": level,
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        }

    def stream(self, segments: Sequence[Segment]) -> Stream:
        for block in byte_blocks(segments):
            yield np.frombuffer(block, np.uint8), None

    def bytes_of_ids(self) -> int:
        return 1


@register("tokenizer", "byte")
@dataclass
class ByteConfig(TokenizerConfig):
    """One token a byte, 256 in all, for text and any other file."""

    name: str = "byte"

    reads: ClassVar[tuple[Holding, ...]] = ("text", "token ids")

    def build(self, sources: Sources) -> ByteTokenizer:
        return ByteTokenizer()

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> ByteTokenizer:
        return ByteTokenizer()
