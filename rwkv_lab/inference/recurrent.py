"""A language model run token by token: state in, state out, and sentence embeddings."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rwkv_lab.config.errors import UserError
from rwkv_lab.inference import decode
from rwkv_lab.models.lm import LM
from rwkv_lab.models.state import Embeds, State
from rwkv_lab.ops.waiting import sharing_cores

if TYPE_CHECKING:
    from rwkv_lab.models.lm import LM


class Embedding(NamedTuple):
    """Sentence embedding of a text, one row per layer that has a WKV mix."""

    x: Tensor  # [B,L,C] last input of each time mix
    a_over_b: Tensor  # [B,L,C] average of the values seen, weighted as the next token would, before its bonus


class RecurrentModel:
    """A model as a function from state and tokens to logits and state: the logits of the parallel form.

    rwkv_v2, rwkv_v3, rwkv_v4 and other recurrent models read on without end at a constant cost per token. The state of
    attention and of rwkv_v1 grows up to ctx_len tokens, the length trained at: when it is full, its later half is read
    again as a new beginning, so that a token sees between ctx_len / 2 and ctx_len tokens. With head-QK the state also
    has the keys and tokens of the last ctx_len positions.

    A single token of rwkv_v2, rwkv_v3 and rwkv_v4 in float32 on the CPU goes through a kernel, which keeps a copy of
    the weights in ``precision`` fp32, bf16 or int8 (unset: bf16 under autocast, else fp32).

    Raises UserError for a model with a sublayer that carries no state.
    """

    def __init__(self, model: LM, precision: str | None = None):
        if model.config.bidirectional:
            raise UserError(
                f"this {model.config.name} was trained by objective=mlm and reads in both directions: it cannot go on "
                "token by token; rwkv-lab fill puts tokens in place of [MASK]"
            )
        if model.memory is None:
            raise UserError(f"model={model.config.name} has no recurrent form: a sublayer of it carries no state")
        self.model = model
        self.precision = precision
        self._decoder: decode.Decoder | None = None
        self._portable = False  # whether the kernel does not apply

    @torch.no_grad()
    def step(self, token: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Tokens [B] after ``state`` (None: the start) -> logits of the next token [B,V] and the new state."""
        if token.shape[0] == 1 and (decoder := self._native()) is not None:
            return decoder.step(token, state)
        return self._read(token.unsqueeze(1), state)

    def _native(self) -> decode.Decoder | None:
        """Return the kernel for the weights as they are now, or None where it does not apply."""
        if self._portable:
            return None
        half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        kind = self.precision or ("bf16" if half else "fp32")
        if self._decoder is None or self._decoder.kind != kind or self._decoder.stale:
            self._decoder = decode.decoder(self.model, kind)
            self._portable = self._decoder is None
        return self._decoder

    @torch.no_grad()
    def read(self, idx: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """A chunk of tokens [B,T], T >= 1, after ``state`` -> logits of the token after it [B,V] and the new state."""
        return self.step(idx[:, 0], state) if idx.shape[1] == 1 else self._read(idx, state)

    def _read(self, idx: Tensor, state: State | None) -> tuple[Tensor, State]:
        logits, state = self._advance(idx, state, last_only=True)
        return logits[:, 0], state

    @torch.no_grad()
    def prefill(self, idx: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """A chunk of tokens [B,T] of any length T >= 1 after ``state`` -> logits [B,T,V] and the new state."""
        return self._advance(idx, state)

    def _advance(self, idx: Tensor, state: State | None, last_only: bool = False) -> tuple[Tensor, State]:
        if self.model.memory == "constant":
            return self.model.advance(idx, state, last_only=last_only)
        parts = []
        while idx.shape[1]:
            state = self._with_room(state)
            room = self.model.config.ctx_len - (0 if state is None else state.position)
            logits, state = self.model.advance(idx[:, :room], state, last_only=last_only)
            parts.append(logits)
            idx = idx[:, room:]
        assert state is not None
        return (parts[-1] if last_only else torch.cat(parts, dim=1)), state

    def _with_room(self, state: State | None) -> State | None:
        """Return a state that can take another token: ``state``, or that of the later half of a full window."""
        window = self.model.config.ctx_len
        if state is None or state.tokens is None or state.position < window:
            return state
        later = state.tokens[:, window - window // 2 :]
        # Right unless a picture begins in that half, which then counts for itself.
        start = None if state.place is None else state.place - later.shape[1]
        return self.model.advance(later, start=start)[1] if later.shape[1] else None

    @torch.no_grad()
    def embed(self, idx: Tensor) -> Embedding:
        """Return the sentence embedding of tokens [B,T]: last inputs and weighted averages of the WKV mixes.

        Raises UserError for a model without any.
        """
        mixes = [(i, block.att) for i, block in enumerate(self.model.blocks) if isinstance(block.att, Embeds)]
        if not mixes:
            raise UserError(
                f"model={self.model.config.name} has no sentence embedding: none of its layers has a WKV mix"
            )
        _, state = self.prefill(idx)
        rows = [mix.embedding(state.blocks[i].att) for i, mix in mixes]
        return Embedding(torch.stack([x for x, _ in rows], dim=1), torch.stack([average for _, average in rows], dim=1))


def chosen_device(device: str) -> str:
    """Return ``cpu`` or ``cuda`` for auto, cpu or cuda; UserError for a device that torch does not see."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device; choose auto or cpu")
    return device


@contextmanager
def placed(model: "LM", device: str, precision: str | None = None) -> "Iterator[LM]":
    """Yield ``model`` in float32 on ``device``, for evaluation, itself changed.

    precision  fp32 (None) | bf16: matrix products in bfloat16 | int8: the matrices of blocks and head rounded to 8 bits
    """
    import torch

    on = chosen_device(device)
    model = model.float().to(on).eval()
    if precision == "int8":
        decode.round_to_int8(model)
    half = torch.autocast(on, dtype=torch.bfloat16, enabled=precision == "bf16")
    with sharing_cores(torch.get_num_threads() if on == "cpu" else 1), torch.no_grad(), half:
        yield model
