"""rwkv_lab: a laboratory for small language models.

The names below are the stable Python interface (docs/api.md), wherever their modules move. Each is imported when first
used (PEP 562), so that importing rwkv_lab imports no torch.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rwkv_lab import runs
    from rwkv_lab.data.sampling import cube_index
    from rwkv_lab.inference.recurrent import RecurrentModel
    from rwkv_lab.inference.sampling import filter_logits, generate
    from rwkv_lab.models.factory import build, load, save
    from rwkv_lab.models.rwkv_lm_format import load_original, to_original
    from rwkv_lab.ops.scan import wkv

__version__ = "0.1.0"

__all__ = [
    "RecurrentModel",
    "build",
    "cube_index",
    "filter_logits",
    "generate",
    "load",
    "load_original",
    "runs",
    "save",
    "to_original",
    "wkv",
]

_HOMES = {
    "RecurrentModel": "inference.recurrent",
    "build": "models.factory",
    "cube_index": "data.sampling",
    "filter_logits": "inference.sampling",
    "generate": "inference.sampling",
    "load": "models.factory",
    "load_original": "models.rwkv_lm_format",
    "save": "models.factory",
    "to_original": "models.rwkv_lm_format",
    "wkv": "ops.scan",
}

# ``python -m rwkv_lab.generate`` and the like run the commands, which live in cli/.
__path__.append(str(Path(__file__).parent / "cli"))


def __getattr__(name: str) -> Any:
    if name == "runs":
        return import_module("rwkv_lab.runs")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
