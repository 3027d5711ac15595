"""Multi-query associative recall (Arora et al. 2023, Zoology, arXiv 2312.04927): values looked up by their keys."""

from dataclasses import dataclass

import numpy as np

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.fields import setting
from rwkv_lab.config.registry import register
from rwkv_lab.data.tasks import Made, TaskConfig


@register("data", "recall")
@dataclass
class RecallConfig(TaskConfig):
    """Associative recall: pairs of key and value, then each key again; accuracy of the values, no bits per byte.

    k_1 v_1 ... k_n v_n, then each k_i v_i once more in random order, with blanks (id 0) between. Keys of a sequence
    differ, values may not. The places of the queries are uniform, where the paper prefers near ones.
    """

    name: str = "recall"
    pairs: int = setting(8, low=1)  # pairs n of a sequence
    pairs_low: int | None = setting(None, low=1)  # fewest pairs, the number being drawn for each sequence; unset: pairs
    vocab: int = setting(128, low=3)  # token ids: a blank, keys and equally many values

    @property
    def keys(self) -> int:
        """Number of keys, which are the ids from 1 on."""
        return (self.vocab - 1) // 2

    @property
    def ids(self) -> int:
        return self.vocab

    @property
    def shortest(self) -> int:
        return 4 * self.pairs - 1

    @property
    def slots(self) -> int:
        """Places for a query."""
        return (self.T + 1 - 2 * self.pairs) // 2

    @property
    def draws(self) -> int:
        return 1 + self.keys + self.pairs + self.slots

    def check(self) -> None:
        super().check()
        if self.pairs > self.keys:
            raise UserError(
                f"data.vocab={self.vocab} has {self.keys} keys, too few for data.pairs={self.pairs}: "
                f"at least data.vocab={2 * self.pairs + 1}"
            )
        if self.pairs_low is not None and self.pairs_low > self.pairs:
            raise UserError(f"data.pairs_low={self.pairs_low} must be at most data.pairs={self.pairs}")

    def make(self, numbers: np.ndarray) -> Made:
        B, n, T = len(numbers), self.pairs, self.T
        low = self.pairs if self.pairs_low is None else self.pairs_low
        size, key, value, place = np.split(numbers, np.cumsum([1, self.keys, n]), axis=1)
        keys = 1 + np.argsort(key, axis=1)[:, :n]  # [B,n]
        values = 1 + self.keys + (value % np.uint64(self.keys)).astype(np.int64)
        starts = 2 * n + 2 * np.argsort(place, axis=1)[:, :n]  # of the queries
        present = np.arange(n) < low + (size % np.uint64(n - low + 1)).astype(np.int64)  # [B,n]
        rows, weights = np.zeros((B, T + 1), np.int64), np.zeros((B, T), np.float32)
        rows[:, 0 : 2 * n : 2], rows[:, 1 : 2 * n : 2] = keys * present, values * present
        np.put_along_axis(rows, starts, keys * present, axis=1)
        np.put_along_axis(rows, starts + 1, values * present, axis=1)
        np.put_along_axis(weights, starts, (present / present.sum(1, keepdims=True)).astype(np.float32), axis=1)
        return Made(rows, weights)
