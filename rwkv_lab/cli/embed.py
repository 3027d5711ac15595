"""Sentence embeddings of lines of text: rwkv-lab embed MODEL lines.txt --out x.npy (see --help)"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rwkv_lab.cli.arguments import Arguments, add_model_options
from rwkv_lab.config.errors import UserError, main_guard

if TYPE_CHECKING:
    import numpy as np

    from rwkv_lab.data import Tokenizer
    from rwkv_lab.inference.recurrent import RecurrentModel

VECTORS = {"x": ("x",), "ab": ("a_over_b",), "both": ("x", "a_over_b")}
BATCH = 64  # lines of one length read at once


def _parser() -> argparse.ArgumentParser:
    parser = Arguments(
        prog="rwkv-lab embed",
        description="Writes one row per line of a text: what the WKV mixes of a recurrent model remember of it. x is "
        "the last input of a mix, a/b the average of the values it has seen.",
    )
    add_model_options(parser)
    parser.add_argument("lines", type=Path, help="UTF-8 text, one sentence a line")
    parser.add_argument("--out", type=Path, required=True, help="float32 array to write [lines, layers * vectors * C]")
    parser.add_argument("--vectors", default="both", choices=VECTORS, help="x, a/b, or one after the other (both)")
    parser.add_argument("--layers", default="all", help="all, last, or numbers such as 0,3 (all)")
    parser.add_argument("--normalise", action="store_true", help="scale every vector of a layer to length 1")
    return parser


def main(argv: list[str]) -> None:
    """The command line."""
    options = _parser().parse_args(argv)
    if options.out.suffix != ".npy":
        raise UserError(f"--out {options.out} must end in .npy")
    if not options.out.parent.is_dir():
        raise UserError(f"--out {options.out}: there is no folder {options.out.parent} to write to")
    try:
        lines = options.lines.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{options.lines} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not lines:
        raise UserError(f"{options.lines} has no line")
    import io

    import numpy as np

    from rwkv_lab.inference.recurrent import RecurrentModel, placed
    from rwkv_lab.models.opening import with_tokenizer
    from rwkv_lab.util.io import write_atomic

    model, tokenizer = with_tokenizer(options.model, options.tokenizer)
    with placed(model, options.device, options.precision) as ready:
        vectors = embedded(RecurrentModel(ready), tokenizer, lines, VECTORS[options.vectors])
    vectors = vectors[:, _chosen(options.layers, vectors.shape[1])]
    if options.normalise:
        vectors /= np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    content = io.BytesIO()
    np.save(content, vectors.reshape(len(lines), -1))
    try:
        write_atomic(options.out, content.getvalue())
    except OSError as error:
        raise UserError(f"--out {options.out} cannot be written: {error.strerror}") from None
    print(f"wrote {options.out}: {len(lines)} lines, {vectors[0].size} numbers each")


def embedded(
    recurrent: "RecurrentModel", tokenizer: "Tokenizer", lines: list[str], parts: tuple[str, ...]
) -> "np.ndarray":
    """Return the embedding of each line, float32 [N,L,P,C], for the L layers with a WKV mix and these P ``parts``.

    parts are fields of ``Embedding``. An empty line is read as the tokenizer's start. Raises UserError for a model
    without a WKV mix.
    """
    import numpy as np
    import torch

    ids = [tokenizer.encode(line).tolist() or tokenizer.start() for line in lines]
    device = recurrent.model.emb.weight.device
    rows: list[np.ndarray] = [np.empty(0)] * len(lines)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    while order:
        length = len(ids[order[0]])
        batch = [i for i in order[:BATCH] if len(ids[i]) == length]
        order = order[len(batch) :]
        found = recurrent.embed(torch.tensor([ids[i] for i in batch], device=device))
        stacked = torch.stack([getattr(found, part) for part in parts], dim=2)  # [B,L,P,C]
        for i, row in zip(batch, stacked.float().cpu().numpy(), strict=True):
            rows[i] = row
    return np.stack(rows)


def _chosen(text: str, count: int) -> list[int]:
    """Return the indices that ``--layers`` names among ``count`` layers with a WKV mix."""
    if text in ("all", "last"):
        return list(range(count)) if text == "all" else [count - 1]
    try:
        chosen = [int(word) for word in text.split(",")]
    except ValueError:
        chosen = [-1]
    if not all(0 <= layer < count for layer in chosen):
        raise UserError(f"--layers {text} must be all, last, or numbers from 0 to {count - 1} such as 0,{count - 1}")
    return chosen


if __name__ == "__main__":
    sys.exit(main_guard(lambda: main(sys.argv[1:])))
