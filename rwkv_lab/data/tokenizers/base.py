"""Text to token ids and back: what every tokenizer offers, and how one is stored with a run."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from rwkv_lab.config import registry
from rwkv_lab.config.errors import UserError
from rwkv_lab.data.sources import Segment
from rwkv_lab.data.token_cache import Stream


class Tokenizer(Protocol):
    """What the laboratory asks of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def unknown_id(self) -> int | None:
        """The id of everything outside the vocabulary; None if nothing is."""

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of ``text``, int64 [N]."""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``."""

    def start(self) -> list[int]:
        """Return the ids a sample starts from, at least one: a line break if the tokenizer has one."""

    def to_json(self) -> str:
        """Return what ``from_json`` reads: a JSON object whose ``kind`` is the name of a tokenizer."""

    def stream(self, segments: Sequence[Segment]) -> Stream:
        """Yield the ids of a text of any size, block by block, with the bytes of text behind each; None: one byte."""

    def bytes_of_ids(self) -> np.ndarray | int:
        """Return the bytes of text behind each id [V], or one number for all: 1, or 0 where they are not known."""


def from_json(text: str) -> Tokenizer:
    """Return the tokenizer that ``to_json`` stored, or that a Hugging Face tokenizer.json describes.

    Raises UserError for any other text.
    """
    try:
        stored: dict[str, Any] = json.loads(text)
        if "kind" not in stored and "model" in stored:
            stored = {"kind": "bpe", "tokenizer": stored}
        kind = str(stored["kind"])
        known = registry.members("tokenizer")
        if kind not in known:
            raise UserError(f"the stored tokenizer is of an unknown kind: {kind} (known: {', '.join(known)})")
        return known[kind].from_json(stored)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"the stored tokenizer cannot be read: {error}") from error


def unknown_in(tokenizer: Tokenizer, text: str) -> str | None:
    """Return a sentence on what of a prompt the tokenizer does not know; None if it knows all."""
    if tokenizer.unknown_id is None:
        return None
    count = int((tokenizer.encode(text) == tokenizer.unknown_id).sum())
    if not count:
        return None
    strange = "".join(sorted(c for c in set(text) if tokenizer.unknown_id in tokenizer.encode(c)))
    return f"the prompt has characters unknown to the tokenizer, {strange!r} ({count} in all), read as one and the same"
