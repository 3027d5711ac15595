"""Writing safetensors files atomically, with the errors every other file has."""

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rwkv_lab.util.paths import put_in_place


def write_tensors(tensors: Mapping[str, Tensor], file: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write ``tensors`` as a safetensors file in one step, on the disk when this returns.

    Raises OSError, e.g. on a full disk; the old file then stays.
    """
    file = Path(file)
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        save_file(dict(tensors), partial, metadata=dict(metadata) if metadata else None)
        put_in_place(partial, file)
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number), str(file)) from error
    finally:
        partial.unlink(missing_ok=True)
