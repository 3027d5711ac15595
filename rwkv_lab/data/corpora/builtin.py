"""The language reference inside CPython: a text that every installation has."""

import importlib
from dataclasses import dataclass
from pathlib import Path

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.registry import register
from rwkv_lab.data.sources import Divided, Sources, made_text
from rwkv_lab.util.hashing import text_sha256


@register("data", "builtin")
@dataclass
class BuiltinConfig(Divided):
    """The language reference inside CPython, about 465,000 characters; it varies with the Python release."""

    name: str = "builtin"

    def sources(self, cache: Path) -> Sources:
        return made_text("builtin", builtin_text(), self, cache)

    def file_hashes(self, group: str) -> dict[str, str]:
        return {f"{group}.name": text_sha256(builtin_text())}


def builtin_text() -> bytes:
    """Return the topics of ``pydoc``, in sorted order."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        raise UserError(
            "data=builtin needs pydoc_data, which this Python comes without: use data=kjv, or data=text data.path=FILE"
        ) from None
    return "\n".join(topics[name] for name in sorted(topics)).encode()
