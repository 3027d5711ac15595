"""A text of the user's own."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rwkv_lab.config.registry import register
from rwkv_lab.data.sources import Divided, OwnFiles, Sources, divided, own_text
from rwkv_lab.util.hashing import expand


@register("data", "text")
@dataclass
class TextConfig(OwnFiles, Divided):
    """A file, a folder's .txt files or a glob, joined in sorted order; or files for each part."""

    name: str = "text"

    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".md", ".rst", ".py", "")

    def sources(self, cache: Path) -> Sources:
        if self.train_path:
            return own_text(self, cache)
        return Sources(divided(expand(str(self.path)), self, "data.path", cache))
