"""Held-out loss by the distance of a token from the start of what the model has seen.

    rwkv-lab evaluate RUN --by-position [--ctx-len 4x] [--tokens 131072]

The text is cut into pieces of N tokens that are read afresh, in two ways: *carried*, every token sees all of its piece
before it; *window*, it sees at most ctx_len tokens, the later half of a full window being read again as a beginning,
as in ``RecurrentModel``. Up to ctx_len the two are the same.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rwkv_lab.config.errors import UserError
from rwkv_lab.data.sampling import windows
from rwkv_lab.training.evaluate import evaluating, rows_at_once, token_losses
from rwkv_lab.util.io import write_atomic

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from rwkv_lab.data.token_cache import Split
    from rwkv_lab.models.lm import LM

FILE = "by_position.csv"  # in a run's directory: distance,carried,window
ROWS = 16  # pieces read at once


class ByPosition(NamedTuple):
    """Mean loss in nats of the tokens at distance 1 to N from the start, over ``pieces`` pieces of text."""

    carried: np.ndarray  # [N]; nan past ctx_len for a model with parameters per position
    window: np.ndarray  # [N]
    pieces: int

    def spans(self) -> list[tuple[int, int, float, float]]:
        """Return (first, last, carried, window) of the distances 1, 2, 3-4, 5-8, 9-16 and so on: means over each."""
        N, found, first = len(self.window), [], 1
        while first <= N:
            last = min(N, max(1, 2 * (first - 1)))
            part = slice(first - 1, last)
            found.append((first, last, float(self.carried[part].mean()), float(self.window[part].mean())))
            first = last + 1
        return found

    def write(self, folder: Path) -> Path:
        """Write ``FILE`` into ``folder``; return its path."""
        rows = (f"{t},{a:.6f},{b:.6f}" for t, (a, b) in enumerate(zip(self.carried, self.window, strict=True), 1))
        path = folder / FILE
        write_atomic(path, "\n".join(("distance,carried,window", *rows, "")).replace("nan", "").encode())
        return path


def parse_length(text: str, ctx_len: int) -> int:
    """Return the tokens that ``text`` means: a number such as 1024, or ``4x`` the ``ctx_len`` of the run."""
    found = re.fullmatch(r"(\d+)(x?)", text)
    length = int(found[1]) * (ctx_len if found[2] else 1) if found else 0
    if length < 1:
        raise UserError(f"--ctx-len must be a number of tokens or of times ctx_len, e.g. 1024 or 4x (got {text})")
    return length


def evaluate_by_position(
    model: LM, split: Split, length: int, n_tokens: int, device: torch.device | str | None = None
) -> ByPosition:
    """Return the loss by position over the first ``n_tokens`` of ``split`` in pieces of ``length``; at least one.

    Raises UserError for a text shorter than a piece, and a model that reads in both directions.
    """
    import torch

    if model.config.bidirectional:
        raise UserError("--by-position needs a model that reads from left to right: objective=mlm reads both ways")
    if len(split) <= length:
        raise UserError(f"--ctx-len {length} is too long for the held-out text of {len(split)} tokens")
    pieces = max(1, min(n_tokens, len(split) - 1) // length)
    batch = rows_at_once(ROWS, min(length, model.config.ctx_len), model.vocab_size)
    sums = np.zeros((2, length))
    with evaluating(model):
        for first in range(0, pieces, batch):
            starts = np.arange(first, min(first + batch, pieces)) * length
            rows = torch.from_numpy(windows(split.tokens, starts, length)).to(device)
            for total, losses in zip(sums, (_carried(model, rows), _windowed(model, rows)), strict=True):
                total += losses.sum(0).cpu().numpy()
    carried, window = sums / pieces
    return ByPosition(carried, window, pieces)


def _carried(model: LM, rows: Tensor) -> Tensor:
    """Return the losses [B,N] of rows [B,N+1] with the state carried, nan where the model cannot read."""
    import torch

    N, ctx_len, state, parts = rows.shape[1] - 1, model.config.ctx_len, None, []
    readable = N if model.max_len is None else min(N, model.max_len)
    for start in range(0, readable, ctx_len):
        stop = min(start + ctx_len, readable)
        logits, state = model.advance(rows[:, start:stop], state)
        parts.append(token_losses(logits, rows[:, start + 1 : stop + 1]))
    unread = parts[0].new_full((rows.shape[0], N - readable), torch.nan)
    return torch.cat((*parts, unread), dim=1)


def _windowed(model: LM, rows: Tensor) -> Tensor:
    """Return the losses [B,N] of rows [B,N+1] in windows of ctx_len, each with the later half of the one before."""
    import torch

    N, ctx_len, parts, done = rows.shape[1] - 1, model.config.ctx_len, [], 0
    while done < N:
        start = max(0, done - ctx_len // 2)
        stop = min(start + ctx_len, N)
        losses = token_losses(model(rows[:, start:stop]), rows[:, start + 1 : stop + 1])
        parts.append(losses[:, done - start :])
        done = stop
    return torch.cat(parts, dim=1)
