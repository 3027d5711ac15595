"""Full held-out evaluation of a model: rwkv-lab evaluate MODEL --help"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rwkv_lab.cli.arguments import Arguments, add_model_options
from rwkv_lab.config.errors import UserError, main_guard

if TYPE_CHECKING:
    from rwkv_lab.training.evaluate import Evaluation

TOKENS = "131072"  # held-out tokens read by position


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = Arguments(
        "rwkv-lab evaluate",
        description="Loss of a run on its own validation or test text, or of any model on the text of a file.",
    )
    add_model_options(parser, "the run's own, else fp32")
    parser.add_argument("--split", choices=("test", "val"), help="which text of the run (val)")
    parser.add_argument("--text", type=Path, metavar="FILE", help="evaluate on this text, all of it")
    parser.add_argument(
        "--by-position",
        action="store_true",
        help="loss of the token at distance 1..N from the start of what the model has seen; also into "
        "by_position.csv of the run, which compare draws",
    )
    parser.add_argument("--ctx-len", metavar="N", help="that N: tokens, or times the run's ctx_len as in 4x (1x)")
    parser.add_argument("--tokens", metavar="COUNT", help="held-out tokens to read by position (131072)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Run ``argv`` (without the program's name); return the exit code."""
    arguments = _arguments(argv)
    if arguments.by_position:
        return _by_position(arguments)
    for option in ("ctx_len", "tokens"):
        if getattr(arguments, option) is not None:
            raise UserError(f"--{option.replace('_', '-')} belongs to --by-position: add that")
    found, name = (_on_text if arguments.text else _on_own_text)(arguments)
    if arguments.json:
        bpb = found.bpb if found.bytes else None
        accuracy = found.accuracy if math.isfinite(found.accuracy) else None
        print(json.dumps({"split": name, **found._asdict(), "bpb": bpb, "accuracy": accuracy}))
    else:
        more = f", {found.bpb:.4f} bits per byte" if found.bytes else ""
        more += f", accuracy {found.accuracy:.4f}" if math.isfinite(found.accuracy) else ""
        print(f"{name} loss {found.loss:.4f} nats per token{more}")
        print(f"over {found.tokens:,} tokens, {found.bytes:,} bytes: {found.method}")
    return 0


def _on_text(arguments: argparse.Namespace) -> "tuple[Evaluation, str]":
    if arguments.split:
        raise UserError("--split names a text of the run, --text another one: give one of them")
    from rwkv_lab.models.opening import with_tokenizer
    from rwkv_lab.training.evaluate import evaluate_text

    model, tokenizer = with_tokenizer(arguments.model, arguments.tokenizer)
    return evaluate_text(model, tokenizer, arguments.text, arguments.device, arguments.precision), str(arguments.text)


def _by_position(arguments: argparse.Namespace) -> int:
    """Print the loss by position, and write it into the run."""
    if arguments.text:
        raise UserError("--by-position reads a run's own text: leave out --text")
    from rwkv_lab import models
    from rwkv_lab.inference.recurrent import chosen_device, placed
    from rwkv_lab.training.by_position import evaluate_by_position, parse_length
    from rwkv_lab.training.evaluate import open_run
    from rwkv_lab.util.units import parse_count

    opened = open_run(str(_run_of(arguments)), arguments.split or "val")
    if opened.split.weighted:
        raise UserError("--by-position needs a text: the sequences of this run count at a few places only")
    try:
        tokens = parse_count(arguments.tokens or TOKENS)
    except ValueError as error:
        raise UserError(f"--tokens must be {error}") from None
    length = parse_length(arguments.ctx_len or "1x", opened.ctx_len)
    precision = arguments.precision or opened.precision
    with placed(models.load(opened.run.path, opened.backend), arguments.device, precision) as model:
        found = evaluate_by_position(model, opened.split, length, tokens, chosen_device(arguments.device))
    path = found.write(opened.run.path)
    if arguments.json:
        columns = ("first", "last", "carried", "window")
        numbers = [dict(zip(columns, span, strict=True)) for span in found.spans()]
        spans = [{key: None if value != value else value for key, value in span.items()} for span in numbers]
        print(json.dumps({"pieces": found.pieces, "length": length, "spans": spans}))
        return 0
    print(f"loss in nats per token by distance from the start, mean of {found.pieces} pieces of {length} tokens")
    print(f"{'distance':>13}   carried    window   (window: at most {opened.ctx_len} tokens)")
    for first, last, carried, window in found.spans():
        shown = f"{carried:9.4f}" if math.isfinite(carried) else f"{'-':>9}"
        print(f"{first if first == last else f'{first}-{last}':>13} {shown} {window:9.4f}")
    print(f"written to {path}: rwkv-lab compare draws it")
    return 0


def _on_own_text(arguments: argparse.Namespace) -> "tuple[Evaluation, str]":
    from rwkv_lab.training.evaluate import evaluate_run

    split = arguments.split or "val"
    return evaluate_run(str(_run_of(arguments)), split, arguments.device, arguments.precision), split


def _run_of(arguments: argparse.Namespace) -> Path:
    """Return the run directory that MODEL names."""
    from rwkv_lab.runs.run import is_run
    from rwkv_lab.runs.store import select
    from rwkv_lab.util.paths import runs_dir

    if arguments.tokenizer:
        raise UserError("--tokenizer needs --text FILE: a run's own text goes with its own tokenizer")
    path = Path(arguments.model)
    if not path.exists():
        path = select(arguments.model, runs_dir(None)).path
    elif not is_run(path):
        raise UserError(f"{path} is not a run directory, so it has no text of its own: give --text FILE")
    return path


if __name__ == "__main__":
    sys.exit(main_guard(lambda: main(sys.argv[1:])))
