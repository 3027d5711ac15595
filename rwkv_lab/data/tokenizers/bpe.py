"""Any Hugging Face ``tokenizer.json``, streamed over a corpus of any size."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import setting
from rwkv_lab.config.kinds import Holding, TokenizerConfig
from rwkv_lab.config.registry import register
from rwkv_lab.data.sources import Segment, Sources, text_blocks
from rwkv_lab.util.hashing import home_expanded
from rwkv_lab.util.io import write_atomic

BLOCK = 1 << 20
PIECE = 1 << 16  # characters encoded at once
SHORT_PIECE = 1 << 12  # if cuts between words change no token: twice as fast


@dataclass(frozen=True)
class BpeTokenizer:
    """The tokenizer that a ``tokenizer.json`` describes; special tokens are neither added nor shown."""

    content: str = field(repr=False)  # of tokenizer.json

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

    def start(self) -> list[int]:
        """Return a line break, else a space, else the first special token, else the first id."""
        for text in ("\n", " "):
            if len(ids := self.encode(text)):
                return [int(i) for i in ids]
        special = [i for i, token in self._inner.get_added_tokens_decoder().items() if token.special]
        return [min(special, default=0)]

    def to_json(self) -> str:
        return json.dumps({"kind": "bpe", "tokenizer": json.loads(self.content)})

    def hugging_face(self) -> dict[str, Any]:
        """Return the content of the tokenizer.json."""
        return dict(json.loads(self.content))

    def stream(self, segments: Sequence[Segment]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield ids and the bytes of text of each: those from the end of the token before to its own end.

        So they add up to the text, whatever the tokenizer drops or splits. Text is cut before the space between two
        words; the pieces of a block are encoded on all cores.
        """
        owed = 0
        by_words = self._by_words()
        for pieces in _pieces(text_blocks(segments, BLOCK)):
            if by_words:
                pieces = [part for piece in pieces for part in _split(piece)]
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

    def _by_words(self) -> bool:
        """Return whether a cut between two words never changes the tokens."""
        content = json.loads(self.content)
        splitter = content.get("pre_tokenizer") or {}
        by_words = splitter.get("type") == "ByteLevel" and splitter.get("use_regex", True)
        by_words &= not splitter.get("add_prefix_space", True)
        by_words &= (content.get("normalizer") or {"type": "NFC"}).get("type") == "NFC"
        phrases = any(" " in added["content"].strip() for added in content.get("added_tokens", []))
        return by_words and not phrases

    def bytes_of_ids(self) -> np.ndarray | int:
        """Return the bytes of text behind each id [V] for a tokenizer that works on bytes; else 0."""
        content = json.loads(self.content)
        if (content.get("decoder") or {}).get("type") != "ByteLevel":
            return 0
        lengths = np.zeros(self.vocab_size, np.uint32)
        for token, i in self._inner.get_vocab(with_added_tokens=False).items():
            lengths[i] = len(token)
        for i, added in self._inner.get_added_tokens_decoder().items():
            lengths[i] = 0 if added.special else len(added.content.encode())
        return lengths


def read_bpe(path: str) -> BpeTokenizer:
    """Return the tokenizer of the file ``path``; UserError naming tokenizer.path if there is none in it."""
    try:
        tokenizer = BpeTokenizer(home_expanded(path, "tokenizer.path").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"tokenizer.path={path} cannot be read: give a tokenizer.json ({error})") from error
    try:
        size = tokenizer.vocab_size
    except UserError:
        raise
    except Exception as error:  # the package raises plain Exception for a bad file
        raise UserError(f"tokenizer.path={path} is not a readable tokenizer.json: {error}") from error
    if size < 2:
        raise UserError(f"tokenizer.path={path} has a vocabulary of {size}: at least 2 are needed")
    return tokenizer


