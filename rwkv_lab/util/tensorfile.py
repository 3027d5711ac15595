"""Safetensors files, written as every other file, in one step, and hashed on the way to the disk."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from rwkv_lab.util.io import writing

# What the format calls them (https://github.com/huggingface/safetensors, "Format").
NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
BLOCK = 1 << 24  # bytes hashed and written at once


def write_tensors(tensors: Mapping[str, Tensor], file: str | Path, metadata: Mapping[str, str] | None = None) -> str:
    """Replace ``file`` by a safetensors file of ``tensors`` in one step; return its sha256 (hex).

    Raises OSError if that fails, e.g. on a full disk, and KeyError for a type that is not among ``NAMES``.
    """
    # The widest first, so that each begins at a multiple of its width.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with writing(Path(file)) as out:
        for view in (memoryview(len(text).to_bytes(8, "little") + text), *(_bytes(tensor) for _, tensor in ordered)):
            for first in range(0, len(view), BLOCK):
                digest.update(view[first : first + BLOCK])
                out.write(view[first : first + BLOCK])
                _hand_over(out)
    return digest.hexdigest()


def _hand_over(out: BinaryIO) -> None:
    """Let the system begin to write what ``out`` has so far: left alone, it begins when it is asked to have ended."""
    if hasattr(os, "posix_fadvise") and out.tell() >= BLOCK:
        out.flush()
        os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
