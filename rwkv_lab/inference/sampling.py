"""Sampling: which tokens may be drawn, and texts drawn token by token."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Generator, Tensor

from rwkv_lab.config.errors import UserError
from rwkv_lab.inference.recurrent import RecurrentModel
from rwkv_lab.models.lm import LM
from rwkv_lab.models.state import State

if TYPE_CHECKING:
    from rwkv_lab.data import Tokenizer


def filter_logits(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    top_a: float = 0.0,
    top_a_power: float = 2.0,
    top_p_x: float = 0.0,
) -> Tensor:
    """Return probabilities [B,V] to draw from, given logits [B,V]; filters look at the model's own probabilities p.

    top_k    keep the k most probable (0: all)
    top_p    keep the fewest most probable whose sum reaches top_p (Holtzman et al. 2020); 1 keeps all
    top_p_x  beside the top_p set, keep every token with p > top_p_x (Peng 2022; try 0.01); 0 adds none
    top_a    drop tokens with p < top_a * max(p)^top_a_power (Peng 2021; try 0.2, the original code has 0.02); 0: none
    temperature  flattens (> 1) or sharpens (< 1) what is kept; 0 keeps the most probable token alone

    The most probable token always stays. Raises UserError for a value out of range.
    """
    _check_sampling(temperature, top_k, top_p, top_a, top_p_x)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature > 0 and top_p == 1 and top_k == 0 and top_a == 0:
        return torch.softmax(logits / temperature, dim=-1)
    p = torch.softmax(logits, dim=-1)
    best, first = p.max(dim=-1, keepdim=True)
    if temperature == 0:
        return torch.zeros_like(p).scatter_(-1, first, 1.0)
    kept = torch.ones_like(p, dtype=torch.bool)
    if top_p < 1:
        kept &= _nucleus(p, top_p) | ((p > top_p_x) & (top_p_x > 0))
    if 0 < top_k < p.shape[-1]:
        kept &= p >= p.topk(top_k, dim=-1).values[..., -1:]
    if top_a > 0:
        kept &= p >= top_a * best**top_a_power
    kept.scatter_(-1, first, True)
    return torch.softmax(logits.masked_fill(~kept, -torch.inf) / temperature, dim=-1)


def _nucleus(p: Tensor, top_p: float, most: int = 64) -> Tensor:
    """Return the mask [B,V] of the fewest most probable tokens of p [B,V] whose sum reaches ``top_p``.

    Ranks the ``most`` largest only, and four times as many until they suffice: a full sort is needed for flat
    distributions alone.
    """
    V = p.shape[-1]
    while True:
        ranked, order = p.topk(min(most, V), dim=-1)
        sums = ranked.cumsum(-1)
        if most >= V or bool((sums[..., -1] >= top_p).all()):
            return torch.zeros_like(p, dtype=torch.bool).scatter_(-1, order, sums - ranked < top_p)
        most *= 4


def _check_sampling(temperature: float, top_k: int, top_p: float, top_a: float, top_p_x: float) -> None:
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature must be at least 0 and finite, e.g. 0.8 (got {temperature})")
    if top_k < 0:
        raise UserError(f"top_k must be at least 0, which keeps all tokens (got {top_k})")
    for name, value in (("top_p", top_p), ("top_a", top_a), ("top_p_x", top_p_x)):
        if not 0 <= value <= 1:
            raise UserError(f"{name} must be between 0 and 1 (got {value})")


class Session:
    """A model in the middle of a text: reads tokens, draws what follows, and goes on from there."""

    def __init__(
        self,
        model: LM,
        generator: Generator | None = None,
        vocab_size: int | None = None,
        precision: str | None = None,
        **filters: Any,
    ):
        """Begin a text. Draws with ``generator``, on the model's device, among the first ``vocab_size`` tokens (all).

        ``precision`` is that of ``RecurrentModel``, ``filters`` are those of ``filter_logits``. Raises UserError for a
        filter out of range.
        """
        filter_logits(torch.zeros(1, 1), **filters)
        self.recurrent = RecurrentModel(model, precision)
        self.vocab_size = model.vocab_size if vocab_size is None else vocab_size
        self.generator = generator
        self.filters = filters
        self.device = model.emb.weight.device
        self.unread: list[int] = []
        self.state: State | None = None

    def read(self, ids: Sequence[int]) -> None:
        """Append the token ``ids`` to the text. Raises UserError for one outside the vocabulary."""
        if len(ids) and (min(ids) < 0 or max(ids) >= self.recurrent.model.vocab_size):
            raise UserError(f"the prompt has a token outside the vocabulary of {self.recurrent.model.vocab_size}")
        self.unread += ids

    @torch.no_grad()
    def draw(self, length: int) -> Iterator[int]:
        """Yield ``length`` tokens that continue the text, each as soon as it is drawn.

        Raises UserError for a text without a token.
        """
        if not self.unread and length:
            raise UserError("the prompt is empty: give at least one token")
        for _ in range(length):
            unread = torch.tensor([self.unread], device=self.device)
            logits, self.state = self.recurrent.read(unread, self.state)
            p = filter_logits(logits[:, : self.vocab_size], **self.filters)
            token = int(torch.multinomial(p, 1, generator=self.generator))
            self.unread = [token]
            yield token


def generate(
    model: LM, prompt: Sequence[int], length: int, generator: Generator | None = None, **filters: Any
) -> list[int]:
    """Return ``length`` tokens that continue the token ids of ``prompt``, drawn with ``generator`` (on the model's
    device).

    filters are those of ``filter_logits``. Raises UserError for an empty prompt, a token outside the vocabulary, or a
    filter out of range.
    """
    session = Session(model, generator, **filters)
    session.read(list(prompt))
    return list(session.draw(length))


@torch.no_grad()
def generate_rows(
    model: LM, prompts: np.ndarray, length: int, choices: int, generator: Generator | None = None
) -> np.ndarray:
    """Return ``length`` tokens that continue each of ``prompts`` [B,P], drawn among the first ``choices``: [B,length].

    Each token by its own probability, with ``generator`` on the model's device.
    """
    recurrent, state, drawn = RecurrentModel(model), None, []
    unread = torch.from_numpy(prompts).to(model.emb.weight.device)
    for _ in range(length):
        logits, state = recurrent.prefill(unread, state)
        p = torch.softmax(logits[:, -1, :choices].float(), dim=-1)
        unread = torch.multinomial(p, 1, generator=generator)
        drawn.append(unread)
    return torch.cat(drawn, dim=1).cpu().numpy()


REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
LONGEST = 4  # tokens a character of UTF-8 can be spread over
CONTEXT = 8  # tokens of what was read that decide on spaces before the first one drawn


def streamed(tokenizer: "Tokenizer", before: list[int], ids: Iterable[int]) -> Iterator[str]:
    """Yield the text of ``ids``, which follow the tokens ``before``, in pieces as soon as each is certain.

    A character that several tokens make up comes with the last of them.
    """
    shown, waiting = before[-CONTEXT:], []
    for token in ids:
        waiting.append(token)
        piece = _added(tokenizer, shown, waiting)
        if piece and (not piece.endswith(REPLACEMENT) or len(waiting) >= LONGEST):
            yield piece
            shown, waiting = (shown + waiting)[-CONTEXT:], []
    if waiting and (piece := _added(tokenizer, shown, waiting)):
        yield piece


def _added(tokenizer: "Tokenizer", shown: list[int], waiting: list[int]) -> str:
    """Return what ``waiting`` adds; bytes shown as a broken character may turn out to begin a whole one."""
    before, after = tokenizer.decode(shown), tokenizer.decode(shown + waiting)
    same = 0
    while same < min(len(before), len(after)) and before[same] == after[same]:
        same += 1
    return after[same:]
