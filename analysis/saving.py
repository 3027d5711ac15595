"""The looks of a figure for a paper, and writing figures as PNG and SVG."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rwkv_lab.config.errors import UserError

PAPER: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "rwkv_lab",
    "figure.constrained_layout.use": True,
}


def paper(**changes: Any) -> AbstractContextManager[None]:
    """Within it, matplotlib's figures look as ``PAPER`` says; ``changes`` are settings with ``_`` for the dot."""
    import matplotlib as mpl

    return mpl.rc_context(PAPER | {name.replace("_", ".", 1): value for name, value in changes.items()})


def save(figures: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes ``<name>.png`` and ``<name>.svg`` of every figure, equal bytes for equal figures; the paths.

    A Mistake where they cannot be written.
    """
    paths = []
    for name, figure in figures.items():
        for kind in ("png", "svg"):
            path = folder / f"{name}.{kind}"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                figure.savefig(path, dpi=160, metadata={"Date": None} if kind == "svg" else None)
            except OSError as error:
                raise UserError(f"{path} cannot be written: {error.strerror}") from None
            paths.append(path)
    return paths
