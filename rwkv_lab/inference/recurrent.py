"""Running a trained model: token by token with a recurrent state, sampling, sentence embeddings."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from rwkv_lab.config.errors import UserError
from rwkv_lab.models.lm import LM, State


class Embedding(NamedTuple):
    """What the state of the last position says about a text, one row per layer that has a time mix."""

    x: Tensor  # [B,L,C] last input of each time mix
    a_over_b: Tensor  # [B,L,C] average of the values seen, weighted as the next token would, before its bonus


class RecurrentModel:
    """RWKV v2, v3 or v4 as a recurrent network: the logits of the parallel form, at a constant cost per token.

    With head-QK the state also holds the keys and tokens of the last ctx_len positions. Raises Mistake for a model that
    has no recurrent form.
    """

    def __init__(self, model: LM):
        if not model.recurrent:
            raise UserError(f"{model.config.name} has no recurrent form; rwkv_v2, rwkv_v3 and rwkv_v4 have one")
        self.model = model

    @torch.no_grad()
    def step(self, token: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Tokens [B] after `state` (None: the start) -> logits of the next token [B,V] and the new state."""
        logits, state = self.model.advance(token.unsqueeze(1), state)
        return logits[:, 0], state

    @torch.no_grad()
    def prefill(self, idx: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """A chunk of tokens [B,T] of any length T >= 1 after `state` -> logits [B,T,V] and the new state."""
        return self.model.advance(idx, state)

    @torch.no_grad()
    def embed(self, idx: Tensor) -> Embedding:
        """The sentence embedding of tokens [B,T]: last inputs and weighted averages of the time mixes."""
        _, state = self.model.advance(idx)
        mixes = [att for att, _ in state.blocks if isinstance(att, tuple)]
        return Embedding(
            torch.stack([last for last, _ in mixes], dim=1),
            torch.stack([sums[:, 0] / sums[:, 1] for _, sums in mixes], dim=1),
        )


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
    """Probabilities [B,V] to draw from, given logits [B,V]; every filter looks at the model's own probabilities p.

    top_k    keep the k most probable (0: all)
    top_p    keep the fewest most probable whose sum reaches top_p (Holtzman et al. 2020); 1 keeps all
    top_p_x  beside the top_p set, keep every token with p > top_p_x (Peng 2022; try 0.01); 0 adds none
    top_a    drop tokens with p < top_a * max(p)^top_a_power (Peng 2021; try 0.2, the original code has 0.02); 0: none
    temperature  flattens (> 1) or sharpens (< 1) what is kept; 0 leaves the most probable token alone

    The most probable token always stays. Raises Mistake for a value out of range.
    """
    _check_sampling(temperature, top_k, top_p, top_a, top_p_x)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    p = torch.softmax(logits, dim=-1)
    ranked, order = p.sort(dim=-1, descending=True)
    kept = torch.ones_like(p, dtype=torch.bool)
    if top_p < 1:
        before = ranked.cumsum(-1) - ranked  # probability of all that rank above
        kept &= torch.zeros_like(kept).scatter(-1, order, before < top_p) | ((p > top_p_x) & (top_p_x > 0))
    if top_k > 0:
        kept &= p >= ranked[..., min(top_k, p.shape[-1]) - 1].unsqueeze(-1)
    if top_a > 0:
        kept &= p >= top_a * ranked[..., :1] ** top_a_power
    kept.scatter_(-1, order[..., :1], True)
    if temperature == 0:
        return torch.zeros_like(p).scatter(-1, order[..., :1], 1.0)
    return torch.softmax(logits.masked_fill(~kept, -torch.inf) / temperature, dim=-1)


def _check_sampling(temperature: float, top_k: int, top_p: float, top_a: float, top_p_x: float) -> None:
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature is {temperature}; it must be at least 0 and finite")
    if top_k < 0:
        raise UserError(f"top_k is {top_k}; it must be at least 0, which keeps all tokens")
    for name, value in (("top_p", top_p), ("top_a", top_a), ("top_p_x", top_p_x)):
        if not 0 <= value <= 1:
            raise UserError(f"{name} is {value}; it must be between 0 and 1")


@torch.no_grad()
def generate(
    model: LM, prompt: Sequence[int], length: int, generator: Generator | None = None, **filters: Any
) -> list[int]:
    """`length` tokens that continue the token ids of `prompt`, drawn with `generator` (on the model's device).

    filters are those of `filter_logits`. A model without a recurrent form sees the last ctx_len tokens. Raises Mistake
    for an empty prompt, a token outside the vocabulary, or a filter out of range.
    """
    if len(prompt) == 0:
        raise UserError("the prompt is empty; give at least one token")
    if min(prompt) < 0 or max(prompt) >= model.vocab_size:
        raise UserError(f"the prompt has a token outside the vocabulary of {model.vocab_size}")
    device = model.emb.weight.device
    tokens = list(prompt)
    unread = torch.tensor([tokens], device=device)
    state = None
    for _ in range(length):
        if model.recurrent:
            logits, state = model.advance(unread, state)
        else:
            logits = model(torch.tensor([tokens[-model.config.ctx_len :]], device=device))
        unread = torch.multinomial(filter_logits(logits[:, -1], **filters), 1, generator=generator)  # [1,1]
        tokens.append(int(unread))
    return tokens[len(prompt) :]
