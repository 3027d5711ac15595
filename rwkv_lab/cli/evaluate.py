"""Full held-out evaluation of a run: python -m rwkv_lab.evaluate RUN --help"""

import argparse
import json
import math
import sys

from rwkv_lab.cli.arguments import Arguments
from rwkv_lab.config.errors import main_guard


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = Arguments("python -m rwkv_lab.evaluate", description="Full held-out evaluation of a run.")
    parser.add_argument("run", help="directory of a complete run")
    parser.add_argument("--split", choices=("test", "val"), default="val", help="which text (default: val)")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to run (default: auto)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Run ``argv`` (without the program's name); return the exit code."""
    arguments = _arguments(argv)
    from rwkv_lab.training.evaluate import evaluate_run

    found = evaluate_run(arguments.run, arguments.split, arguments.device)
    if arguments.json:
        bpb = found.bpb if found.bytes else None
        accuracy = found.accuracy if math.isfinite(found.accuracy) else None
        print(json.dumps({"split": arguments.split, **found._asdict(), "bpb": bpb, "accuracy": accuracy}))
    else:
        more = f", {found.bpb:.4f} bits per byte" if found.bytes else ""
        more += f", accuracy {found.accuracy:.4f}" if math.isfinite(found.accuracy) else ""
        print(f"{arguments.split} loss {found.loss:.4f} nats per token{more}")
        print(f"over {found.tokens:,} tokens, {found.bytes:,} bytes: {found.method}")
    return 0


if __name__ == "__main__":
    sys.exit(main_guard(lambda: main(sys.argv[1:])))
