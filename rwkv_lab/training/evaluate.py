"""Held-out loss and bits per byte: quick and repeatable during training, complete at its end.

    rwkv-lab evaluate MODEL [--split test|val] [--text FILE] [--device auto|cpu|cuda] [--json]

All functions switch the model to eval mode temporarily, are deterministic, and respect the caller's autocast. Loss is
the mean cross-entropy in nats per token, without the penalty terms of training.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rwkv_lab.config.errors import UserError
from rwkv_lab.data.sampling import gather
from rwkv_lab.data.token_cache import Sequences, Split

if TYPE_CHECKING:
    import torch

    from rwkv_lab.config.kinds import ObjectiveConfig
    from rwkv_lab.data import Tokenizer
    from rwkv_lab.models.lm import LM
    from rwkv_lab.runs import Run

LOGITS = 1 << 27  # most logits computed at once: half a gigabyte in float32
STREAMS = 16  # most parallel streams of a text that is read with a carried state
STREAM_WINDOWS = 16  # least length of a stream, in windows of ctx_len tokens


class Evaluation(NamedTuple):
    """A held-out loss with the amount of text behind it."""

    loss: float  # nats per token
    bpb: float  # bits per byte of the evaluated text; nan if the tokens came without text
    tokens: int  # predicted tokens
    bytes: int  # bytes of text behind the predicted tokens; 0 if not known
    method: str  # how context was given, in words
    accuracy: float = math.nan  # share of the predicted tokens that were the most probable; nan if not measured


def bits_per_byte(loss: float, tokens: int, n_bytes: int) -> float:
    """Return ``loss`` in nats per token as bits per byte, for ``tokens`` tokens of ``n_bytes`` bytes; nan if 0."""
    return loss * tokens / math.log(2) / n_bytes if n_bytes else math.nan


def evaluate_fixed(
    model: LM, split: Split, ctx_len: int, n_tokens: int, batch_size: int, device: torch.device | str | None = None
) -> Evaluation:
    """Return the loss over the first ``n_tokens`` tokens of ``split``, or all, in adjacent windows of ``ctx_len``.

    At least one window is read.
    """
    length = min(ctx_len, _predicted(split))
    windows = max(1, min(n_tokens, _predicted(split)) // length)
    starts = np.arange(windows, dtype=np.int64) * length
    with evaluating(model):
        total = _window_losses(model, split, starts, length, 0, batch_size, device)
    tokens = windows * length
    return _evaluation(total, tokens, split, f"first {tokens} tokens in windows of {length}")


def evaluate_full(
    model: LM,
    split: Split,
    ctx_len: int,
    batch_size: int,
    device: torch.device | str | None = None,
    n_tokens: int | None = None,
) -> Evaluation:
    """Return the loss over every token of ``split`` but the first, or over the first ``n_tokens``.

    A model with a recurrent form carries its state through the text, others read sliding windows; at most
    ``batch_size`` rows at once.
    """
    how = evaluate_carried if model.recurrent else evaluate_sliding
    if n_tokens is None or n_tokens >= _predicted(split):
        return how(model, split, ctx_len, batch_size, device)
    found = how(model, split.first(n_tokens + 1), ctx_len, batch_size, device)
    return found._replace(method=f"first {n_tokens} tokens, {found.method}")


def evaluate_sliding(
    model: LM, split: Split, ctx_len: int, batch_size: int, device: torch.device | str | None = None
) -> Evaluation:
    """Return the loss over all of ``split`` by windows of ``ctx_len`` that overlap by half.

    Beyond the first window, every token is predicted from at least ctx_len // 2 tokens before it.
    """
    tokens = _predicted(split)
    length = min(ctx_len, tokens)
    stride = max(1, length // 2)
    starts = np.arange(0, tokens - length + 1, stride, dtype=np.int64)
    rest = tokens - length - int(starts[-1])
    with evaluating(model):
        total = _window_losses(model, split, starts[:1], length, 0, batch_size, device)
        total += _window_losses(model, split, starts[1:], length, length - stride, batch_size, device)
        if rest:
            last = np.array([tokens - length], np.int64)
            total += _window_losses(model, split, last, length, length - rest, batch_size, device)
    return _evaluation(total, tokens, split, f"sliding windows of {length}, stride {stride}")


def evaluate_carried(
    model: LM, split: Split, ctx_len: int, batch_size: int, device: torch.device | str | None = None
) -> Evaluation:
    """Return the loss over all of ``split`` with the recurrent state carried through the text.

    The text is read in parallel streams. Each but the first has a warm-up of ctx_len tokens that another stream
    predicts, so that only the start of the text is predicted from less. Raises UserError for a model without a
    recurrent form.
    """
    import torch

    from rwkv_lab.inference.recurrent import RecurrentModel

    recurrent = RecurrentModel(model)
    tokens = _predicted(split)
    streams = max(1, min(tokens // (STREAM_WINDOWS * ctx_len), STREAMS, batch_size))
    early = ctx_len if streams > 1 else 0
    step = -(-(tokens - early) // streams)
    starts = np.arange(streams, dtype=np.int64) * step
    chunk = max(1, min(ctx_len, LOGITS // (streams * model.vocab_size)))
    total, state = 0.0, None
    with evaluating(model):
        for done in range(0, step + early, chunk):
            place = done + np.arange(min(chunk, step + early - done))
            inputs = starts[:, None] + place  # [B,T]
            counted = (inputs < tokens) & ((place >= early) | (starts[:, None] == 0))
            rows = split.tokens[np.minimum(inputs, tokens - 1)].astype(np.int64)
            targets = split.tokens[np.minimum(inputs, tokens - 1) + 1].astype(np.int64)
            logits, state = recurrent.prefill(torch.from_numpy(rows).to(device), state)
            losses = token_losses(logits, torch.from_numpy(targets).to(device))
            total += float(losses[torch.from_numpy(counted).to(device)].sum())
    shown = f"; {streams} parallel streams, {early}-token warm-up each" if early else ""
    return _evaluation(total, tokens, split, f"recurrent state carried{shown}")


def _evaluation(total: float, tokens: int, split: Split, method: str) -> Evaluation:
    loss, n_bytes = total / tokens, split.bytes_between(1, tokens + 1)
    return Evaluation(loss, bits_per_byte(loss, tokens, n_bytes), tokens, n_bytes, method)


def _predicted(split: Split) -> int:
    if len(split) < 2:
        raise UserError(f"the held-out text has {len(split)} tokens: at least 2 are needed to measure a loss")
    return len(split) - 1


def _window_losses(
    model: LM,
    split: Split,
    starts: np.ndarray,
    length: int,
    skip: int,
    batch_size: int,
    device: torch.device | str | None,
) -> float:
    """Return the summed loss of each window's targets from number ``skip`` on."""
    import torch

    total = 0.0
    batch = rows_at_once(batch_size, length, model.vocab_size)
    for first in range(0, len(starts), batch):
        x, y = (
            torch.from_numpy(rows).to(device) for rows in gather(split.tokens, starts[first : first + batch], length)
        )
        total += float(token_losses(model(x)[:, skip:], y[:, skip:]).sum())
    return total


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """logits [B,T,V], targets [B,T] -> nats [B,T], in float64 so that sums over long texts keep their digits."""
    import torch.nn.functional as F

    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").double().view_as(targets)


