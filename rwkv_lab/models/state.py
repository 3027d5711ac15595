"""The recurrent contract: what a sublayer carries from one token to the next.

A sublayer is a module ``forward(x, state) -> (y, state)``, x and y [B,T,C], and None the state before the first token.
Its state is a named tuple of tensors whose first dimension is the batch. ``memory`` declares how large it grows:

    memory = "constant"   as large after any number of tokens: a recurrent network
    memory = "growing"    larger with every token: the keys and values of attention
    no attribute          carries nothing; refused in a recurrent model, and RecurrentModel refuses such a model
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from rwkv_lab.config.errors import UserError

MixState = tuple[Tensor, ...]
Memory = Literal["constant", "growing"]
S = TypeVar("S", bound=MixState)


class Mix(Protocol[S]):
    """A sublayer: a module that is a time mix, an attention or a channel mix."""

    def forward(self, x: Tensor, state: S | None) -> tuple[Tensor, S]:
        """Return y [B,T,C] for x [B,T,C] that follows ``state``, and the state after x."""
        ...


@runtime_checkable
class Embeds(Protocol):
    """A sublayer whose state is a sentence embedding, such as the WKV mix."""

    def embedding(self, state: Any) -> tuple[Tensor, Tensor]:
        """Return the last input [B,C] and the weighted average of the values seen [B,C]."""
        ...


class ShiftState(NamedTuple):
    """State of a sublayer that sees one token back."""

    last: Tensor  # [B,C] input of the last token


class BlockState(NamedTuple):
    """State of the two sublayers of a block."""

    att: MixState
    ffn: MixState


class State(NamedTuple):
    """State of a language model after some tokens."""

    blocks: Sequence[BlockState]
    head_qk: tuple[Tensor, Tensor] | None  # keys [B,P,D] and tokens [B,P] of the last P <= ctx_len positions
    tokens: Tensor | None  # [B,position] tokens of the window, kept where some sublayer's state grows
    position: int  # tokens read
    place: Tensor | None = None  # [B] of the next token in its picture, for positions_2d


def memory_of(mixes: dict[str, nn.Module], recurrent: bool, model: str) -> Memory | None:
    """Return the memory of a model of these sublayers, by name; None if some sublayer carries no state.

    Raises UserError for a sublayer whose state is not of constant size in a model that is ``recurrent``.
    """
    found = {name: getattr(mix, "memory", None) for name, mix in mixes.items()}
    for name, memory in found.items():
        if recurrent and memory != "constant":
            carries = "a state that grows with every token" if memory == "growing" else "no state"
            raise UserError(
                f"model={model} is recurrent, but its {type(mixes[name]).__name__} at {name} carries {carries}: use "
                'a sublayer with memory = "constant", or set recurrent = False'
            )
    if None in found.values():
        return None
    return "growing" if "growing" in found.values() else "constant"


def rows_of(state: State, rows: Tensor) -> State:
    """Return the state of the rows [N] of a batch, in this order; a row may occur several times."""

    def chosen(part: Any) -> Any:
        if isinstance(part, Tensor):
            return part[rows]
        if isinstance(part, list):
            return [chosen(each) for each in part]
        if isinstance(part, tuple):
            found = [chosen(each) for each in part]
            return type(part)(*found) if hasattr(part, "_fields") else tuple(found)
        return part

    return State(*(chosen(part) for part in state))
