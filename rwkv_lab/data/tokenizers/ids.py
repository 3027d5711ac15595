"""Token ids that come without text."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import setting
from rwkv_lab.config.kinds import Holding, TokenizerConfig
from rwkv_lab.config.registry import register
from rwkv_lab.data.sources import Segment, Sources
from rwkv_lab.data.token_cache import Stream

LARGEST_GUESSED = 1 << 18  # largest vocabulary taken from the data; published ones end at about 256,000
MOST = 1 << 31


@dataclass(frozen=True)
class IdsTokenizer:
    """Prompts and samples are numbers; bytes of text are not known."""

    vocab_size: int
    unknown_id: None = None

    def encode(self, text: str) -> np.ndarray:
        try:
            ids = np.array([int(word) for word in text.split()], np.int64)
        except (ValueError, OverflowError):
            raise UserError(
                "a prompt for this run must be token ids with spaces between, e.g. 3 17 5: it has no tokenizer"
            ) from None
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise UserError(f"token ids of a prompt must be 0 to {self.vocab_size - 1}")
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(str(int(i)) for i in ids)

    def start(self) -> list[int]:
        return [0]

    def to_json(self) -> str:
        return json.dumps({"kind": "ids", "vocab_size": self.vocab_size})

    def stream(self, segments: Sequence[Segment]) -> Stream:
        raise UserError("tokenizer=ids cannot read text: use it with token ids, e.g. data=npy")

    def bytes_of_ids(self) -> int:
        return 0


class Largest(NamedTuple):
    """The largest token id of a corpus, where it first is, and the largest of the others."""

    id: int
    key: str
    file: str
    position: int
    next: int

    def place(self) -> str:
        """Return ``data.path=FILE has the token id N at position P``."""
        return f"{self.key}={self.file} has the token id {self.id} at position {self.position}"

    def stray(self) -> bool:
        """Return whether the id stands far above all others."""
        return self.id - self.next > 256 and self.next < 0.8 * self.id


def largest_id(sources: Sources) -> Largest:
    """Return the largest token id of a corpus. Raises UserError for a negative one."""
    assert sources.ids is not None
    top = Largest(-1, "", "", 0, -1)
    for segment in sources.segments():
        position = segment.start
        for ids in sources.ids(segment):
            if ids.min() < 0:
                at = position + int(ids.argmin())
                raise UserError(
                    f"{segment.key}={segment.path} has the token id {ids.min()} at position {at}: ids start at 0"
                )
            highest = int(ids.max())
            below = ids[ids < highest]
            second = int(below.max()) if len(below) else -1
            if highest > top.id:
                place = (segment.key, str(segment.path), position + int(ids.argmax()))
                top = Largest(highest, *place, max(top.id, second))
            else:
                top = top._replace(next=max(top.next, second if highest == top.id else highest))
            position += len(ids)
    return top


@register("tokenizer", "ids")
@dataclass
class IdsConfig(TokenizerConfig):
    """Token ids that come without text."""

    name: str = "ids"
    vocab_size: int | None = setting(None, low=1, high=MOST)  # number of token ids; unset: the largest one plus one

    reads: ClassVar[tuple[Holding, ...]] = ("token ids",)

    def build(self, sources: Sources) -> IdsTokenizer:
        if self.vocab_size is not None:
            return IdsTokenizer(self.vocab_size)
        top = largest_id(sources)
        if top.id >= LARGEST_GUESSED or (top.stray() and _is_filler(top.id)):
            others = f" and no other above {top.next}" if top.stray() else ""
            way = f" or set tokenizer.vocab_size={top.id + 1}" if top.id < MOST else ""
            raise UserError(
                f"{top.place()}{others}: tokenizer.vocab_size would be {top.id + 1:,}; replace the id in the file{way}"
            )
        return IdsTokenizer(top.id + 1)

    def notes(self, sources: Sources) -> list[str]:
        top = largest_id(sources)
        if self.vocab_size is not None or not top.stray():
            return []
        return [
            f"{top.place()} and no other above {top.next}: the vocabulary is {top.id + 1:,} by this one "
            f"(tokenizer.vocab_size={top.id + 1} accepts it)"
        ]

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> IdsTokenizer:
        return IdsTokenizer(int(stored["vocab_size"]))


def _is_filler(number: int) -> bool:
    """Return whether all bits of a common type are set, as in separators and missing values."""
    return number in (2**15 - 1, 2**16 - 1)