def evaluate_sequences(
    model: LM, split: Split, ctx_len: int, n_tokens: int | None, batch_size: int, device: torch.device | str | None
) -> Evaluation:
    """Return loss and accuracy over the sequences of a weighted ``split`` that make ``n_tokens`` tokens, or over all.

    At least one sequence is read.
    """
    import torch

    count = split.whole(ctx_len)
    count = count if n_tokens is None else max(1, min(count, n_tokens // ctx_len))
    batch, parts = rows_at_once(batch_size, ctx_len, model.vocab_size), []
    with evaluating(model):
        for first in range(0, count, batch):
            found = Sequences(*split.sequences("sequential", ctx_len, 0, first, min(batch, count - first)))
            idx, share = torch.from_numpy(found.rows).to(device), torch.from_numpy(found.weights).to(device)
            start = () if found.start is None else (torch.from_numpy(found.start).to(device),)
            parts.append(weighted_sums(model(idx[:, :-1], *start), idx[:, 1:], share))
    return weighted_evaluation(parts, f"{split.counted} of {count} sequences of {ctx_len}")


def rows_at_once(batch_size: int, length: int, vocab_size: int) -> int:
    """Return how many rows of ``length`` tokens to read at once: ``batch_size``, or fewer for their logits."""
    return max(1, min(batch_size, LOGITS // (length * vocab_size)))


class Sums(NamedTuple):
    """Sums over the predicted tokens of some sequences."""

    loss: float  # nats times weight
    right: float  # weight of the tokens that were the most probable
    weight: float
    tokens: int  # of a weight above 0


def weighted_sums(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> Sums:
    """Return the sums of logits [B,T,V] against targets [B,T], each token by its weight [B,T]."""
    weights = weights.double()
    right = logits.argmax(-1) == targets
    total = float((token_losses(logits, targets) * weights).sum())
    return Sums(total, float(weights[right].sum()), float(weights.sum()), int((weights > 0).sum()))


def weighted_evaluation(parts: Iterable[Sums], method: str) -> Evaluation:
    """Return the weighted mean loss and accuracy of all ``parts``; bits per byte are not defined for them."""
    loss, right, weight, tokens = (sum(column) for column in zip(*parts, strict=True))
    return Evaluation(loss / weight, math.nan, int(tokens), 0, method, right / weight)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Context in which ``model`` is in eval mode and no gradient is kept."""
    import torch

    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def evaluate_text(
    model: LM, tokenizer: Tokenizer, file: Path, device: str = "auto", precision: str | None = None
) -> Evaluation:
    """Return the full evaluation of any model on the whole text of ``file``; UserError if it cannot be read."""
    from rwkv_lab.inference.recurrent import chosen_device, placed

    split = text_split(tokenizer, file)
    with placed(model, device, precision) as ready:
        return evaluate_full(ready, split, model.config.ctx_len, STREAMS, chosen_device(device))


def text_split(tokenizer: Tokenizer, file: Path) -> Split:
    """Return the tokens of the whole text of ``file``; UserError if it cannot be read."""
    from rwkv_lab.data.sources import Segment

    try:
        segment = Segment(file, 0, file.stat().st_size, "--text", "")
        blocks = list(tokenizer.stream([segment]))
    except OSError as error:
        raise UserError(f"--text {file} cannot be read: {error.strerror}") from None
    tokens = np.concatenate([np.zeros(0, np.uint32), *(ids for ids, _ in blocks)]).astype(np.uint32)
    sizes = [np.ones(len(ids), np.uint8) if lengths is None else lengths for ids, lengths in blocks]
    return Split(tokens, np.concatenate([np.zeros(0, np.uint8), *sizes]))


class Measured(NamedTuple):
    """A complete run, opened to be measured on its own text."""

    run: Run
    objective: ObjectiveConfig
    split: Split
    ctx_len: int
    backend: str  # of its scan
    precision: str  # of its matrix products


def evaluate_run(path: str, split_name: str, device: str, precision: str | None = None) -> Evaluation:
    """Return the full evaluation of a complete run on its validation or test text, as the run itself computed it.

    ``precision`` fp32 or bf16 in place of the run's own. Errors as ``open_run``.
    """
    from rwkv_lab import models
    from rwkv_lab.inference.recurrent import chosen_device, placed

    found = open_run(path, split_name)
    with placed(models.load(found.run.path, found.backend), device, precision or found.precision) as model:
        return found.objective.evaluate_final(model, found.split, found.ctx_len, STREAMS, chosen_device(device), None)


def open_run(path: str, split_name: str) -> Measured:
    """Return a complete run with its validation or test text.

    Raises UserError if the run has no weights yet, its corpus no such split, or one of its files is damaged.
    """
    from rwkv_lab import runs
    from rwkv_lab.config import registry
    from rwkv_lab.config.fields import instance

    run = runs.load(path)
    split, config = run_split(run, split_name), run.config
    stored = config.get("objective") or {"name": "lm"}  # earlier runs had no choice
    objective = instance(registry.get("objective", str(stored["name"])), stored)
    try:
        ctx_len = int(config["model"]["ctx_len"])
        backend, own_precision = run.manifest["resolved"]["ops_backend"], run.manifest["resolved"]["precision"]
    except (KeyError, TypeError, ValueError) as error:
        raise _incomplete(run, error) from None
    return Measured(run, objective, split, ctx_len, backend, own_precision)


def run_split(run: Run, name: str) -> Split:
    """Return the validation or test text of a complete run.

    Raises UserError if it has no weights yet, its corpus no such split, or one of its files is damaged.
    """
    from rwkv_lab import data
    from rwkv_lab.runs import manifest

    manifest.verify(run.path, "config.yaml", "tokenizer.json", "model.safetensors")
    config = run.config
    try:
        sha256 = run.manifest["data"]["sha256"]
        tokenizer = data.from_json((run.path / "tokenizer.json").read_text(encoding="utf-8", errors="replace"))
    except (KeyError, TypeError, ValueError) as error:
        raise _incomplete(run, error) from None
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None
    corpus = data.load(*data.stored_configs(config), tokenizer)
    if corpus.sha256 != sha256:
        raise UserError(f"the data of {run.name} changed since it was trained: its files have another sha256 now")
    split = corpus.test if name == "test" else corpus.val
    if split is None:
        raise UserError(f"data={config['data']['name']} of {run.name} has no {name} text: data.split gives it none")
    return split


def _incomplete(run: Run, error: Exception) -> UserError:
    return UserError(f"{run.path} lacks {error} in its run.json or config.yaml: it cannot be evaluated")
