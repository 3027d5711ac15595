"""What a run says to people: one line per choice, one live line while it trains, a summary at its end."""

import sys
import time
from dataclasses import dataclass, field
from typing import TextIO

from tqdm import tqdm

from rwkv_lab.config.errors import mute


def say(text: str) -> None:
    """One line on standard output, clear of a live progress line."""
    _write(text, sys.stdout)


def warn(text: str) -> None:
    """One line on standard error, clear of a live progress line."""
    _write(f"warning: {text}", sys.stderr)


def _write(text: str, stream: TextIO) -> None:
    try:
        tqdm.write(text, file=stream)
        stream.flush()
    except OSError:
        # A run outlives the terminal or the pipe that watched it.
        mute(stream)


def count(number: float) -> str:
    """16384 as 16.4K: three digits and a unit."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """75 as 1:15, 4000 as 1:06:40."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@dataclass
class Progress:
    """The live line on a terminal; elsewhere a plain line at every evaluation and at most one every ten seconds."""

    total: int  # updates
    step: int  # updates done when this process began
    out: TextIO = field(default_factory=lambda: sys.stdout)
    val_bpb: float | None = None
    _bar: tqdm | None = None
    _first: tuple[float, int, int] | None = None  # time, tokens and step after the first update here
    _printed: float = 0.0

    def start(self) -> None:
        if self.out.isatty():
            self._bar = tqdm(
                total=self.total, initial=self.step, file=self.out, leave=False, bar_format="{bar:20} {desc}"
            )

    def update(self, step: int, tokens: int, loss: float, lr: float) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = (now, tokens, step)
        began, tokens_then, step_then = self._first
        speed = (tokens - tokens_then) / max(now - began, 1e-9)
        left = (now - began) / max(step - step_then, 1) * (self.total - step)
        bpb = f"  val bpb {self.val_bpb:.3f}" if self.val_bpb is not None else ""
        text = (
            f"step {step}/{self.total}  tokens {count(tokens)}  loss {loss:.3f}{bpb}  lr {lr:.2g}  "
            f"{count(speed)} tok/s  {duration(left)} left"
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
