"""Models in and out of other programs: rwkv-lab convert --help

`load_original` and `to_original` do part of it in Python. torch is imported when they are used.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkv_lab.cli.arguments import MODEL, Arguments
from rwkv_lab.config.errors import UserError, main_guard

if TYPE_CHECKING:
    from rwkv_lab.models.opening import Opened
    from rwkv_lab.models.rwkv_lm_format import load_original, to_original

__all__ = ["load_original", "main", "to_original"]

FORMS = {
    "original": ".pth",
    "rwkv_lab": ".safetensors",
    "onnx": ".onnx",
    "hf": "",
}  # what can be written, and how its name must end


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rwkv_lab.models import rwkv_lm_format

    return getattr(rwkv_lm_format, name)


def _parser() -> argparse.ArgumentParser:
    parser = Arguments(
        prog="rwkv-lab convert",
        description="Writes a model for another program: out.pth for the rwkv package and the original implementation, "
        "out.safetensors for rwkv_lab (model.init_from=out.safetensors), out.onnx for onnxruntime, a folder for "
        "transformers.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("out", type=Path, help="file to write, or folder with --to hf")
    parser.add_argument("--to", choices=FORMS, help="what to write (by the ending of OUT: .pth, .safetensors, .onnx)")
    parser.add_argument("--tokenizer", metavar="FILE", help="tokenizer.json to write along with --to hf")
    parser.add_argument("--absorb-ln", action="store_true", help="fold the norm after the embedding into it")
    parser.add_argument(
        "--from", dest="origin", choices=["original"], help="MODEL has the original's names (found out by itself)"
    )
    parser.add_argument("--version", choices=["v1", "v2", "v3", "v4"], help="of the .pth file (as its tensors show)")
    parser.add_argument(
        "--model-type", help="of the .pth file: RWKV, RWKV-ffnPre, MHA_rotary, ... (as its tensors show)"
    )
    parser.add_argument("--n-head", type=int, help="heads, which MHA_rotary and MHA_shift do not show")
    parser.add_argument("--ctx-len", type=int, help="training length, where the tensors do not show it (1024)")
    return parser


def main(argv: list[str]) -> None:
    """The command line."""
    options = _parser().parse_args(argv)
    form = _form(options.out, options.to)
    if not options.out.parent.is_dir():
        raise UserError(f"{options.out.parent}: this folder does not exist")
    if options.absorb_ln and form not in ("rwkv_lab", "onnx"):
        raise UserError("--absorb-ln needs an OUT that ends in .safetensors or .onnx: other programs expect the norm")
    from safetensors import SafetensorError

    from rwkv_lab.models.opening import Opened, absorb_norm, open_model

    sizes = {key: getattr(options, key) for key in ("n_head", "ctx_len") if getattr(options, key) is not None}
    opened = open_model(
        options.model, options.tokenizer, version=options.version, model_type=options.model_type, **sizes
    )
    if options.absorb_ln:
        opened = Opened(absorb_norm(opened.model), opened.tokenizer)
    try:
        _write(opened, form, options.out)
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch raises a RuntimeError for a file it cannot open, with the reason at the end of its first line.
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0].rpartition("strerror: ")[2]
        raise UserError(f"{options.out} cannot be written: {reason}") from None


def _form(out: Path, to: str | None) -> str:
    """Return the key of ``FORMS`` to write; UserError if the name of ``out`` does not go with it, or a run is there."""
    from rwkv_lab.models.huggingface import is_folder

    if to is None:
        form = next((form for form, ending in FORMS.items() if ending and out.suffix == ending), None)
        if form is None:
            raise UserError(f"{out} must end in .pth, .safetensors or .onnx, or be a folder with --to hf")
        return form
    if FORMS[to] and out.suffix != FORMS[to]:
        raise UserError(f"{out} must end in {FORMS[to]} with --to {to}")
    if not FORMS[to] and (out.is_file() or out.suffix in (".pth", ".safetensors")):
        raise UserError(f"{out} must be a folder with --to {to}")
    if not FORMS[to] and out.is_dir() and any(out.iterdir()) and not is_folder(out):
        raise UserError(f"{out} has other files in it: give a new folder for --to {to}")
    return to


def _write(opened: "Opened", form: str, out: Path) -> None:
    import torch

    from rwkv_lab.models import huggingface
    from rwkv_lab.models.factory import save
    from rwkv_lab.models.rwkv_lm_format import to_original

    if form == "original":
        torch.save(to_original(opened.model), out)
    elif form == "rwkv_lab":
        save(opened.model, out)
    elif form == "onnx":
        from rwkv_lab.models import onnx

        onnx.save(opened.model, out)
    else:
        names = huggingface.save(opened.model, opened.tokenizer, out)
        print(f"wrote {', '.join(names)} in {out}")
        if "tokenizer.json" not in names:
            print("note: no tokenizer was written: give --tokenizer FILE, unless the ids stand for no text")
        return
    print(f"wrote {out}")


if __name__ == "__main__":
    sys.exit(main_guard(lambda: main(sys.argv[1:])))
