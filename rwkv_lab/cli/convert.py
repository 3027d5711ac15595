"""Checkpoints of the original implementation, in and out: python -m rwkv_lab.convert --help

`load_original` and `to_original` do the same in Python. torch is imported when they are used.
"""

import argparse
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkv_lab.cli.arguments import Arguments
from rwkv_lab.config.errors import UserError, main_guard

if TYPE_CHECKING:
    from rwkv_lab.models.rwkv_lm_format import load_original, to_original

__all__ = ["load_original", "main", "to_original"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rwkv_lab.models import rwkv_lm_format

    return getattr(rwkv_lm_format, name)


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


def main(argv: list[str]) -> None:
    """The command line."""
    options = _parser().parse_args(argv)
    import torch
    from safetensors import SafetensorError

    from rwkv_lab.models.factory import load, save
    from rwkv_lab.models.rwkv_lm_format import load_original, read_checkpoint, to_original

    if not options.out.parent.is_dir():
        raise UserError(f"{options.out.parent}: this folder does not exist")
    if options.to:
        tensors = to_original(load(options.source))
        write = functools.partial(torch.save, tensors)
    else:
        sizes = {key: getattr(options, key) for key in ("n_head", "ctx_len") if getattr(options, key) is not None}
        model = load_original(read_checkpoint(options.source), options.version, options.model_type, **sizes)
        write = functools.partial(save, model)
    try:
        write(options.out)
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch raises a RuntimeError for a file it cannot open, with the reason at the end of its first line.
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0].rpartition("strerror: ")[2]
        raise UserError(f"{options.out} cannot be written: {reason}") from None
    print(f"wrote {options.out}")


if __name__ == "__main__":
    sys.exit(main_guard(lambda: main(sys.argv[1:])))
