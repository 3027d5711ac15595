"""The former names of ``rwkv_lab.runs.store.select`` and ``studies``."""

from rwkv_lab.runs.store import select as one
from rwkv_lab.runs.store import studies

__all__ = ["one", "studies"]
