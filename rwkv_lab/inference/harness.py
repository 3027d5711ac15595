"""A model for lm-evaluation-harness (Gao et al. 2021): log-likelihoods of texts, and greedy continuations.

Requests are read in batches of one length, and a context once for all its continuations: they go on from its state.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from lm_eval.api.model import LM as Evaluated
from torch import Tensor
from tqdm import tqdm

from rwkv_lab.config.errors import UserError
from rwkv_lab.inference.recurrent import RecurrentModel
from rwkv_lab.models.lm import LM
from rwkv_lab.models.state import State, rows_of

if TYPE_CHECKING:
    from rwkv_lab.data import Tokenizer

LOGITS = 1 << 25  # most logits kept at once: 128 MB in float32
GENERATED = 256  # most tokens of a continuation, unless the task has its own number

Pair = tuple[list[int], list[int]]  # tokens of a context, at least one, and of its continuation


class Harness(Evaluated):
    """A model in evaluation mode and its tokenizer, as the harness asks for them."""

    def __init__(self, model: LM, tokenizer: "Tokenizer", batch_size: int = 16):
        """Read ``batch_size`` texts at once. Raises UserError for a model that carries no state."""
        super().__init__()
        self.recurrent = RecurrentModel(model)
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.vocab_size = tokenizer.vocab_size
        self._device = model.emb.weight.device

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return for each (context, continuation) ln p(continuation | context), and whether it is the greedy one."""
        pairs = [self.encoded(*request.args) for request in requests]
        waiting: dict[tuple[int, ...], list[int]] = {}
        for index, (context, _) in enumerate(pairs):
            waiting.setdefault(tuple(context), []).append(index)
        found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        with tqdm(total=len(pairs), unit="request", disable=disable_tqdm or None) as bar:
            for contexts in of_one_length(list(waiting), self.batch_size):
                logits, state = self._after(contexts)
                asked = [(row, index) for row, context in enumerate(contexts) for index in waiting[context]]
                for part in batches(sorted(asked, key=lambda each: len(pairs[each[1]][1])), self.batch_size):
                    rows = torch.tensor([row for row, _ in part], device=self._device)
                    continuations = [pairs[index][1] for _, index in part]
                    scores = self._scores(logits[rows], rows_of(state, rows), continuations)
                    for (_, index), score in zip(part, scores, strict=True):
                        found[index] = score
                    bar.update(len(part))
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return ln p of each whole text, read from the start of a line on with the state carried through."""
        texts = [self._ids(request.args[0]) for request in requests]
        start = self.tokenizer.start()
        found = [0.0] * len(texts)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for part in tqdm(list(batches(order, self.batch_size)), unit="batch", disable=disable_tqdm or None):
            logits, state = self._after([tuple(start)] * len(part))
            for index, (score, _) in zip(part, self._scores(logits, state, [texts[i] for i in part]), strict=True):
                found[index] = score
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the greedy continuation of each context, up to one of its stop strings or its number of tokens."""
        contexts = [tuple(self._ids(request.args[0]) or self.tokenizer.start()) for request in requests]
        found = [""] * len(requests)
        waiting: dict[tuple[int, ...], list[int]] = {}
        for index, context in enumerate(contexts):
            waiting.setdefault(context, []).append(index)
        each = [context for context, indices in waiting.items() for _ in indices]
        with tqdm(total=len(requests), unit="request", disable=disable_tqdm or None) as bar:
            for part in of_one_length(each, self.batch_size):
                indices = [waiting[context].pop() for context in part]
                texts = self._continued(part, [requests[index].args[1] for index in indices])
                for index, text in zip(indices, texts, strict=True):
                    found[index] = text
                bar.update(len(part))
        return found

    def encoded(self, context: str, continuation: str) -> Pair:
        """Return the tokens of a pair; spaces at the end of the context belong to the continuation's first word."""
        words = context.rstrip()
        continuation = context[len(words) :] + continuation
        whole, before = self._ids(words + continuation), self._ids(words)
        if not before:
            return self.tokenizer.start(), whole
        return before, whole[len(before) :]

    def _ids(self, text: str) -> list[int]:
        return [int(i) for i in self.tokenizer.encode(text)]

    @torch.no_grad()
    def _after(self, contexts: Sequence[tuple[int, ...]]) -> tuple[Tensor, State]:
        """Contexts of one length -> logits [B,V] of the next token, and the state."""
        idx = torch.tensor(contexts, device=self._device)
        state = None
        for chunk in idx.split(self._chunk(len(contexts)), dim=1):
            logits, state = self.recurrent.prefill(chunk, state)
        assert state is not None
        return logits[:, -1, : self.vocab_size], state

    def _chunk(self, rows: int) -> int:
        return max(1, LOGITS // (rows * self.recurrent.model.vocab_size))

    @torch.no_grad()
    def _scores(self, logits: Tensor, state: State, continuations: Sequence[list[int]]) -> list[tuple[float, bool]]:
        """Return ln p and greediness of continuations, given logits [B,V] of their first tokens and the state."""
        longest = max(map(len, continuations))
        # What stands behind a text changes nothing before it.
        padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in continuations], device=self._device)
        lengths = torch.tensor([len(ids) for ids in continuations], device=self._device)
        total = torch.zeros(len(continuations), dtype=torch.float64)
        greedy = torch.ones(len(continuations), dtype=torch.bool)
        step = self._chunk(len(continuations))
        for start in range(0, longest, step):
            targets = padded[:, start : start + step]
            parts = [logits.unsqueeze(1)]
            if targets.shape[1] > 1:
                more, state = self.recurrent.prefill(targets[:, :-1], state)
                parts.append(more[..., : self.vocab_size])
            p = F.log_softmax(torch.cat(parts, dim=1).float(), dim=-1)  # [B,T,V]
            counted = torch.arange(start, start + targets.shape[1], device=self._device) < lengths.unsqueeze(1)
            chosen = p.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
            total += chosen.double().masked_fill(~counted, 0.0).sum(1).cpu()
            greedy &= ((p.argmax(-1) == targets) | ~counted).all(1).cpu()
            if start + step < longest:
                more, state = self.recurrent.prefill(targets[:, -1:], state)
                logits = more[:, -1, : self.vocab_size]
        return list(zip(total.tolist(), greedy.tolist(), strict=True))

    @torch.no_grad()
    def _continued(self, contexts: Sequence[tuple[int, ...]], settings: Sequence[dict[str, Any]]) -> list[str]:
        """Return the greedy continuations of contexts of one length."""
        stops = [
            [each["until"]] if isinstance(each.get("until"), str) else each.get("until") or [] for each in settings
        ]
        most = [int(each.get("max_gen_toks", GENERATED)) for each in settings]
        ids: list[list[int]] = [[] for _ in contexts]
        texts, open_ = [""] * len(contexts), set(range(len(contexts)))
        logits, state = self._after(contexts)
        while open_:
            tokens = logits.argmax(-1)
            for row in list(open_):
                ids[row].append(int(tokens[row]))
                text = self.tokenizer.decode(ids[row])
                ends = [place for stop in stops[row] if stop and (place := text.find(stop)) >= 0]
                texts[row] = text[: min(ends)] if ends else text
                if ends or len(ids[row]) >= most[row]:
                    open_.discard(row)
            if open_:
                logits, state = self.recurrent.step(tokens, state)
                logits = logits[:, : self.vocab_size]
        return texts


