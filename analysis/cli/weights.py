"""``python -m analysis weights RUN``: figures of the weights of time that a run learned, and of what it copies."""

import argparse
from pathlib import Path
from typing import Any

from rwkv_lab.config.errors import UserError
from rwkv_lab.util.console import say

STRONGEST = 8  # scores printed of each kind
SUMMARY = "the curves of time and shares of the token shift that a run learned, and what its head-QK copies"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("run", metavar="RUN", type=Path, help="a finished run's directory or a .safetensors file")
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder for the figures (default: weights/ in the run)")
    parser.add_argument(
        "--distance", type=int, default=1024, help="longest distance of the decay curves (default: 1024)"
    )

    parser.add_argument(
        "--text",
        nargs="?",
        const="",
        help="draw what head-QK copies and avoids of this text too; without a text: of the first held-out sequence of "
        "a task, such as data=names",
    )


def run(args: argparse.Namespace) -> int:
    """Print the half-lives and write the figures as PNG and SVG."""
    import numpy as np
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from analysis.cli import _output
    from analysis.plots.style import paper, save
    from analysis.plots.time_weights import figures, half_life, read, shares

    if args.distance < 2:
        raise UserError(f"--distance must be at least 2 tokens (got {args.distance})")
    layers = read(args.run) if args.text is None else read(args.run, any_weights=True)
    folder = _output.folder_for_results(args.out or (args.run if args.run.is_dir() else args.run.parent) / "weights")
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("layer", "channels", "shortest", "median", "longest"):
        table.add_column(name, justify="right")
    for layer, values in layers.get("time_decay", {}).items():
        life = half_life(values)
        numbers = (f"{value:.4g}" for value in (life.min(), np.median(life), life.max()))
        table.add_row(str(layer), str(len(life)), *numbers)
    if table.row_count:
        print("half-life of the channels, in tokens")
        Console().print(table)
    learned = shares(layers)
    if learned:
        print("share of the previous token in the learned token shift, mean over channels by layer")
    for (side, role), by_layer in learned.items():
        print(f"  {side}.{role}  {'  '.join(f'{values.mean():.3f}' for values in by_layer.values())}")
    made = _copying(args) if args.text is not None else {}
    with paper():
        drawn = dict.fromkeys(path.stem for path in save(figures(layers, args.distance) | made, folder))
    say(f"figures  {folder}/: {', '.join(drawn)} (.png, .svg)")
    return 0


def _copying(args: argparse.Namespace) -> dict[str, Any]:
    """Print what head-QK copies and avoids most, and return its figure."""
    from analysis.plots.style import paper
    from analysis.plots.time_weights import copying_figure
    from rwkv_lab.inference.copying import copied

    found = copied(args.run, args.text or None)
    print("added by head-QK to the logit of an earlier token, most copied first, most avoided last")
    for t, u, score in found.strongest(STRONGEST):
        print(f"  {score:+8.3f}  after {found.tokens[t]!r} (token {t + 1}): {found.tokens[u]!r} (token {u + 1})")
    right, wrong = found.hits()
    print(f"mean over earlier tokens that do come next {right:+.4f}, over all others {wrong:+.4f}")
    with paper():
        return {"head_qk": copying_figure(found.tokens, found.scores)}
