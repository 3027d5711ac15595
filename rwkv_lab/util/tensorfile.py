"""Safetensors files, written as every other file: in one step, and with the same errors."""

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rwkv_lab.util.io import replacing


def write_tensors(tensors: Mapping[str, Tensor], file: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Replace ``file`` by a safetensors file of ``tensors`` in one step; OSError if that fails, e.g. on a full disk."""
    try:
        with replacing(Path(file)) as partial:
            save_file(dict(tensors), partial, metadata=dict(metadata) if metadata else None)
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number), str(file)) from error
