"""Constants of the laws' priors and intervals: measured by ``python -m analysis calibrate``, kept in one file."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("constants.json")


@lru_cache(maxsize=1)
def load() -> dict[str, Any]:
    """The numbers of ``constants.json``."""
    return dict(json.loads(PATH.read_text(encoding="utf-8")))
