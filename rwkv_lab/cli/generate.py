"""Text from a trained model: python -m rwkv_lab.generate RUN "prompt" (see --help)"""

import argparse
import sys
from pathlib import Path

from rwkv_lab.cli.arguments import Arguments
from rwkv_lab.config.errors import UserError, main_guard
from rwkv_lab.util.console import say


def _parser() -> argparse.ArgumentParser:
    parser = Arguments(
        prog="python -m rwkv_lab.generate",
        description="Continues a text with a trained run's model: token by token with a recurrent state for rwkv_v2, "
        "rwkv_v3 and rwkv_v4, with a window of ctx_len tokens for the others.",
    )
    parser.add_argument("run", type=Path, help="run folder, which holds model.safetensors and tokenizer.json")
    parser.add_argument("prompt", nargs="?", default="\n", help="text to continue (a line break)")
    parser.add_argument("--length", type=int, default=500, help="tokens to generate (500)")
    parser.add_argument("--seed", type=int, default=1, help="of the random draws (1)")
    parser.add_argument("--temperature", type=float, default=1.0, help="above 1 wilder, below tamer, 0 greedy (1)")
    parser.add_argument("--top-k", type=int, default=0, help="keep the k most probable tokens; 0 keeps all (0)")
    parser.add_argument("--top-p", type=float, default=1.0, help="keep the most probable tokens up to this sum (1)")
    parser.add_argument("--top-p-x", type=float, default=0.0, help="beside those, all above this; try 0.01 (0)")
    parser.add_argument("--top-a", type=float, default=0.0, help="drop below top_a * max(p)^power; try 0.2 (0)")
    parser.add_argument("--top-a-power", type=float, default=2.0, help="that power (2)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where to run (cpu)")
    return parser


def main(argv: list[str]) -> None:
    """The command line: prints the prompt and what follows."""
    options = _parser().parse_args(argv)
    if options.length < 1:
        raise UserError(f"--length is {options.length}; it must be at least 1")
    import torch

    from rwkv_lab import models
    from rwkv_lab.data import from_json, unknown_in
    from rwkv_lab.inference.sampling import generate
    from rwkv_lab.runs.manifest import verify

    verify(options.run, "tokenizer.json", "model.safetensors")
    model = models.load(options.run)
    file = options.run / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"{file}: no such file; a finished run has one")
    tokenizer = from_json(file.read_text(encoding="utf-8", errors="replace"))
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device; choose cpu")
    generator = torch.Generator(options.device).manual_seed(options.seed)
    filters = {
        key: getattr(options, key) for key in ("temperature", "top_k", "top_p", "top_p_x", "top_a", "top_a_power")
    }
    model = model.to(options.device)
    if note := unknown_in(tokenizer, options.prompt):
        print(f"note: {note}", file=sys.stderr)
    ids = generate(model, tokenizer.encode(options.prompt).tolist(), options.length, generator, **filters)
    say(options.prompt + tokenizer.decode(ids))


if __name__ == "__main__":
    sys.exit(main_guard(lambda: main(sys.argv[1:])))
