"""Held-out loss and bits per byte: quick and repeatable during training, complete at its end.

    python -m rwkv_lab.evaluate RUN --split test

Both functions put the model in evaluation mode for their time, draw nothing at random and leave precision to the
caller's autocast. Loss is the mean cross-entropy in nats per token, without the penalty terms of training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rwkv_lab.data.sampling import gather
from rwkv_lab.data.store import Split
from rwkv_lab.errors import Mistake

if TYPE_CHECKING:
    import torch


class Evaluation(NamedTuple):
    """What was measured, over how much text and how."""

    # nats per token
    loss: float
    # bits per byte of the evaluated text; nan when the tokens came without text
    bpb: float
    # predicted tokens
    tokens: int
    # bytes of text behind the predicted tokens; 0 when not known
    bytes: int
    # how context was given, in words
    method: str


def bits_per_byte(loss: float, tokens: int, n_bytes: int) -> float:
    """``loss`` nats per token over ``tokens`` tokens that stand for ``n_bytes`` bytes of text; nan when that is 0."""
    return loss * tokens / math.log(2) / n_bytes if n_bytes else math.nan


def evaluate_fixed(
    model: torch.nn.Module,
    split: Split,
    ctx_len: int,
    n_tokens: int,
    batch_size: int,
    device: torch.device | str | None = None,
) -> Evaluation:
    """Loss over the first ``n_tokens`` tokens of ``split`` (all of it when it is shorter), in windows of ``ctx_len``
    that follow each other without overlap: the same text every time. At least one window is read."""
    length = min(ctx_len, _predicted(split))
    windows = max(1, min(n_tokens, _predicted(split)) // length)
    starts = np.arange(windows, dtype=np.int64) * length
    with _evaluating(model):
        total = sum(_window_losses(model, split, starts, length, 0, batch_size, device))
    tokens = windows * length
    n_bytes = split.bytes_between(1, tokens + 1)
    method = f"first {tokens} tokens in windows of {length}"
    return Evaluation(total / tokens, bits_per_byte(total / tokens, tokens, n_bytes), tokens, n_bytes, method)


def evaluate_sliding(
    model: torch.nn.Module,
    split: Split,
    ctx_len: int,
    batch_size: int,
    device: torch.device | str | None = None,
) -> Evaluation:
    """Loss over every token of ``split`` but the first, by windows of ``ctx_len`` that overlap by half: beyond the
    first window every token is predicted from at least ctx_len // 2 tokens before it."""
    tokens = _predicted(split)
    length = min(ctx_len, tokens)
    stride = max(1, length // 2)
    starts = np.arange(0, tokens - length + 1, stride, dtype=np.int64)
    rest = tokens - length - int(starts[-1])
    with _evaluating(model):
        total = sum(_window_losses(model, split, starts[:1], length, 0, batch_size, device))
        total += sum(_window_losses(model, split, starts[1:], length, length - stride, batch_size, device))
        if rest:
            last = np.array([tokens - length], np.int64)
            total += sum(_window_losses(model, split, last, length, length - rest, batch_size, device))
    n_bytes = split.bytes_between(1, tokens + 1)
    method = f"sliding windows of {length}, stride {stride}"
    return Evaluation(total / tokens, bits_per_byte(total / tokens, tokens, n_bytes), tokens, n_bytes, method)


def _predicted(split: Split) -> int:
    if len(split) < 2:
        raise Mistake(f"the held-out text has {len(split)} tokens: at least 2 are needed to measure a loss")
    return len(split) - 1


def _window_losses(
    model: Callable[[torch.Tensor], torch.Tensor],
    split: Split,
    starts: np.ndarray,
    length: int,
    skip: int,
    batch_size: int,
    device: torch.device | str | None,
) -> Iterator[float]:
    """Summed loss of the targets ``skip`` and later of each window, a number per batch of windows."""
    import torch

    for first in range(0, len(starts), batch_size):
        x, y = (
            torch.from_numpy(rows).to(device)
            for rows in gather(split.tokens, starts[first : first + batch_size], length)
        )
        logits = model(x)[:, skip:]  # [B,T-skip,V]
        yield _summed(logits, y[:, skip:])


def _summed(logits: torch.Tensor, targets: torch.Tensor) -> float:
    import torch.nn.functional as F

    flat = logits.flatten(0, 1).float()
    return float(F.cross_entropy(flat, targets.flatten(), reduction="none").double().sum())


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    import torch

    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
