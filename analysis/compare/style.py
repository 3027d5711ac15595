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


def shortened(label: str, longest: int = 64) -> str:
    """``label`` with its middle left out where it would take a figure's room; its marker tells it apart."""
    tail = (longest - 1) // 3
    return label if len(label) <= longest else f"{label[: longest - 1 - tail]}…{label[-tail:]}"


def wrapped(label: str, width: int = 28) -> str:
    """``label`` in lines of at most ``width`` letters, broken between words."""
    lines = [""]
    for word in label.split(" "):
        word = shortened(word, width)
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
