"""Text from a trained model: rwkv-lab generate MODEL "prompt" (see --help)"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rwkv_lab.cli.arguments import Arguments, add_model_options
from rwkv_lab.config.errors import UserError, main_guard
from rwkv_lab.inference.recurrent import chosen_device, placed
from rwkv_lab.inference.sampling import streamed
from rwkv_lab.util.console import harmless, say, showable, warn

if TYPE_CHECKING:
    from torch import Generator

    from rwkv_lab.data import Tokenizer
    from rwkv_lab.data.tokenizers.pixels import PixelTokenizer
    from rwkv_lab.inference.sampling import Session
    from rwkv_lab.models.lm import LM


def _parser() -> argparse.ArgumentParser:
    parser = Arguments(
        prog="rwkv-lab generate",
        description="Continues a text with a model: token by token with a recurrent state for rwkv_v2, rwkv_v3 and "
        "rwkv_v4, with a window of ctx_len tokens for the others.",
    )
    add_model_options(parser)
    parser.add_argument("prompt", nargs="?", help="text to continue, - for standard input (a line break)")
    parser.add_argument("--chat", action="store_true", help="answer each line of standard input with a line")
    parser.add_argument("--length", type=int, default=500, help="tokens to generate, at most a line in a chat (500)")
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="where a run of data=images draws the prompt")
    parser.add_argument("--image", type=Path, metavar="FILE", help="complete the lower half of this picture instead")
    parser.add_argument("--seed", type=int, default=1, help="of the random draws (1)")
    parser.add_argument("--temperature", type=float, default=1.0, help="above 1 wilder, below tamer, 0 greedy (1)")
    parser.add_argument("--top-k", type=int, default=0, help="keep the k most probable tokens; 0 keeps all (0)")
    parser.add_argument("--top-p", type=float, default=1.0, help="keep the most probable tokens up to this sum (1)")
    parser.add_argument("--top-p-x", type=float, default=0.0, help="beside those, all above this; try 0.01 (0)")
    parser.add_argument("--top-a", type=float, default=0.0, help="drop below top_a * max(p)^power; try 0.2 (0)")
    parser.add_argument("--top-a-power", type=float, default=2.0, help="that power (2)")
    return parser


def main(argv: list[str]) -> None:
    """The command line: prints the prompt and what follows, each token as it is drawn."""
    options = _parser().parse_args(argv)
    if options.length < 1:
        raise UserError(f"--length is {options.length}; it must be at least 1")
    if options.chat and options.prompt == "-":
        raise UserError("--chat reads its lines from standard input, and so does the prompt -: give one of them")
    if options.top_p_x and options.top_p >= 1:
        warn(f"--top-p-x {options.top_p_x} has no effect without --top-p, which keeps all tokens: try --top-p 0.8")
    import torch

    from rwkv_lab.data.tokenizers.pixels import PixelTokenizer
    from rwkv_lab.inference.sampling import Session
    from rwkv_lab.models.opening import with_tokenizer

    model, tokenizer = with_tokenizer(options.model, options.tokenizer)
    generator = torch.Generator(chosen_device(options.device)).manual_seed(options.seed)
    filters = {
        key: getattr(options, key) for key in ("temperature", "top_k", "top_p", "top_p_x", "top_a", "top_a_power")
    }
    with placed(model, options.device, options.precision) as ready:
        if isinstance(tokenizer, PixelTokenizer):
            return _draw(ready, tokenizer, generator, options)
        if options.out or options.image:
            raise UserError(f"--out and --image are for runs of data=images: {options.model} was trained on text")
        session = Session(ready, generator, tokenizer.vocab_size, options.precision, **filters)
        if options.chat:
            _chat(session, tokenizer, options)
        else:
            _continue(session, tokenizer, options)


def _draw(model: "LM", tokenizer: "PixelTokenizer", generator: "Generator", options: argparse.Namespace) -> None:
    """Write a picture of the prompt, or one with its lower half drawn."""
    from rwkv_lab.data.pictures import as_tokens, grid, unpacked
    from rwkv_lab.inference.sampling import generate_rows
    from rwkv_lab.util.io import write_atomic

    if options.out is None:
        raise UserError("this run draws pictures: give the file to write with --out FILE.png")
    if options.image and options.prompt:
        raise UserError("--image completes a picture and the prompt asks for a new one: give one of them")
    S, prompt, known = tokenizer.size, tokenizer.encode(options.prompt or ""), 0
    if options.image:
        known = S * S // 2
        prompt = np.concatenate((prompt, as_tokens(options.image, S, tokenizer.levels)[:known]))
    drawn = generate_rows(model, prompt[None], S * S - known, tokenizer.pixels, generator)[0]
    tokens = np.concatenate((prompt[len(prompt) - known :], drawn)) if known else drawn
    write_atomic(options.out, grid([unpacked(tokens.reshape(1, S, S), tokenizer.levels)]))
    say(f"drawn    {options.out}")


def _continue(session: "Session", tokenizer: "Tokenizer", options: argparse.Namespace) -> None:
    prompt = sys.stdin.read() if options.prompt == "-" else "\n" if options.prompt is None else options.prompt
    ids = _read(session, tokenizer, prompt)
    if not ids:
        raise UserError("the prompt is empty: give at least one token")
    _show(prompt)
    for piece in streamed(tokenizer, ids, session.draw(options.length)):
        _show(piece)
    _show("\n")


def _chat(session: "Session", tokenizer: "Tokenizer", options: argparse.Namespace) -> None:
    """Answer each line of standard input; the state goes on from line to line."""
    if options.prompt:
        _read(session, tokenizer, options.prompt)
    for line in sys.stdin:
        ids = _read(session, tokenizer, line.rstrip("\n") + "\n")
        for piece in _first_line(streamed(tokenizer, ids, session.draw(options.length))):
            _show(piece)
        _show("\n")


def _first_line(pieces: Iterator[str]) -> Iterator[str]:
    """Yield ``pieces`` up to the first line break."""
    for piece in pieces:
        before, end, _ = piece.partition("\n")
        yield before
        if end:
            return


def _read(session: "Session", tokenizer: "Tokenizer", text: str) -> list[int]:
    from rwkv_lab.data import unknown_in

    if note := unknown_in(tokenizer, text):
        print(f"note: {note}", file=sys.stderr)
    ids: list[int] = tokenizer.encode(text).tolist()
    session.read(ids)
    return ids


def _show(text: str) -> None:
    sys.stdout.write(showable(harmless(text), sys.stdout))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main_guard(lambda: main(sys.argv[1:])))
