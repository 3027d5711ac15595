"""Where things are, and how files are written so that a crash leaves the old or the new one, never half."""

import json
import os
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
RUNS = REPOSITORY / "runs"


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces ``path`` in one step; on any error the old file stays and no partial file is left behind."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """``value`` as readable JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())
