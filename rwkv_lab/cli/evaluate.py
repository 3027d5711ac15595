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


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = Arguments(
        "rwkv-lab evaluate",
        description="Loss of a run on its own validation or test text, or of any model on the text of a file.",
    )
    add_model_options(parser, "the run's own, else fp32")
    parser.add_argument("--split", choices=("test", "val"), help="which text of the run (val)")
    parser.add_argument("--text", type=Path, metavar="FILE", help="evaluate on this text, all of it")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Run ``argv`` (without the program's name); return the exit code."""
    arguments = _arguments(argv)
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


def _on_own_text(arguments: argparse.Namespace) -> "tuple[Evaluation, str]":
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
    from rwkv_lab.training.evaluate import evaluate_run

    split = arguments.split or "val"
    return evaluate_run(str(path), split, arguments.device, arguments.precision), split


if __name__ == "__main__":
    sys.exit(main_guard(lambda: main(sys.argv[1:])))
