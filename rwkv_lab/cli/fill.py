"""Hidden tokens of a text, filled in by a run of objective=mlm: rwkv-lab fill RUN "the [MASK] sat" (see --help)"""

import argparse
import sys
from typing import TYPE_CHECKING

from rwkv_lab.cli.arguments import Arguments
from rwkv_lab.config.errors import UserError, main_guard
from rwkv_lab.util.console import say

if TYPE_CHECKING:
    from torch import Tensor

    from rwkv_lab.models.lm import LM

MASK = "[MASK]"


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = Arguments(
        prog="rwkv-lab fill",
        description=f"Puts the most probable token in place of each {MASK}, the surest first. One {MASK} is one token "
        "of the run's tokenizer: a character for tokenizer=char, a byte for tokenizer=byte.",
    )
    parser.add_argument("run", help="complete run of objective=mlm: a path, STUDY/NAME, name or id")
    parser.add_argument("text", help=f'text with one {MASK} or more, e.g. "the {MASK} sat"')
    parser.add_argument("--top", type=int, default=5, help="most probable tokens to print for each place (5)")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Print the filled text, and for each place the most probable tokens with their probabilities."""
    options = _arguments(argv)
    if options.top < 1:
        raise UserError(f"--top must be at least 1 (got {options.top})")
    if MASK not in options.text:
        raise UserError(f'the text has no {MASK}: put it in place of a token, e.g. "the {MASK} sat"')
    import torch

    from rwkv_lab import models
    from rwkv_lab.data import from_json, unknown_in
    from rwkv_lab.models.weights import weights_file
    from rwkv_lab.runs.manifest import verify

    folder = weights_file(options.run).parent
    verify(folder, "tokenizer.json", "model.safetensors")
    model = models.load(folder)
    if not model.config.bidirectional:
        raise UserError(f"{folder} reads from left to right, so it cannot fill in: train one with objective=mlm")
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"{file} does not exist: a complete run has one")
    tokenizer = from_json(file.read_text(encoding="utf-8"))
    if note := unknown_in(tokenizer, options.text.replace(MASK, "")):
        print(f"note: {note}", file=sys.stderr)
    mask = model.vocab_size - 1
    ids: list[int] = []
    for number, part in enumerate(options.text.split(MASK)):
        ids += [mask] * (number > 0) + tokenizer.encode(part).tolist()
    filled, found = fill(model, torch.tensor(ids))
    say(tokenizer.decode(filled.tolist()))
    for place, p in found.items():
        best, tokens = p.topk(min(options.top, mask))
        shown = (f"{tokenizer.decode([int(i)])!r} {share:.3f}" for share, i in zip(best, tokens, strict=True))
        say(f"  token {place + 1}: {', '.join(shown)}")


def fill(model: "LM", ids: "Tensor") -> "tuple[Tensor, dict[int, Tensor]]":
    """Return ids [T] with every mask token filled in, and by place the probabilities [V-1] its token had.

    The surest place is filled first and read by the others. Raises UserError for a text longer than the model reads.
    """
    import torch

    mask, ids = model.vocab_size - 1, ids.clone()
    found: dict[int, Tensor] = {}
    model.eval()
    with torch.no_grad():
        while (places := (ids == mask).nonzero().flatten()).numel():
            p = torch.softmax(model(ids[None])[0, places, :mask].float(), dim=-1)  # [N,V-1]
            surest = int(p.max(dim=-1).values.argmax())
            place = int(places[surest])
            found[place], ids[place] = p[surest], p[surest].argmax()
    return ids, dict(sorted(found.items()))


if __name__ == "__main__":
    sys.exit(main_guard(lambda: main(sys.argv[1:])))
