"""The one style of every figure, and the one way to write them as PNG, SVG and PDF.

Colours are distinct for every kind of colour vision; series also differ in marker and dash.
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from rwkv_lab.config.errors import UserError
from rwkv_lab.util.console import harmless
from rwkv_lab.util.io import replacing

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "rwkv_lab",
    "figure.constrained_layout.use": True,
    "text.parse_math": False,
}


def paper() -> AbstractContextManager[None]:
    """Context manager: matplotlib figures made and saved inside have the style."""
    import matplotlib as mpl

    return mpl.rc_context(STYLE)


KINDS = ("png", "svg")


def save(figures: Mapping[str, Any], folder: Path, kinds: Sequence[str] = KINDS) -> list[Path]:
    """Write ``<name>.<kind>`` of every figure in every kind, png, svg or pdf; return the paths.

    Equal figures give equal bytes. UserError for a file that cannot be written.
    """
    with warnings.catch_warnings():
        # A name may have characters that the font lacks; a box stands for them.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        return _save(figures, folder, kinds)


def _save(figures: Mapping[str, Any], folder: Path, kinds: Sequence[str]) -> list[Path]:
    from matplotlib.text import Text

    paths = []
    for name, figure in figures.items():
        for text in figure.findobj(Text):
            if (shown := harmless(text.get_text())) != text.get_text():
                text.set_text(shown)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for kind in kinds:
            path = folder / f"{name}.{kind}"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with replacing(path) as partial:
                    figure.savefig(partial, format=kind, dpi=160, metadata=_UNDATED.get(kind))
            except OSError as error:
                raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
            paths.append(path)
    return paths


def plain_numbers(*axes: Any) -> None:
    """Label logarithmic axes, e.g. ``ax.xaxis``, with numbers as they are written in a text: 128, not a power."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    for axis in axes:
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())


# Okabe and Ito's palette for every kind of colour vision, without its yellow, which is lost on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#333333", "#E69F00", "#56B4E9")
# (Bokeh's name, matplotlib's name, the character in the page's legend)
MARKERS = (
    ("circle", "o", "●"),
    ("square", "s", "■"),
    ("triangle", "^", "▲"),
    ("diamond", "D", "◆"),
    ("inverted_triangle", "v", "▼"),
    ("hex", "h", "⬢"),
    ("star", "*", "★"),
)
# (Bokeh's dash, matplotlib's)
DASHES: tuple[tuple[Any, Any], ...] = (("solid", "-"), ("dashed", "--"), ("dotdash", "-."))
# Of a grid: the second number by its size, from solid to short.
GRID_DASHES: tuple[tuple[Any, Any], ...] = (
    ("solid", "-"),
    *((list(lengths), (0, lengths)) for lengths in ((10, 3), (5, 2), (7, 2, 2, 2), (7, 2, 2, 2, 2, 2), (2, 1))),
)
# What keeps the time out of a file.
_UNDATED: dict[str, dict[str, None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


class Style(NamedTuple):
    """Looks of one series, for Bokeh and matplotlib."""

    colour: str
    bokeh_marker: str
    mpl_marker: str
    glyph: str
    bokeh_dash: Any
    mpl_dash: Any


def style(index: int) -> Style:
    """Return the looks of the series number ``index``: no two alike among the first 49."""
    lap, place = divmod(index, len(COLOURS))
    return Style(COLOURS[place], *MARKERS[(place + lap) % len(MARKERS)], *DASHES[lap % len(DASHES)])


def grid_style(row: int, column: int) -> Style | None:
    """Return the looks in a grid: the row is the colour, the column dash and marker; None for more than there are."""
    if row >= len(COLOURS) or column >= len(GRID_DASHES):
        return None
    return Style(COLOURS[row], *MARKERS[column], *GRID_DASHES[column])


def shortened(label: str, longest: int = 64) -> str:
    """Return ``label`` with its middle left out if it is longer than ``longest``."""
    tail = (longest - 1) // 3
    return label if len(label) <= longest else f"{label[: longest - 1 - tail]}…{label[-tail:]}"


def wrapped(label: str, width: int = 28) -> str:
    """Return ``label`` in lines of at most ``width`` letters, broken between words."""
    lines = [""]
    for word in label.split(" "):
        word = shortened(word, width)
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
