"""Checkpoints of the original implementation, in and out: python -m rwkv_lab.convert --help

`load_original` and `to_original` do the same in Python. torch is imported when they are used.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkv_lab.arguments import Arguments
from rwkv_lab.errors import Mistake, main_guard

if TYPE_CHECKING:
    from rwkv_lab.models.checkpoints import load_original, to_original

__all__ = ["load_original", "main", "to_original"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rwkv_lab.models import checkpoints

    return getattr(checkpoints, name)


def _parser() -> argparse.ArgumentParser:
    parser = Arguments(
        prog="python -m rwkv_lab.convert",
        description="Checkpoints of the original implementation. Out: RUN (or a .safetensors file) to out.pth, which "
        "the rwkv package loads. In: a .pth file to out.safetensors, for model.init_from=out.safetensors.",
    )
    parser.add_argument("source", help="run folder or .safetensors file; with --from original a .pth file")
    parser.add_argument("out", type=Path, help="file to write")
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument("--to", choices=["original"], help="write the original's names and shapes")
    direction.add_argument("--from", dest="origin", choices=["original"], help="read the original's names and shapes")
    parser.add_argument("--version", default="v4", choices=["v1", "v2", "v3", "v4"], help="of the .pth file (v4)")
    parser.add_argument(
        "--model-type", default="RWKV", help="of the .pth file: RWKV, RWKV-ffnPre, MHA_rotary, ... (RWKV)"
    )
    parser.add_argument("--n-head", type=int, help="heads, which MHA_rotary and MHA_shift do not show")
    parser.add_argument("--ctx-len", type=int, help="training length, where the tensors do not show it (1024)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    options = _parser().parse_args(arguments)
    import torch

    from rwkv_lab.models.checkpoints import load_original, read_checkpoint, to_original
    from rwkv_lab.models.weights import load, save

    if not options.out.parent.is_dir():
        raise Mistake(f"{options.out.parent}: there is no such folder to write to")
    if options.to:
        torch.save(to_original(load(options.source)), options.out)
    else:
        sizes = {key: getattr(options, key) for key in ("n_head", "ctx_len") if getattr(options, key) is not None}
        save(load_original(read_checkpoint(options.source), options.version, options.model_type, **sizes), options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    sys.exit(main_guard(main))
