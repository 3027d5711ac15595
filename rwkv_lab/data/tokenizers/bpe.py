"""Any Hugging Face ``tokenizer.json``, streamed over a corpus of any size."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rwkv_lab.config.errors import UserError
from rwkv_lab.data.reading import Segment, text_blocks

BLOCK = 1 << 20
PIECE = 1 << 16


@dataclass(frozen=True)
class BpeTokenizer:
    """The tokenizer that a ``tokenizer.json`` describes; special tokens are neither added nor shown."""

    # the content of tokenizer.json
    content: str = field(repr=False)

    @cached_property
    def _inner(self) -> Any:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise UserError("tokenizer=bpe needs the package tokenizers: pip install 'rwkv_lab[tokenizers]'") from None
        return Tokenizer.from_str(self.content)

    @cached_property
    def vocab_size(self) -> int:
        return max(self._inner.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def unknown_id(self) -> int | None:
        token = getattr(self._inner.model, "unk_token", None)
        return self._inner.token_to_id(token) if token else None

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._inner.encode(text, add_special_tokens=False).ids, np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        return self._inner.decode([int(i) for i in ids], skip_special_tokens=True)

    def to_json(self) -> str:
        return json.dumps({"kind": "bpe", "tokenizer": json.loads(self.content)})

    def stream(self, segments: Sequence[Segment]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ids and bytes of text of each: those between the end of the token before and its own end, so that they add
        up to the text whatever the tokenizer drops or splits. Text is cut before the space between two words."""
        owed = 0
        for pieces in _pieces(text_blocks(segments, BLOCK)):
            encodings = self._inner.encode_batch(pieces, add_special_tokens=False)
            ids, sizes = [], []
            for piece, encoding in zip(pieces, encodings, strict=True):
                found = np.array(encoding.ids, np.uint32)
                lengths = _bytes_behind(piece, np.array([end for _, end in encoding.offsets], np.int64))
                if len(found):
                    lengths[0] += owed
                    owed = 0
                else:
                    owed += len(piece.encode())
                ids.append(found)
                sizes.append(lengths)
            yield np.concatenate(ids), np.concatenate(sizes)

    def bytes_of_ids(self) -> np.ndarray | None:
        """Bytes of text behind each id of the vocabulary [V], where the tokenizer works on bytes; else None."""
        content = json.loads(self.content)
        if (content.get("decoder") or {}).get("type") != "ByteLevel":
            return None
        lengths = np.zeros(self.vocab_size, np.uint32)
        for token, i in self._inner.get_vocab(with_added_tokens=False).items():
            lengths[i] = len(token)
        for i, added in self._inner.get_added_tokens_decoder().items():
            lengths[i] = 0 if added.special else len(added.content.encode())
        return lengths


def read_bpe(path: str) -> BpeTokenizer:
    """The tokenizer of the file ``path``. Raises ``UserError`` naming tokenizer.path when it holds none."""
    file = Path(path).expanduser()
    try:
        tokenizer = BpeTokenizer(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"tokenizer.path={path} cannot be read: give a tokenizer.json ({error})") from error
    try:
        size = tokenizer.vocab_size
    except UserError:
        raise
    except Exception as error:  # the package raises plain Exception for a bad file
        raise UserError(f"tokenizer.path={path} is no tokenizer.json: {error}") from error
    if size < 2:
        raise UserError(f"tokenizer.path={path} has a vocabulary of {size}: at least 2 are needed")
    return tokenizer


def _bytes_behind(piece: str, ends: np.ndarray) -> np.ndarray:
    """Bytes of text that each token adds, uint32 [N]; ``ends`` are the tokens' ends in characters, any order."""
    points = np.frombuffer(piece.encode("utf-32-le"), np.uint32)
    widths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    before = np.concatenate([[0], np.cumsum(widths)])
    reached = before[np.maximum.accumulate(ends)] if len(ends) else np.zeros(0, np.int64)
    if len(reached):
        reached[-1] = before[-1]
    return np.diff(reached, prepend=0).astype(np.uint32)


def _pieces(blocks: Iterable[str]) -> Iterator[list[str]]:
    """The text in lists of pieces of about PIECE characters; where it is cut does not depend on the blocks."""
    rest = ""
    for block in blocks:
        rest += block
        pieces = []
        while len(rest) > 2 * PIECE:
            cut = _cut(rest)
            pieces.append(rest[:cut])
            rest = rest[cut:]
        if pieces:
            yield pieces
    if rest:
        yield [rest]


def _cut(text: str) -> int:
    """A place at or before PIECE characters, before a space that stands between two letters; PIECE if there is none."""
    place = text.rfind(" ", 1, PIECE)
    while place > 0:
        if text[place - 1].isalpha() and text[place + 1].isalpha():
            return place
        place = text.rfind(" ", 1, place)
    return PIECE