def local_task(file: Path) -> dict[str, Any]:
    """Return the task of a JSONL file, named after it, as the harness's configuration.

    Every line has a ``context`` and either ``choices`` with the index of the right one as ``label``, which are scored
    by their log-likelihoods, or an ``answer``, which the greedy continuation has to equal up to the end of its line.
    Raises UserError for another line.
    """
    import datasets

    rows: list[dict[str, Any]] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            kinds = {"choices": list, "label": int} if "choices" in row else {"answer": str}
            right = all(isinstance(row[key], kind) for key, kind in ({"context": str} | kinds).items())
            right = right and 0 <= row.get("label", 0) < len(row.get("choices", [0]))
        except (ValueError, KeyError, TypeError):
            right = False
        if not right or row.keys() != (rows or [row])[0].keys():
            raise UserError(
                f"{file}:{number} must be JSON with a context and choices and a label, or a context and an answer, "
                'the same in every line, e.g. {"context": "one two", "choices": ["three", "five"], "label": 0}'
            )
        rows.append(row)
    if not rows:
        raise UserError(f"{file} has no line")
    chosen = "choices" in rows[0]
    by_kind = {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    written = {
        "output_type": "generate_until",
        "doc_to_target": " {{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": max(len(row.get("answer", "")) for row in rows) + 8},
        "metric_list": [{"metric": "exact_match"}],
    }
    return {
        "task": file.stem,
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
        "test_split": "test",
        "doc_to_text": "{{context}}",
        **(by_kind if chosen else written),
    }


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Yield ``items`` in order, ``size`` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def of_one_length(texts: Sequence[tuple[int, ...]], size: int) -> Iterator[list[tuple[int, ...]]]:
    """Yield ``texts`` by length, the shortest first, at most ``size`` of one length at a time."""
    by_length: dict[int, list[tuple[int, ...]]] = {}
    for text in texts:
        by_length.setdefault(len(text), []).append(text)
    for length in sorted(by_length):
        for part in batches(by_length[length], size):
            yield list(part)
