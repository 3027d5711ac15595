"""Printing for people: lines that any terminal can show, and one live line while a run trains."""

import os
import shutil
import sys
import textwrap
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from tqdm import tqdm

from rwkv_lab.util.units import count, duration

__all__ = ["Progress", "count", "duration", "harmless", "mute", "say", "showable", "warn"]


def say(text: str) -> None:
    """Print one line on standard output, clear of a live progress line."""
    _write(text, sys.stdout)


def warn(text: str) -> None:
    """Print one line on standard error, clear of a live progress line."""
    _write(f"warning: {text}", sys.stderr)


def harmless(text: str) -> str:
    r"""Return ``text`` with every control character but line break and tab as an escape such as ``\x1b``.

    A sample, a name or a data file can then not steer the terminal; neither can text that runs right to left.
    """
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    steers = unicodedata.category(character) in ("Cc", "Cs") or unicodedata.bidirectional(character) in _BIDI
    return f"{character!a}"[1:-1] if steers and character not in "\n\t" else character


_BIDI = ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI")


def showable(text: str, stream: TextIO) -> str:
    """Return ``text`` with ``?`` for every character that the encoding of ``stream`` lacks."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def _write(text: str, stream: TextIO) -> None:
    try:
        tqdm.write(showable(harmless(text), stream), file=stream)
        stream.flush()
    except OSError:
        # A run outlives the terminal or the pipe that watched it.
        mute(stream)


def mute(stream: TextIO) -> None:
    """Redirect ``stream`` to nowhere, so that a closed pipe or terminal raises no further errors."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@dataclass
class Progress:
    """The live line on a terminal; elsewhere a plain line at every evaluation and at most one every ten seconds."""

    total: int  # updates
    step: int  # updates done when this process began
    out: TextIO = field(default_factory=lambda: sys.stdout)
    val_bpb: float | None = None
    note: Callable[[int], str] = lambda step: ""  # what else to show after an update
    mfu: float | None = None  # share of the devices' peak FLOPs
    _bar: tqdm | None = None
    _first: tuple[float, int, int] | None = None  # time, tokens and step after the first update here
    _printed: float = 0.0

    def start(self) -> None:
        if self.out.isatty():
            self._bar = tqdm(
                total=self.total,
                initial=self.step,
                file=self.out,
                leave=False,
                bar_format="{bar:20} {desc}",
                ascii=showable("█", self.out) != "█",
            )

    def update(self, step: int, tokens: int, loss: float, lr: float) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = (now, tokens, step)
        began, tokens_then, step_then = self._first
        speed = (tokens - tokens_then) / max(now - began, 1e-9)
        left = (now - began) / max(step - step_then, 1) * (self.total - step)
        bpb = f"  val bpb {self.val_bpb:.3f}" if self.val_bpb is not None else ""
        mfu = f"  mfu {self.mfu:.0%}" if self.mfu is not None else ""
        text = (
            f"step {step}/{self.total}  tokens {count(tokens)}  loss {loss:.3f}{bpb}  lr {lr:.2g}  "
            f"{count(speed)} tok/s{mfu}  {duration(left)} left{self.note(step)}"
        )
        if self._bar is not None:
            self._bar.n = step
            self._bar.set_description_str(text)
        elif now - self._printed >= 10 or step == self.total:
            self._printed = now
            _write(text, self.out)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


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
