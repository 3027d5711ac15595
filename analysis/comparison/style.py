"""How a group looks in every figure: colour-blind-safe colours, and a marker that tells it apart in grey print."""

from typing import NamedTuple

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
DASHES = (("solid", "-"), ("dashed", "--"), ("dotdash", "-."))


class Style(NamedTuple):
    """Looks of one group."""

    colour: str
    bokeh_marker: str
    mpl_marker: str
    glyph: str
    bokeh_dash: str
    mpl_dash: str


def style(index: int) -> Style:
    """Looks of the group number ``index``: no two alike among the first 49."""
    lap, place = divmod(index, len(COLOURS))
    return Style(COLOURS[place], *MARKERS[(place + lap) % len(MARKERS)], *DASHES[lap % len(DASHES)])
