"""Models in and out of other programs: rwkv-lab convert --help

`load_original` and `to_original` do part of it in Python. torch is imported when they are used.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkv_lab.cli.arguments import MODEL, Arguments
from rwkv_lab.config.errors import UserError, main_guard

if TYPE_CHECKING:
    from rwkv_lab.data import Tokenizer
    from rwkv_lab.data.token_cache import Split
    from rwkv_lab.models.lm import LM
    from rwkv_lab.models.opening import Opened
    from rwkv_lab.models.rwkv_lm_format import load_original, to_original
    from rwkv_lab.runs import Run

__all__ = ["load_original", "main", "to_original"]

FORMS = {
    "original": ".pth",
    "rwkv_lab": ".safetensors",
    "onnx": ".onnx",
    "html": ".html",
    "hf": "",
}  # what can be written, and how its name must end
MEASURED = 8192  # tokens on which the weights of a page are measured
PROMPT = 60  # most characters of the held-out text that a page begins with


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rwkv_lab.models import rwkv_lm_format

    return getattr(rwkv_lm_format, name)


def _parser() -> argparse.ArgumentParser:
    parser = Arguments(
        prog="rwkv-lab convert",
        description="Writes a model for another program: out.pth for the rwkv package and the original implementation, "
        "out.safetensors for rwkv_lab (model.init_from=out.safetensors), out.onnx for onnxruntime, out.html for "
        "any browser, a folder for transformers.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("out", type=Path, help="file to write, or folder with --to hf")
    parser.add_argument("--to", choices=FORMS, help="what to write (shown by the ending of OUT, but for hf)")
    parser.add_argument("--tokenizer", metavar="FILE", help="tokenizer.json to write along with --to hf and --to html")
    parser.add_argument("--weights", choices=["fp32", "fp16", "int8"], help="of the matrices in OUT.html (fp16)")
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="measure the weights of OUT.html on it (the held-out text of a run)"
    )
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
    for option in ("weights", "text"):
        if getattr(options, option) is not None and form != "html":
            raise UserError(f"--{option} is an option of --to html: OUT must end in .html")
    from safetensors import SafetensorError

    from rwkv_lab.models.opening import Opened, absorb_norm, open_model

    sizes = {key: getattr(options, key) for key in ("n_head", "ctx_len") if getattr(options, key) is not None}
    opened = open_model(
        options.model, options.tokenizer, version=options.version, model_type=options.model_type, **sizes
    )
    if options.absorb_ln:
        opened = Opened(absorb_norm(opened.model), opened.tokenizer)
    try:
        if form == "html":
            _write_page(opened, options)
        else:
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
            raise UserError(f"{out} must end in .pth, .safetensors, .onnx or .html, or be a folder with --to hf")
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


def _write_page(opened: "Opened", options: argparse.Namespace) -> None:
    from rwkv_lab.inference import page
    from rwkv_lab.inference.recurrent import placed
    from rwkv_lab.models.opening import run_of
    from rwkv_lab.training.evaluate import STREAMS, evaluate_full

    model, tokenizer = opened
    if tokenizer is None:
        raise UserError(f"{options.model} has no tokenizer.json beside its weights: give --tokenizer FILE")
    page.describe(model)  # refused before anything is measured
    run = run_of(options.model)
    split, source = _measured_text(tokenizer, run, options.text)
    bpb, text, prompt = {}, f"Bits per byte: not measured ({source}).", ""
    if split is not None:
        for form in page.FORMS:
            with placed(page.rounded(model, form), "cpu") as ready:
                bpb[form] = evaluate_full(ready, split, model.config.ctx_len, STREAMS, "cpu", MEASURED).bpb
        text = f"Bits per byte of the first {min(MEASURED, len(split) - 1):,} tokens of {source}; lower is better."
        if not all(map(math.isfinite, bpb.values())):
            bpb, text = {}, "Bits per byte: not defined for tokens that come without text."
        prompt = _prompt(tokenizer.decode(split.tokens[:PROMPT].tolist())[:PROMPT])
    facts = _facts(model, tokenizer, run)
    title = f"{model.config.name} on {run.config['data']['name']}" if run else Path(options.model).stem
    form = options.weights or "fp16"
    page.save(model, tokenizer, form, page.Card(title, facts, bpb, text, prompt), options.out)
    print(f"wrote {options.out}: {form} weights" + (f", {bpb[form]:.4f} bits per byte" if bpb else f". {text}"))


def _prompt(text: str) -> str:
    """Return the whole words of ``text``, whose first and last may be cut."""
    return text.partition(" ")[2].rpartition(" ")[0].strip()


def _measured_text(
    tokenizer: "Tokenizer", run: "Run | None", file: Path | None
) -> "tuple[Split, str] | tuple[None, str]":
    """Return the text to measure a page's weights on and its name; None and why there is none."""
    from rwkv_lab.training.evaluate import run_split, text_split

    if file is not None:
        return text_split(tokenizer, file), file.name
    if run is None:
        return None, "--text FILE measures the weights in their three forms"
    try:
        return run_split(run, "val"), f"the held-out text of {run.config['data']['name']}"
    except UserError as error:
        return None, str(error)


def _facts(model: "LM", tokenizer: "Tokenizer", run: "Run | None") -> list[tuple[str, str]]:
    """Return the rows of a page's model card."""
    from rwkv_lab.util.units import count

    config = model.config
    facts = {
        "architecture": f"{config.name}: {config.n_layer} layers of {config.n_embd} channels, "
        f"trained on {config.ctx_len} tokens at once",
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "tokenizer": f"{json.loads(tokenizer.to_json())['kind']}, {tokenizer.vocab_size:,} tokens",
    }
    if run is not None:
        found = run.manifest
        result = found.get("result") or {}
        facts["run"] = f"{run.study}/{run.name}"
        facts["data"] = f"{run.config['data']['name']}, {count(found.get('tokens') or 0)} tokens read in training"
        if result.get("val_bpb") is not None:
            facts["held-out loss"] = f"{result['val_bpb']:.4f} bits per byte, {result.get('eval', '')}"
        facts["trained"] = str(found.get("ended") or "")[:10]
        facts["commit"] = str((found.get("git") or {}).get("commit") or "unknown")
    return list(facts.items())


if __name__ == "__main__":
    sys.exit(main_guard(lambda: main(sys.argv[1:])))
