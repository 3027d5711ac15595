"""The language model every architecture fills with its blocks: embedding, blocks, last norm, output head."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rwkv_lab.config.errors import UserError
from rwkv_lab.config.kinds import ModelConfig
from rwkv_lab.models import head_loss
from rwkv_lab.models.blocks.head_qk import HeadQK
from rwkv_lab.models.blocks.pixel_positions import PixelPositions
from rwkv_lab.models.state import BlockState, Mix, State, memory_of


class Block(nn.Module):
    """Two sublayers on the residual stream, with the norms of the configuration."""

    def __init__(self, config: ModelConfig, layer: int, att: Mix[Any], ffn: Mix[Any]):
        super().__init__()
        assert isinstance(att, nn.Module)
        assert isinstance(ffn, nn.Module)
        self.pre_norm = config.norm == "pre"
        # a post-norm block's ln1 already is the norm after the embedding
        norm_first = layer == 0 and self.pre_norm and config.embedding_norm
        self.ln0 = nn.LayerNorm(config.n_embd) if norm_first else None
        self.ln1 = nn.LayerNorm(config.n_embd)
        self.att = att
        self.ln2 = nn.LayerNorm(config.n_embd)
        self.ffn = ffn

    def forward(self, x: Tensor, state: BlockState | None = None) -> tuple[Tensor, BlockState]:
        """x [B,T,C] -> [B,T,C], and the state after the last token."""
        att_state, ffn_state = (None, None) if state is None else state
        if self.pre_norm:
            y, att_state = self.att(self.ln1(x), att_state)
            x = x + y
            y, ffn_state = self.ffn(self.ln2(x), ffn_state)
            return x + y, BlockState(att_state, ffn_state)
        x = self.ln1(x)
        y, att_state = self.att(x, att_state)
        x = self.ln2(x + y)
        y, ffn_state = self.ffn(x, ffn_state)
        return x + y, BlockState(att_state, ffn_state)


class LM(nn.Module):
    """logits = head(ln_out(blocks(emb[idx]))), with head-QK and time_out where configured.

    fixed_length   the blocks have parameters per position, so no sequence is longer than ctx_len
    time_out       a learned factor per position before the head, which limits the length likewise
    head_qk_bias   biases on head-QK's linear layers
    """

    def __init__(
        self,
        config: ModelConfig,
        vocab_size: int,
        blocks: list[Block],
        *,
        fixed_length: bool = False,
        time_out: bool = False,
        head_qk_bias: bool = False,
    ):
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.recurrent = config.recurrent and not config.bidirectional
        mixes = {
            f"blocks.{l}.{side}": getattr(block, side) for l, block in enumerate(blocks) for side in ("att", "ffn")
        }
        memory = memory_of(mixes, config.recurrent, config.name)
        self.memory = None if config.bidirectional else memory
        self.max_len = config.ctx_len if fixed_length or time_out else None  # longest sequence; None: any length
        self.emb = nn.Embedding(vocab_size, config.n_embd)
        self.positions = PixelPositions(*config.pixel_signs(), config.n_embd) if config.positions_2d else None
        self.blocks = nn.ModuleList(blocks)
        self.ln_out = nn.LayerNorm(config.n_embd)
        self.time_out = nn.Parameter(torch.empty(1, config.ctx_len, 1)) if time_out else None
        self.head = nn.Linear(config.n_embd, vocab_size, bias=False)
        D = config.head_qk_dim
        self.head_qk = HeadQK(config.n_embd, D, config.ctx_len, config.head_qk, head_qk_bias) if D else None

    def advance(
        self, idx: Tensor, state: State | None = None, start: Tensor | None = None, last_only: bool = False
    ) -> tuple[Tensor, State]:
        """Tokens idx [B,T] after ``state`` (None: the start) -> logits [B,T,V] and the state after them.

        ``start`` [B] is the place of the first token in its picture, for positions_2d; None: that of the state.
        ``last_only`` computes the logits [B,1,V] of the last position alone.
        Raises UserError for more tokens, with those before, than the model's per-position parameters.
        """
        block_states: list[BlockState] = []
        if start is None and state is not None:
            start = state.place
        logits, history, place = self._logits(idx, state, block_states.append, start, last_only)
        tokens = None
        if self.memory == "growing":
            tokens = idx if state is None or state.tokens is None else torch.cat((state.tokens, idx), dim=1)
        return logits, State(
            block_states, history, tokens, idx.shape[1] + (0 if state is None else state.position), place
        )

    def _logits(
        self,
        idx: Tensor,
        state: State | None,
        keep: Callable[[BlockState], None],
        start: Tensor | None,
        last_only: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None, Tensor | None]:
        """Return logits [B,T,V], head-QK's history and the next place; ``keep`` is given the state of each block."""
        past = 0 if state is None else state.position
        x, place = self._hidden(idx, state, keep, start)
        return *self._read_out(x, idx, past, None if state is None else state.head_qk, last_only), place

    def _hidden(
        self, idx: Tensor, state: State | None, keep: Callable[[BlockState], None], start: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return what the head reads, [B,T,C], and the next place."""
        end = idx.shape[1] + (0 if state is None else state.position)
        if self.max_len is not None and end > self.max_len:
            raise UserError(
                f"model={self.config.name} has per-position parameters for model.ctx_len={self.max_len} tokens: "
                f"it cannot read {end}"
            )
        x = self.emb(idx)
        ln0 = self.blocks[0].ln0
        if isinstance(ln0, nn.LayerNorm):
            x = ln0(x)
        place = None
        if self.positions is not None:
            added, place = self.positions(idx, start, x.dtype)
            x = x + added
        for i, block in enumerate(self.blocks):
            x, block_state = block(x, None if state is None else state.blocks[i])
            keep(block_state)
        return self.ln_out(x), place

    def _read_out(
        self,
        x: Tensor,
        idx: Tensor,
        past: int = 0,
        history: tuple[Tensor, Tensor] | None = None,
        last_only: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """x [B,T,C] after ``past`` tokens -> logits [B,T,V], and head-QK's history."""
        shown = self._timed(x, past)
        logits = self.head(shown[:, -1:] if last_only else shown)
        return (logits, None) if self.head_qk is None else self.head_qk(logits, x, idx, history)

    def _timed(self, x: Tensor, past: int = 0) -> Tensor:
        return x if self.time_out is None else x * self.time_out[:, past : past + x.shape[1]]

    def forward(self, idx: Tensor, start: Tensor | None = None) -> Tensor:
        """Tokens idx [B,T], ``start`` as in ``advance`` -> logits [B,T,V]; errors as there. Keeps no state, which may
        be large."""
        return self._logits(idx, None, lambda state: None, start)[0]

    def loss(self, idx: Tensor, targets: Tensor, weights: Tensor | None = None, start: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats per token of targets [B,T] at idx [B,T]; l2_wrap adds to its gradient only.

        ``weights`` [B,T], at least 0, make it a weighted mean; positions of weight 0 are left out of l2_wrap too.
        Targets and weights [B,T,J] are J tokens a position with a probability each; ``start`` as in ``advance``.
        Logits of more than ``head_loss.SLICE_LOGITS`` numbers are never there all at once, but for targets [B,T,J].
        """
        x, _ = self._hidden(idx, None, lambda state: None, start)
        l2_wrap = self.config.l2_wrap
        if targets.dim() == 3 or idx.numel() * self.vocab_size <= head_loss.SLICE_LOGITS:
            return head_loss.mean_loss(self._read_out(x, idx)[0], targets, weights, l2_wrap)
        if self.head_qk is None:
            return head_loss.sliced_head_loss(self._timed(x), self.head.weight, targets, weights, l2_wrap)
        return head_loss.sliced_rows_loss(
            lambda rows: self._read_out(x[rows], idx[rows])[0], targets, weights, l2_wrap, self.vocab_size
        )


def decay_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters weight decay applies to: weights of linear layers, but not of the output head's."""
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith("head")
    }


def flops_per_token(model: LM) -> float:
    """Forward and backward FLOPs per training token at ctx_len; the backward pass costs twice the forward.

    Counts 2 a weight of every linear layer, the head-QK products, and what the architecture does between positions,
    over the full square of positions where it computes one (the convention of Chowdhery et al. 2022, PaLM).
    """
    config = model.config
    linear = sum(2.0 * module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    head_qk = 2.0 * config.head_qk_dim * config.ctx_len
    return 3.0 * (linear + head_qk + config.mixing_flops())
