"""One token a pixel, four signs, and the bytes of captions."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.kinds import Holding, TokenizerConfig
from rwkv_lab.config.model_fields import IMG, IMG_FIRST, TXT, TXT_FIRST
from rwkv_lab.config.registry import register
from rwkv_lab.data.sources import Segment, Sources
from rwkv_lab.data.token_cache import Stream

SIGNS = {TXT_FIRST: "[TxtFirst]", IMG_FIRST: "[ImgFirst]", TXT: "[Txt]", IMG: "[Img]"}


@dataclass(frozen=True)
class PixelTokenizer:
    """Ids: (r L + g) L + b of colours of L levels, then the signs, then bytes of UTF-8. A prompt is a caption."""

    size: int  # side of a picture in pixels
    levels: int  # L
    unknown_id: None = None

    @property
    def pixels(self) -> int:
        """Number of colours, which are the ids from 0 on."""
        return self.levels**3

    @property
    def vocab_size(self) -> int:
        return self.pixels + len(SIGNS) + 256

    def sign(self, which: int) -> int:
        """Return the id of a sign."""
        return self.pixels + which

    def letters(self, text: str) -> np.ndarray:
        """Return the ids of the bytes of ``text``, int64 [N]."""
        return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8).astype(np.int64) + self.sign(len(SIGNS))

    def encode(self, text: str) -> np.ndarray:
        """Return the ids before the picture that a caption asks for: [TxtFirst] text [Img], or [Img] alone."""
        if not text.strip():
            return np.array([self.sign(IMG)])
        return np.concatenate(([self.sign(TXT_FIRST)], self.letters(text), [self.sign(IMG)]))

    def decode(self, ids: Iterable[int]) -> str:
        """Return text and signs as they are, and each pixel as its levels, e.g. ``<7,0,3>``."""
        shown = b""
        for token in map(int, ids):
            if token < self.pixels:
                red, green, blue = token // self.levels**2, token // self.levels % self.levels, token % self.levels
                shown += f"<{red},{green},{blue}>".encode()
            elif token - self.pixels in SIGNS:
                shown += SIGNS[token - self.pixels].encode()
            else:
                shown += bytes([token - self.sign(len(SIGNS))])
        return shown.decode("utf-8", "replace")

    def start(self) -> list[int]:
        return [self.sign(IMG)]

    def to_json(self) -> str:
        return json.dumps({"kind": "pixels", "size": self.size, "levels": self.levels})

    def stream(self, segments: Sequence[Segment]) -> Stream:
        raise UserError("tokenizer=pixels cannot read text: use it with data=images")

    def bytes_of_ids(self) -> int:
        return 0


@register("tokenizer", "pixels")
@dataclass
class PixelsConfig(TokenizerConfig):
    """One token a pixel, for data=images, which gives their size and levels."""

    name: str = "pixels"

    reads: ClassVar[tuple[Holding, ...]] = ("images",)

    def build(self, sources: Sources) -> PixelTokenizer:
        raise UserError("tokenizer=pixels is made by data=images alone")

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> PixelTokenizer:
        return PixelTokenizer(int(stored["size"]), int(stored["levels"]))
