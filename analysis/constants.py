"""Constants of the laws' priors and intervals: measured by ``python -m analysis calibrate``, kept in one file."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("constants.json")

_others: ContextVar[Mapping[str, Any] | None] = ContextVar("_others", default=None)


@lru_cache(maxsize=1)
def shipped() -> Mapping[str, Any]:
    """Return the numbers of ``constants.json``."""
    return dict(json.loads(PATH.read_text(encoding="utf-8")))


def load() -> Mapping[str, Any]:
    """Return the constants in force: those shipped, or those of the innermost ``using``."""
    return _others.get() or shipped()


@contextmanager
def using(numbers: Mapping[str, Any]) -> Iterator[None]:
    """Use other constants inside the block, to measure them."""
    token = _others.set(numbers)
    try:
        yield
    finally:
        _others.reset(token)
