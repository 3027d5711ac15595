"""The language model every architecture fills with its blocks: embedding, blocks, last norm, output head."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv_lab.config.errors import UserError
from rwkv_lab.models.blocks.tricks import HeadQK, l2_wrap
from rwkv_lab.models.config import HeadsConfig, ModelConfig

BlockState = tuple[object, object]


class State(NamedTuple):
    """What the past leaves behind after some tokens."""

    blocks: list[BlockState]  # per block, what its two sublayers carry on
    head_qk: tuple[Tensor, Tensor] | None  # head-QK: keys [B,P,D] and tokens [B,P] of the last P <= ctx_len positions


def norms_embedding(config: ModelConfig) -> bool:
    """Whether block 0 begins with one more norm, ln0; a post-norm block's ln1 already is that norm."""
    small = config.small_init_emb
    if small is None:
        small = not isinstance(config, HeadsConfig)
    return small and config.norm == "pre"


class Block(nn.Module):
    """Two sublayers on the residual stream, each `(x [B,T,C], state) -> (y [B,T,C], state)`; None is the start."""

    def __init__(self, config: ModelConfig, layer: int, att: nn.Module, ffn: nn.Module):
        super().__init__()
        self.pre_norm = config.norm == "pre"
        self.ln0 = nn.LayerNorm(config.n_embd) if layer == 0 and norms_embedding(config) else None
        self.ln1 = nn.LayerNorm(config.n_embd)
        self.att = att
        self.ln2 = nn.LayerNorm(config.n_embd)
        self.ffn = ffn

    def forward(self, x: Tensor, state: BlockState = (None, None)) -> tuple[Tensor, BlockState]:
        """x [B,T,C] -> [B,T,C], and the state after the last token."""
        if self.ln0 is not None:
            x = self.ln0(x)
        if self.pre_norm:
            y, att_state = self.att(self.ln1(x), state[0])
            x = x + y
            y, ffn_state = self.ffn(self.ln2(x), state[1])
            return x + y, (att_state, ffn_state)
        x = self.ln1(x)
        y, att_state = self.att(x, state[0])
        x = self.ln2(x + y)
        y, ffn_state = self.ffn(x, state[1])
        return x + y, (att_state, ffn_state)


class LM(nn.Module):
    """logits = head(ln_out(blocks(emb[idx]))), with head-QK and time_out where configured.

    max_len is the longest sequence the parameters allow, None where there is no limit; recurrent says that the blocks
    carry all they need of the past in their state.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, blocks: list[Block], recurrent: bool, fixed_length: bool):
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.recurrent = recurrent
        with_time_out = isinstance(config, HeadsConfig) and config.time_out
        self.max_len = config.ctx_len if fixed_length or with_time_out else None
        self.emb = nn.Embedding(vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(blocks)
        self.ln_out = nn.LayerNorm(config.n_embd)
        self.time_out = nn.Parameter(torch.empty(1, config.ctx_len, 1)) if with_time_out else None
        self.head = nn.Linear(config.n_embd, vocab_size, bias=False)
        self.head_qk = (
            HeadQK(config.n_embd, config.head_qk_dim, config.ctx_len, config.head_qk, isinstance(config, HeadsConfig))
            if config.head_qk_dim
            else None
        )

    def advance(self, idx: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Tokens idx [B,T] after `state` (None: the start) -> logits [B,T,V] and the state after them."""
        x = self.emb(idx)
        block_states: list[BlockState] = []
        for i, block in enumerate(self.blocks):
            x, block_state = block(x) if state is None else block(x, state.blocks[i])
            block_states.append(block_state)
        x = self.ln_out(x)
        logits = self.head(x if self.time_out is None else x * self.time_out[:, : idx.shape[1]])
        history = None
        if self.head_qk is not None:
            logits, history = self.head_qk(logits, x, idx, None if state is None else state.head_qk)
        return logits, State(block_states, history)

    def forward(self, idx: Tensor) -> Tensor:
        """Tokens idx [B,T] -> logits [B,T,V]. Raises Mistake where T exceeds what the model's parameters allow."""
        if self.max_len is not None and idx.shape[1] > self.max_len:
            raise UserError(
                f"{self.config.name}: {idx.shape[1]} tokens are more than model.ctx_len = {self.max_len}, "
                "the length of its per-position parameters"
            )
        return self.advance(idx)[0]

    def loss(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token of targets [B,T] after idx [B,T]; l2_wrap adds to its gradient only."""
        logits = self(idx)
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return l2_wrap(loss, logits) if self.config.l2_wrap else loss


def decay_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters weight decay applies to: weights of linear layers, but not of the output head's."""
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith("head")
    }