def train(out: Path, vocab_size: int, files: Sequence[Path]) -> None:
    """Write the tokenizer.json of a byte-level BPE tokenizer of ``vocab_size`` ids, trained on text ``files``.

    Every byte has an id, so no text is unknown to it (Radford et al. 2019). Raises UserError for a size below 256.
    """
    try:
        import tokenizers
    except ImportError:
        raise UserError("data train-bpe needs the package tokenizers: pip install 'rwkv_lab[tokenizers]'") from None
    if vocab_size < 256:
        raise UserError(f"data train-bpe: a vocabulary has at least the 256 bytes, e.g. 8192 (got {vocab_size})")
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, show_progress=sys.stderr.isatty(), initial_alphabet=byte_level.alphabet()
    )
    segments = [Segment(file, 0, file.stat().st_size, "FILE", "") for file in files]
    from tqdm import tqdm

    def lines() -> Iterator[str]:
        size = sum(segment.stop for segment in segments)
        with tqdm(total=size, desc="reading", unit="B", unit_scale=True, disable=None, delay=1, leave=False) as bar:
            for text in text_blocks(segments):
                yield from text.splitlines(True)
                bar.update(len(text.encode()))

    tokenizer.train_from_iterator(lines(), trainer)
    try:
        write_atomic(out, tokenizer.to_str(pretty=True).encode())
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from error


@register("tokenizer", "bpe")
@dataclass
class BpeConfig(TokenizerConfig):
    """Any Hugging Face tokenizer.json (extra ``tokenizers``), such as the 20B tokenizer of the Pile models."""

    name: str = "bpe"
    path: str | None = setting(None, file=True)  # the tokenizer.json

    reads: ClassVar[tuple[Holding, ...]] = ("text", "token ids")

    def check(self) -> None:
        if not self.path:
            raise UserError("tokenizer.path is missing: tokenizer=bpe needs tokenizer.path=tokenizer.json")

    def build(self, sources: Sources) -> BpeTokenizer:
        return read_bpe(str(self.path))

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> BpeTokenizer:
        return BpeTokenizer(json.dumps(stored["tokenizer"]))


def _bytes_behind(piece: str, ends: np.ndarray) -> np.ndarray:
    """Return the bytes of text that each token adds, uint32 [N]; ``ends`` are the tokens' ends in characters."""
    points = np.frombuffer(piece.encode("utf-32-le"), np.uint32)
    widths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    before = np.concatenate([[0], np.cumsum(widths)])
    reached = before[np.maximum.accumulate(ends)] if len(ends) else np.zeros(0, np.int64)
    if len(reached):
        reached[-1] = before[-1]
    return np.diff(reached, prepend=0).astype(np.uint32)


def _pieces(blocks: Iterable[str]) -> Iterator[list[str]]:
    """Yield lists of pieces of about PIECE characters; where the text is cut does not depend on the blocks."""
    rest = ""
    for block in blocks:
        rest += block
        pieces = []
        while len(rest) > 2 * PIECE:
            cut = _cut(rest, 0, PIECE) or PIECE
            pieces.append(rest[:cut])
            rest = rest[cut:]
        if pieces:
            yield pieces
    if rest:
        yield [rest]


def _split(piece: str) -> Iterator[str]:
    """Yield a piece in parts of about SHORT_PIECE characters, cut between two words only."""
    start = searched = 0
    while len(piece) - searched > SHORT_PIECE:
        cut = _cut(piece, searched, searched + SHORT_PIECE)
        if cut:
            yield piece[start:cut]
            start = cut
        searched = cut or searched + SHORT_PIECE
    yield piece[start:]


def _cut(text: str, start: int, stop: int) -> int:
    """Return the last place in (start, stop) before a space that stands between two letters; 0 if there is none."""
    place = text.rfind(" ", start + 1, stop)
    while place > start:
        if text[place - 1].isalpha() and text[place + 1].isalpha():
            return place
        place = text.rfind(" ", start + 1, place)
    return 0
