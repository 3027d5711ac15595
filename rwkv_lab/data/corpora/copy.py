"""Copying: a random string, a gap, and the string again (Hochreiter, Schmidhuber 1997; selective: Gu, Dao 2023)."""

from dataclasses import dataclass

import numpy as np

from rwkv_lab.config.fields import setting
from rwkv_lab.config.registry import register
from rwkv_lab.data.tasks import Made, TaskConfig

BLANK, GO, SYMBOLS = 0, 1, 2  # SYMBOLS: first id of a symbol


@register("data", "copy")
@dataclass
class CopyConfig(TaskConfig):
    """Copying: a random string, blanks, a sign, the string again; accuracy of the copy, no bits per byte."""

    name: str = "copy"
    string: int = setting(8, low=1)  # symbols of the string
    vocab: int = setting(32, low=3)  # token ids: a blank, the sign, symbols
    selective: bool = False  # the symbols stand at random places among the blanks

    @property
    def ids(self) -> int:
        return self.vocab

    @property
    def shortest(self) -> int:
        return 2 * self.string

    @property
    def gap(self) -> int:
        """Tokens before the sign: symbols and blanks."""
        return self.T - self.string

    @property
    def draws(self) -> int:
        return self.string + self.gap

    def make(self, numbers: np.ndarray) -> Made:
        B, n, T = len(numbers), self.string, self.T
        symbol, place = np.split(numbers, [n], axis=1)
        string = SYMBOLS + (symbol % np.uint64(self.vocab - SYMBOLS)).astype(np.int64)  # [B,n]
        places = np.sort(np.argsort(place, axis=1)[:, :n]) if self.selective else np.broadcast_to(np.arange(n), (B, n))
        rows, weights = np.full((B, T + 1), BLANK, np.int64), np.zeros((B, T), np.float32)
        np.put_along_axis(rows, places, string, axis=1)
        rows[:, self.gap] = GO
        rows[:, self.gap + 1 :], weights[:, self.gap :] = string, 1.0
        return Made(rows, weights)
