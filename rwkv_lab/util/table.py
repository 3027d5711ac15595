"""Plain tables that stay readable on a narrow terminal."""

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence

GAP = "  "
LEAST_FIRST_COLUMN = 16  # characters; droppable columns go before it is narrower
NARROWEST = 8


def terminal_width() -> int | None:
    """Return the columns of the terminal on standard output, or COLUMNS; None if there is neither."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() or "COLUMNS" in os.environ else None


def table_lines(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int | None = None,
    droppable: Sequence[str] = (),
    left: int = 1,
) -> list[str]:
    """Return the lines of a table within ``width`` columns (None: as wide as it is).

    droppable   headings of columns to leave out, in this order, until the rest fits; empty columns go always
    left        leading columns that are aligned to the left; the others to the right
    The first column is folded into what remains.
    """
    shown = [i for i in range(len(header)) if i == 0 or any(row[i] for row in rows)]
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]

    def excess() -> int:
        return 0 if width is None else sum(widths[i] for i in shown) + len(GAP) * (len(shown) - 1) - width

    for name in droppable:
        # A short first column may be folded before a number is lost.
        if excess() <= max(0, widths[0] - 2 * LEAST_FIRST_COLUMN):
            break
        shown = [i for i in shown if header[i] != name]
    if excess() > 0:
        widths[0] = max(min(NARROWEST, widths[0]), widths[0] - excess())
    lines = []
    for line in (header, *rows):
        folded = textwrap.wrap(line[0], widths[0], subsequent_indent="  ", break_on_hyphens=False) or [""]
        cells = [line[i].ljust(widths[i]) if i < left else line[i].rjust(widths[i]) for i in shown[1:]]
        lines.append(GAP.join([folded[0].ljust(widths[0]), *cells]).rstrip())
        lines += folded[1:]
    return lines
