"""``python -m analysis weights``: the figures of what a run learned about time."""

import argparse
from pathlib import Path

import numpy as np

from analysis.saving import paper, save
from analysis.weights import Layers, figures, half_life, read
from rwkv_lab.config.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("run", metavar="RUN", type=Path, help="a finished run's directory or a .safetensors file")
    parser.add_argument("--out", metavar="DIR", type=Path, help="where the figures go (default: weights/ in the run)")
    parser.add_argument("--distance", type=int, default=1024, help="farthest token of the decay curves (default 1024)")


def _print(layers: dict[str, Layers]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

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


def run(args: argparse.Namespace) -> int:
    """Writes the figures as PNG and SVG and prints where they are."""
    if args.distance < 2:
        raise UserError(f"--distance {args.distance} is too short: at least 2 tokens")
    layers = read(args.run)
    folder: Path = args.out or (args.run if args.run.is_dir() else args.run.parent) / "weights"

    _print(layers)
    with paper():
        drawn = dict.fromkeys(path.stem for path in save(figures(layers, args.distance), folder))
    print(f"figures  {folder}/: {', '.join(drawn)} (.png, .svg)")
    return 0
