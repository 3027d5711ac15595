"""``python -m analysis weights RUN``: figures of the time weights that a run learned."""

import argparse
from pathlib import Path

from rwkv_lab.config.errors import UserError
from rwkv_lab.util.console import say

SUMMARY = "the time-decay and time_w curves that a run learned"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("run", metavar="RUN", type=Path, help="a finished run's directory or a .safetensors file")
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder for the figures (default: weights/ in the run)")
    parser.add_argument(
        "--distance", type=int, default=1024, help="longest distance of the decay curves (default: 1024)"
    )


def run(args: argparse.Namespace) -> int:
    """Print the half-lives and write the figures as PNG and SVG."""
    import numpy as np
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from analysis.cli import _output
    from analysis.plots.style import paper, save
    from analysis.plots.time_weights import figures, half_life, read

    if args.distance < 2:
        raise UserError(f"--distance must be at least 2 tokens (got {args.distance})")
    layers = read(args.run)
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
    with paper():
        drawn = dict.fromkeys(path.stem for path in save(figures(layers, args.distance), folder))
    say(f"figures  {folder}/: {', '.join(drawn)} (.png, .svg)")
    return 0
